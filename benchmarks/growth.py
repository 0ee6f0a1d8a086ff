"""Times over what cannot be avoided, and how the time of a sweep grows with its size."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import measure
from benchmarks.patching import CASES, setting
from interp.core.files import versions
from interp.core.prompts import PromptPair, Task
from interp.engine.cost import floor_flops, matmul_rate
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model, wrap
from interp.patching.activation import activation_patching
from interp.patching.path import path_patching
from interp.patching.path_cost import path_patching_cost
from interp.patching.path_spec import PathSpec
from interp.patching.spec import PatchSpec
from interp.patching.sweep import make_sweep
from interp.runs.capture import run_with_cache
from interp.tasks.registry import load_task

Log = Callable[[str], None]

BASE = {"prompts": 8, "tokens": 32, "layers": 8, "heads": 8}
GROWN = {
    "prompts": (2, 4, 8, 16),
    "tokens": (16, 32, 64, 128),
    "layers": (4, 8, 16),
    "heads": (4, 8, 16),
}
"""One size of a sweep is varied and the others are those of `BASE`."""


def bench_growth(*, log: Log = lambda text: None) -> dict[str, Any]:
    """Where sweeps spend their time, paths and capture over their floors, and growth, one thread.

    products: of each case of `bench_patching`, `share`, the share of the sweep's time that is spent
    in matrix products (attention included), and `over_floor`, that time over the floor. What
    exceeds 1 there is products whose shapes are slower than the one that the floor is measured on.
    paths: all heads into the logits, and into one head's query, of the default model on 16 IOI
    pairs; `floor` is the number of floating-point operations over this machine's rate of matrix
    products. capture: the stream of every layer, at all tokens and at the last, over a forward pass
    of Transformers on the same 16 prompts. growth: seconds of a sweep over all heads of a random
    Llama when one size grows, and the exponent of a power law, beside that of the floor.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {
            "products": {case: _products(case, log) for case in CASES},
            "paths": _paths(log),
            "capture": _capture(log),
            "growth": _growth(log),
        }
    finally:
        torch.set_num_threads(threads)
    machine = {"python": sys.version.split()[0], "machine": platform.machine(), "threads": 1}
    return {**found, "base": BASE, "versions": versions(), **machine}


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu")


def _products(case: str, log: Log) -> dict[str, float]:
    model, task, by = setting(case, torch.device("cpu"))
    options: dict[str, Any] = {"site": "z", "by": by, "direction": "denoise"}
    activation_patching(model, task, layers=[model.n_layers - 1], cache=False, **options)  # warm up
    rate = matmul_rate(model.dtype, model.device, seconds=1.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        activation_patching(model, task, cache=False, **options)
    times = {row.key.removeprefix("aten::"): row for row in profiled.key_averages()}
    inside = sum(times[name].self_cpu_time_total for name in PRODUCTS if name in times) / 1e6
    whole = sum(row.self_cpu_time_total for row in times.values()) / 1e6
    sweep = make_sweep(model, task, PatchSpec(**options))
    assert model.decoder is not None
    floor = floor_flops(model.decoder, sweep.cells, sweep.lengths, "z") / rate
    log(f"({case}) {inside / whole:.2f} of the time is products, {inside / floor:.2f} floors")
    return {"seconds": whole, "share": inside / whole, "over_floor": inside / floor}


def _paths(log: Log) -> dict[str, Any]:
    model = load_model()
    task, found = load_task("ioi", model, n=16, templates=1), {}
    for receivers in (["logits"], [f"L{model.n_layers - 1}H0.q"]):
        rate = matmul_rate(model.dtype, model.device, seconds=1.0)
        floor = path_patching_cost(model, task, PathSpec(receivers=receivers)).flops / rate
        _, row = measure(lambda to=receivers: path_patching(model, task, receivers=to, cache=False))
        row |= {"floor": floor, "floor_ratio": row["seconds"] / floor}
        found[receivers[0]] = row
        log(f"paths into {receivers[0]}: {row['seconds']:.2f} s, {row['floor_ratio']:.2f} floors")
    return found


def _capture(log: Log) -> dict[str, Any]:
    model = load_model()
    prompts = [pair.clean for pair in load_task("ioi", model, n=16, templates=1).pairs]
    rows, found = torch.tensor([model.tokenize(p).tokens for p in prompts]), {}

    def plain() -> None:
        with torch.no_grad():
            model.hf_model(rows, logits_to_keep=1)

    _, found["plain"] = measure(plain)
    for name, positions in (("all tokens", "all"), ("last token", -1)):
        _, row = measure(
            lambda at=positions: run_with_cache(model, prompts, sites="resid_post", positions=at)
        )
        found[name] = row | {"ratio": row["seconds"] / found["plain"]["seconds"]}
        log(f"capture, {name}: {found[name]['ratio']:.2f} times a plain pass")
    return found


def _growth(log: Log) -> dict[str, Any]:
    found = {}
    for name, sizes in GROWN.items():
        rows = [_sized(**BASE | {name: size}) for size in sizes]
        logs = np.log(sizes)
        found[name] = {
            "sizes": sizes,
            "rows": rows,
            "exponent": float(np.polyfit(logs, np.log([row["seconds"] for row in rows]), 1)[0]),
            "floor_exponent": float(np.polyfit(logs, np.log([row["floor"] for row in rows]), 1)[0]),
        }
        log(
            f"{name}: exponent {found[name]['exponent']:.2f}, "
            f"of the floor {found[name]['floor_exponent']:.2f}"
        )
    return found


def _sized(*, prompts: int, tokens: int, layers: int, heads: int) -> dict[str, float]:
    """Seconds of a sweep over all heads of a random Llama of width 256, and its floor."""
    model, task = _random(layers, heads), _pairs(prompts, tokens)
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "unit": "metric"}
    sweep = make_sweep(model, task, PatchSpec(**options))
    assert model.decoder is not None
    rate = matmul_rate(model.dtype, model.device, seconds=0.5)
    _, row = measure(lambda: activation_patching(model, task, cache=False, **options), times=3)
    floor = floor_flops(model.decoder, sweep.cells, sweep.lengths, "z") / rate
    return {"seconds": row["seconds"], "floor": floor, "peak_mb": row["peak_mb"]}


def _random(layers: int, heads: int) -> LanguageModel:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        intermediate_size=1024,
        bos_token_id=1,
        eos_token_id=2,
    )
    hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return wrap(hf_model, name="random-llama", check=False)


def _pairs(n: int, length: int) -> Task:
    rng = np.random.default_rng(0)
    clean = rng.integers(10, 1000, size=(n, length))
    corrupted = np.concatenate([clean[:, :2], (clean[:, 2:] + 331) % 1000], 1)
    return Task(
        name="random",
        pairs=tuple(
            PromptPair(clean=tuple(a), corrupted=tuple(b), answers=(5,), wrong=(9,))
            for a, b in zip(clean.tolist(), corrupted.tolist(), strict=True)
        ),
    )
