"""The same measurements on an accelerator: every family exact, the sweeps, two sizes in bfloat16.

It needs a checkout, because the tiny models of the families are those of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.patching import CASES, run_case
from interp.core.errors import InterpError
from interp.core.files import versions
from interp.core.prompts import PromptPair, Task
from interp.engine.cost import floor_flops, matmul_rate
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model, wrap
from interp.patching.activation import activation_patching
from interp.patching.spec import PatchSpec
from interp.patching.sweep import make_sweep

SIZES = ("135m", "7b")
"""The default model, and a Llama of 7 billion random weights; both in bfloat16."""

BY = {
    "z": ("layer", "head"),
    "k": ("layer", "kv_head"),
    "mlp_out": ("layer",),
    "resid_pre": ("layer",),
}
"""The sites that are compared, and their components."""

PROMPTS, TOKENS = 8, 64

Log = Callable[[str], None]


def bench_device(
    device: str,
    *,
    cases: Sequence[str] = tuple(CASES),
    sizes: Sequence[str] = SIZES,
    families: Sequence[str] | None = None,
    log: Log = lambda text: None,
) -> dict[str, Any]:
    """Exactness of every family on the device, the patching cases, and two model sizes.

    exactness: the largest difference of patching effects between the device and the CPU, in
    float32, over the largest effect, of every family and some sites. patching: as
    `bench_patching`, without peers. sizes: seconds of plain runs and of a sweep over the heads of
    the middle layer in bfloat16, the share of the device's measured rate of matrix products that
    the sweep reaches, and the memory it takes beside the weights.

    Raises:
        InterpError: torch has no such device.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise InterpError(f"device {device}", str(error).splitlines()[0], "use another") from error
    named = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return {
        "device": named,
        "exactness": _exactness(where, families, log),
        "patching": {name: run_case(name, log, peers=(), device=where) for name in cases},
        "sizes": {name: _size(name, where, log) for name in sizes},
        "versions": versions(),
    }


def _exactness(device: torch.device, families: Sequence[str] | None, log: Log) -> dict[str, float]:
    from tests.families import FAMILIES, random_task, tiny

    found, task = {}, random_task()
    for name in FAMILIES if families is None else families:
        moved: Any = tiny(name)
        here = wrap(tiny(name), name=name, check=False)
        there = wrap(moved.to(device), name=name, check=False)
        gaps = []
        for site in BY:
            one, other = (
                activation_patching(
                    model, task, site=site, by=BY[site], unit="metric", cache=False
                ).effects
                for model in (here, there)
            )
            gaps.append(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))
        found[name] = float(max(gaps))
        log(f"{name}: {found[name]:.1e}")
    return found


def _size(name: str, device: torch.device, log: Log) -> dict[str, Any]:
    model = _model(name, device)
    assert model.decoder is not None
    layer = model.n_layers // 2
    task = _task(model.d_vocab)
    sweep = make_sweep(model, task, PatchSpec(site="z", by=("layer", "head"), layers=(layer,)))
    weights = sum(p.numel() * p.element_size() for p in model.hf_model.parameters())
    options: dict[str, Any] = {"site": "z", "layers": [layer], "unit": "metric", "cache": False}
    rows = [pair.clean for pair in task.pairs]
    model.last_logits(rows)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    model.last_logits(rows).sum().item()
    plain = time.perf_counter() - begun
    activation_patching(model, task, **options)
    begun = time.perf_counter()
    activation_patching(model, task, **options)
    seconds = time.perf_counter() - begun
    rate = matmul_rate(model.dtype, device, seconds=1.0)
    floor = floor_flops(model.decoder, sweep.cells, sweep.lengths, "z")
    taken = torch.cuda.max_memory_allocated(device) - weights if device.type == "cuda" else None
    log(f"{name}: plain {plain:.3f} s, sweep {seconds:.2f} s, {floor / seconds / rate:.2f} of peak")
    return {
        "weights_gb": weights / 1e9,
        "plain": plain,
        "sweep": seconds,
        "cells": sweep.n_cells,
        "of_peak": floor / seconds / rate,
        "tflops": rate / 1e12,
        "memory_gb": None if taken is None else taken / 1e9,
    }


def _model(name: str, device: torch.device) -> LanguageModel:
    if name == SIZES[0]:
        return load_model(dtype="bfloat16", device=str(device))
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with device:
        made = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
    return wrap(made.eval(), name=f"random-{name}", check=False)


def _task(vocabulary: int) -> Task:
    """Random prompts whose first third differs."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(PROMPTS):
        clean = rng.integers(3, vocabulary, size=TOKENS)
        other = np.concatenate(
            [rng.integers(3, vocabulary, size=TOKENS // 3), clean[TOKENS // 3 :]]
        )
        first, second = (tuple(side.tolist()) for side in (clean, other))
        pairs.append(PromptPair(clean=first, corrupted=second, answers=(5,), wrong=(9,)))
    return Task(name="random", pairs=tuple(pairs))
