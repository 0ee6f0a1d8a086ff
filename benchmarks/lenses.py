"""Fitting a Jacobian lens on one text, compared with TransformerLens' own fit at equal values."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from interp.core.corpus import shipped_passages
from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.engine.jacobians import mean_jacobians
from interp.engine.memory import keep_freed_memory
from interp.models.loading import load_model

SKIP = 16
"""First tokens that are not averaged, in both."""


def bench_lens(
    name: str = "smollm2-135m-instruct",
    *,
    layer: int = 24,
    tokens: int = 62,
    peers: bool = True,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """CPU-seconds of the mean Jacobian of one text from a layer on, on one thread.

    The floor is the arithmetic of one backward pass through activations for each dimension, over
    every token, at the speed of a product of the size of the MLP's.

    Raises:
        InterpError: TransformerLens gives other values.
    """
    keep_freed_memory()
    threads, model = torch.get_num_threads(), load_model(name)
    torch.set_num_threads(1)
    try:
        text = " ".join(shipped_passages()[:4])
        row = model.tokenize(text).tokens[:tokens]
        layers = list(range(layer, model.n_layers - 1))
        runner = Runner(model.require_decoder("a benchmark"))
        start = time.process_time()
        ours = mean_jacobians(runner, row, layers, skip=SKIP)
        found: dict[str, Any] = {"tokens": len(row), "layers": len(layers)}
        found["ours"] = time.process_time() - start
        flops = sum(runner.decoder.flops.values()) * len(layers) * len(row) * model.d_model
        found["floor"] = flops / _speed(model.d_model, runner.decoder.d_mlp, len(row))
        log(f"ours {found['ours']:.1f} CPU-seconds, floor {found['floor']:.1f}")
        if peers:
            start = time.process_time()
            theirs = _theirs(model, row, layers)
            found["transformer_lens"] = time.process_time() - start
            apart = max(float((ours[i] - theirs[one]).abs().max()) for i, one in enumerate(layers))
            found["largest_difference"] = apart
            if apart > 1e-3 * float(ours.abs().max()):
                raise InterpError("the benchmark of lenses", f"differ by {apart:g}", "report it")
            ratio = found["transformer_lens"] / found["ours"]
            log(f"TransformerLens {found['transformer_lens']:.1f}, {ratio:.2f} times ours")
        return found
    finally:
        torch.set_num_threads(threads)


def _theirs(model: Any, row: tuple[int, ...], layers: list[int]) -> dict[int, torch.Tensor]:
    from transformer_lens.tools.analysis import JacobianLens

    bridge = model.bridge
    bridge.to_tokens = lambda text: torch.tensor([row])
    found = JacobianLens.fit(
        bridge,
        [""],
        corpus="one text",
        source_layers=layers,
        skip_first_positions=SKIP,
        show_progress=False,
    )
    return found.jacobians


def _speed(d: int, wide: int, tokens: int) -> float:
    """Operations a second of a product of the MLP's size."""
    a, b = torch.randn(16 * tokens, d), torch.randn(d, wide)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(10):
            torch.mm(a, b)
        best = min(best, time.process_time() - start)
    return 10 * 2 * a.numel() * wide / best
