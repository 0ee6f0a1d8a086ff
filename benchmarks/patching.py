"""Time of patching, compared with TransformerLens, and of generation with an intervention."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.memory import PeakMemory
from interp.core.errors import unknown
from interp.core.files import versions
from interp.core.prompts import PromptPair, Task
from interp.engine.cost import floor_flops, matmul_rate
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model, wrap
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


SHORT = 5.0
"""Sweeps that take fewer seconds than this in total are repeated, up to five times."""


def bench_patching(
    cases: Sequence[str] = tuple(CASES),
    *,
    log: Callable[[str], None] = lambda text: None,
    peers: bool = True,
) -> dict[str, Any]:
    """Time our patching sweep and TransformerLens' on the same cells, on one thread.

    For each case, the result has the seconds of `ours` (the median of `ours_runs`) and `theirs`,
    and their `ratio`; the largest difference of the metric, `max_abs_diff`; `floor`, the least
    number of floating-point operations over this machine's measured rate of matrix products, and
    `floor_ratio`, our time over it; and `peak_mb`, the largest growth of resident memory in our
    sweep, and `budget_mb`. Case b also has `batched`, a hand-written batched loop of torch hooks.

    Args:
        cases: names in `CASES`.
        log: receives a line per step.
        peers: also run TransformerLens and the hand-written loop (minutes).

    Raises:
        InterpError: a case is unknown.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: run_case(name, log, peers=peers) for name in cases}
    finally:
        torch.set_num_threads(threads)
    machine = {"python": sys.version.split()[0], "machine": platform.machine(), "threads": 1}
    return {"cases": found, "versions": versions(), **machine}


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
    peers: bool,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> dict[str, Any]:
    """One of `CASES`, see `bench_patching`.

    Raises:
        InterpError: the case is unknown.
    """
    if name not in CASES:
        raise unknown("benchmark case", name, CASES)
    log(f"({name}) {CASES[name]}")
    model, task, by = _setting(name, device)
    budget_gb = 0.5
    options: dict[str, Any] = {"site": "z", "by": by, "direction": "denoise"}
    sweep = make_sweep(model, task, PatchSpec(**options))
    assert model.decoder is not None
    rate = matmul_rate(model.dtype, model.device, seconds=1.0)
    times: list[float] = []
    with PeakMemory() as memory:
        activation_patching(model, task, layers=[model.n_layers - 1], cache=False)  # warm up
        while not times or (sum(times) < SHORT and len(times) < 5):
            begun = time.perf_counter()
            scores = activation_patching(model, task, cache=False, budget_gb=budget_gb, **options)
            times.append(time.perf_counter() - begun)
    ours = float(np.median(times))
    rate = (rate + matmul_rate(model.dtype, model.device, seconds=1.0)) / 2
    floor = floor_flops(model.decoder, sweep.cells, sweep.lengths, "z") / rate
    result: dict[str, Any] = {
        "what": CASES[name],
        "cells": sweep.n_cells,
        "prompts": len(task),
        "ours": ours,
        "ours_runs": times,
        "floor": floor,
        "floor_ratio": ours / floor,
        "matmul_gflops": rate / 1e9,
        "peak_mb": memory.peak / 1e6,
        "budget_mb": budget_gb * 1e3,
    }
    log(f"    ours {ours:.2f} s, {ours / floor:.2f} times the floor, {memory.peak / 1e6:.0f} MB")
    if peers:
        result |= _transformer_lens(model, task, scores, by, ours)
        log(f"    TransformerLens {result['theirs']:.1f} s: {result['ratio']:.1f} times ours")
    if peers and name == "b":
        begun = time.perf_counter()
        values = _hand_batched(task)
        result["batched"] = time.perf_counter() - begun
        result["batched_ratio"] = result["batched"] / ours
        result["batched_max_abs_diff"] = _difference(values, scores)
        log(f"    hand-batched {result['batched']:.2f} s: {result['batched_ratio']:.1f} times ours")
    return result


def _setting(name: str, device: torch.device) -> tuple[LanguageModel, Task, tuple[str, ...]]:
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


def _transformer_lens(
    model: LanguageModel, task: Task, scores: Scores, by: tuple[str, ...], ours: float
) -> dict[str, Any]:
    """TransformerLens' own sweep of the same cells with the same weights."""
    from transformer_lens import patching as peer

    encoded = task.encode(model)
    clean, corrupted = (torch.tensor(side) for side in (encoded.clean, encoded.corrupted))
    right, wrong = (t[:, :1] for t in (encoded.targets.answers, encoded.targets.wrong))

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, right) - last.gather(1, wrong)).mean()

    peer.tqdm = lambda cells, **_: cells  # its progress bar fills logs with thousands of lines
    sweep = (
        peer.get_act_patch_attn_head_out_by_pos
        if "position" in by
        else peer.get_act_patch_attn_head_out_all_pos
    )
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(clean, names_filter=lambda n: n.endswith("hook_z"))
        begun = time.perf_counter()
        values = sweep(model.bridge, corrupted, cache, metric)
        theirs = time.perf_counter() - begun
    if "position" in by:
        values = values.transpose(1, 2)  # theirs are (layer, position, head)
    return {
        "theirs": theirs,
        "ratio": theirs / ours,
        "max_abs_diff": _difference(values.numpy(), scores),
    }


def _difference(values: np.ndarray, scores: Scores) -> float:
    """The largest difference between the mean patched metrics."""
    mine = scores.effects.mean(0) + scores.corrupted.mean()
    return float(np.abs(values - mine).max())


def _hand_batched(task: Task) -> np.ndarray:
    """All heads and positions of a layer in one batch of whole forward passes with a torch hook."""
    model = _random_model("b").eval()
    pair = task.pairs[0]
    clean, corrupted = (torch.tensor([side]) for side in (pair.clean, pair.corrupted))
    layers, heads, length = len(model.model.layers), 8, clean.shape[1]
    width = model.model.layers[0].self_attn.head_dim
    at = np.indices((heads, length)).reshape(2, -1)
    rows, values = torch.arange(heads * length), np.zeros((layers, heads, length))
    with torch.no_grad():
        kept: dict[int, torch.Tensor] = {}
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda module, args, i=i: kept.__setitem__(i, args[0])
            )
            for i, layer in enumerate(model.model.layers)
        ]
        model(clean)
        for handle in handles:
            handle.remove()
        for i, layer in enumerate(model.model.layers):

            def hook(module: Any, args: tuple[torch.Tensor], i: int = i) -> tuple[torch.Tensor]:
                z = args[0].clone().unflatten(-1, (heads, width))
                new = kept[i].unflatten(-1, (heads, width))
                z[rows, at[1], at[0]] = new[0, at[1], at[0]]
                return (z.flatten(2),)

            handle = layer.self_attn.o_proj.register_forward_pre_hook(hook)
            last = model(corrupted.repeat(heads * length, 1)).logits[:, -1]
            handle.remove()
            values[i] = (last[:, 5] - last[:, 9]).view(heads, length).numpy()
    return values
