"""Time of patching, compared with TransformerLens, and of generation with an intervention."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.environments import python_of, run_process
from benchmarks.memory import repeat
from benchmarks.sweep_peers import PEERS
from interp.core.errors import InterpError, unknown
from interp.core.files import versions
from interp.core.prompts import PromptPair, Task
from interp.engine.cost import floor_flops, matmul_rate
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model, unwrapped, wrap
from interp.patching.activation import activation_patching
from interp.patching.spec import PatchSpec
from interp.patching.sweep import make_sweep
from interp.results.scores import Scores
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.text_runs import Generation
from interp.tasks.countdown import make_countdown
from interp.tasks.registry import load_task

CASES = {
    "a": "GPT-2-small shape, random weights, one 15-token pair, z of heads by position",
    "b": "6-layer d=256 grouped-query Llama shape, random weights, z of heads by position",
    "c": "SmolLM2-135M-Instruct, 16 IOI prompts at once, z of heads",
}


BUDGET_GB = 0.5
"""The memory that our sweep may use."""


def bench_patching(
    cases: Sequence[str] = tuple(CASES),
    *,
    log: Callable[[str], None] = lambda text: None,
    peers: Sequence[str] = tuple(PEERS),
    kept: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Time our patching sweep and others' on the same cells and weights, on one thread.

    For each case, `ours` and every one of `peers` has `seconds` of computing, which other processes
    hardly affect, and `peak_mb`, the largest growth of resident memory. `seconds` is the median of
    `runs`: a sweep is repeated, up to five times, until it has taken five seconds. A peer also has
    `ratio`, its seconds over ours, and `max_abs_diff`, the largest difference of the metric.
    `floor` is the least number of floating-point operations over this machine's measured rate of
    matrix products, and `floor_ratio` our time over it.

    Args:
        cases: names in `CASES`.
        log: receives a line per step.
        peers: names in `benchmarks.sweep_peers.PEERS` (minutes each).
        kept: a result that was kept; what it holds is not measured again.
        keep: receives the result so far, after ours and after each peer.

    Raises:
        InterpError: a case or a peer is unknown, the process of a peer failed, or `kept` is of
            other versions.
    """
    machine = {"python": sys.version.split()[0], "machine": platform.machine(), "threads": 1}
    found: dict[str, Any] = {"cases": {}, "versions": versions(), **machine}
    if kept is not None:
        if {name: kept.get(name) for name in found} != found | {"cases": kept.get("cases")}:
            was = f"measured with {kept.get('versions')} on {kept.get('machine')}"
            raise InterpError("going on with a benchmark", was, "write to another file")
        found |= kept
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in cases:
            run_case(name, log, peers=peers, cases=found["cases"], keep=lambda: keep(found))
    finally:
        torch.set_num_threads(threads)
    return found


def bench_generation(
    name: str = "countdown-smollm2",
    *,
    n: int = 300,
    max_new_tokens: int = 120,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time cached generation with an intervention at every " (", and unchanged generation.

    Three heads of the middle layers are set to zero when the trigger fires, at the last two tokens
    or at all tokens. `ratio` is the time over that of unchanged generation (aim: at most 1.5).
    `fired` counts tokens taken from changed runs. Texts may differ after the first changed token,
    so `tokens` gives their number. `equal` says whether the first four texts are exactly those of
    whole forward passes without a cache.
    """
    model = load_model(name)
    prompts = [problem.prompt() for problem in make_countdown(n, seed=11)]
    middle = model.n_layers // 2
    heads = [f"L{middle + i // 2}H{i % model.n_heads}" for i in range(3)]
    zeroed = make_ablation(model, heads)
    found: dict[str, Any] = {"model": name, "n": n, "heads": heads, "versions": versions()}
    for label, options in (
        ("plain", {}),
        ("last 2 tokens", {"change": zeroed, "trigger": " (", "where": 2}),
        ("all tokens", {"change": zeroed, "trigger": " (", "where": "all"}),
    ):
        begin = time.perf_counter()
        texts = generate(model, prompts, max_new_tokens=max_new_tokens, **options)
        seconds = time.perf_counter() - begin
        plain = found["plain"]["seconds"] if "plain" in found else seconds
        found[label] = {
            "seconds": round(seconds, 2),
            "ratio": round(seconds / plain, 3),
            "tokens": sum(len(text.tokens) for text in texts),
            "fired": sum(len(text.fired) for text in texts),
            "equal": all(_uncached(model, text, options) == text.tokens for text in texts[:4]),
        }
        log(f"{label}: {found[label]}")
    return found


def _uncached(model: LanguageModel, text: Generation, options: dict[str, Any]) -> tuple[int, ...]:
    """The tokens of the same text, from a whole forward pass for each token."""
    written = list(text.prompt)
    fires = model.token_id(options["trigger"])[0] if options else None
    for _ in text.tokens:
        logits = model.last_logits([written])
        if options and written[-1] == fires:
            with intervene(model, options["change"].last(options["where"])):
                logits = model.last_logits([written])
        written.append(int(logits.argmax()))
    return tuple(written[len(text.prompt) :])


def run_case(
    name: str,
    log: Callable[[str], None],
    *,
    peers: Sequence[str],
    device: torch.device = torch.device("cpu"),  # noqa: B008
    cases: dict[str, Any] | None = None,
    keep: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One of `CASES`, see `bench_patching`; it is put into `cases`, unless these hold it.

    Raises:
        InterpError: the case or a peer is unknown, or the process of a peer failed.
    """
    if name not in CASES:
        raise unknown("benchmark case", name, CASES)
    log(f"({name}) {CASES[name]}")
    model, task, by = setting(name, device)
    options: dict[str, Any] = {"site": "z", "by": by, "direction": "denoise"}
    cases = {} if cases is None else cases
    if name not in cases:
        cases[name] = _ours(model, task, options, log) | {"what": CASES[name]}
        keep()
    result = cases[name]
    if absent := [peer for peer in peers if peer not in result["peers"]]:
        scores = activation_patching(model, task, cache=False, budget_gb=BUDGET_GB, **options)
        with tempfile.TemporaryDirectory() as folder:
            for peer in absent:
                found = _beside(peer, model, task, scores, by, Path(folder))
                found["ratio"] = found["seconds"] / result["ours"]["seconds"]
                result["peers"][peer] = found
                log(f"    {peer}: {_said(found)}")
                keep()
    return result


def _ours(
    model: LanguageModel, task: Task, options: dict[str, Any], log: Callable[[str], None]
) -> dict[str, Any]:
    """Time and memory of our sweep, and the floor."""
    sweep = make_sweep(model, task, PatchSpec(**options))
    assert model.decoder is not None
    rate = matmul_rate(model.dtype, model.device, seconds=1.0)
    activation_patching(model, task, layers=[model.n_layers - 1], cache=False)  # warm up
    _, ours = repeat(
        lambda: activation_patching(model, task, cache=False, budget_gb=BUDGET_GB, **options)
    )
    if model.device.type != "cpu":
        ours["seconds"] = ours["wall"]  # the process waits for the device
    rate = (rate + matmul_rate(model.dtype, model.device, seconds=1.0)) / 2
    floor = floor_flops(model.decoder, sweep.cells, sweep.lengths, "z") / rate
    log(
        f"    ours {ours['seconds']:.2f} s, {ours['seconds'] / floor:.2f} times the floor, "
        f"{ours['peak_mb']:.0f} MB"
    )
    return {
        "cells": sweep.n_cells,
        "prompts": len(task),
        "ours": ours,
        "floor": floor,
        "floor_ratio": ours["seconds"] / floor,
        "matmul_gflops": rate / 1e9,
        "budget_mb": BUDGET_GB * 1e3,
        "peers": {},
    }


def _said(found: dict[str, Any]) -> str:
    return (
        f"{found['seconds']:.2f} s, {found['ratio']:.1f} times ours; {found['peak_mb']:.0f} MB; "
        f"values differ by {found['max_abs_diff']:.1g} at most"
    )


def _beside(
    peer: str, model: LanguageModel, task: Task, scores: Scores, by: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    """Run a peer in a process on the same cells and weights; its time, memory and difference."""
    if peer not in PEERS:
        raise unknown("peer", peer, PEERS)
    if not (folder / "model").exists():
        encoded = task.encode(model)
        assert encoded.corrupted is not None
        unwrapped(model).save_pretrained(folder / "model")
        tensors = {
            "clean": torch.tensor(encoded.clean),
            "corrupted": torch.tensor(encoded.corrupted),
            "targets": torch.cat([encoded.targets.answers[:, :1], encoded.targets.wrong[:, :1]], 1),
        }
        save_file(tensors, folder / "data.safetensors")
        (folder / "request.json").write_text(json.dumps({"by_position": "position" in by}))
    run_process(python_of(PEERS[peer].package), "benchmarks.sweep_peers", peer, folder)
    values = load_file(folder / "values.safetensors")["values"]
    found = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    mine = scores.effects.mean(0) + scores.corrupted.mean()
    return {**found, "max_abs_diff": float(np.abs(values.numpy() - mine).max())}


def setting(name: str, device: torch.device) -> tuple[LanguageModel, Task, tuple[str, ...]]:
    """Model, pairs and cells of a case."""
    if name == "c":
        model = load_model(device=str(device))
        task = load_task("ioi", model, n=16, templates=1)
        return model, task, ("layer", "head")
    hf_model = _random_model(name).to(device)
    model = wrap(hf_model, name=f"random-{name}", check=False)
    size, first = hf_model.config.vocab_size, 4 if name == "a" else 0
    rng = np.random.default_rng(0)
    clean = rng.integers(size, size=15)
    corrupted = np.concatenate([clean[:first], (clean[first:] + 1 + size // 3) % size])
    pair = PromptPair(
        clean=tuple(clean.tolist()), corrupted=tuple(corrupted.tolist()), answers=(5,), wrong=(9,)
    )
    return model, Task(name=f"random-{name}", pairs=(pair,)), ("layer", "head", "position")


def _random_model(name: str) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(0)
    config: Any = GPT2Config()
    if name == "b":
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=1024,
            bos_token_id=1,
            eos_token_id=2,
        )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")
