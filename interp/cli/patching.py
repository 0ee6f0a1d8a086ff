"""`interp patch` and `interp path`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.terminal import (
    DEFAULT_MODEL,
    Budget,
    CountOption,
    Dtype,
    JsonFile,
    MetricOption,
    ModelName,
    Option,
    TaskName,
    TaskSeed,
    Top,
    Verbose,
)


def patch(
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: CountOption = 16,
    seed: TaskSeed = None,
    site: Annotated[str, typer.Option(help="z, q, k, v, pattern, mlp_out, resid_pre ...")] = "z",
    by: Annotated[str, typer.Option(help="Axes swept: layer,head,position.")] = "layer,head",
    direction: Annotated[str, typer.Option(help="denoise or noise.")] = "denoise",
    positions: Annotated[str, typer.Option(help="all, or names: S2,last.")] = "all",
    layers: Annotated[str | None, typer.Option(help="E.g. 3,7-9; all by default.")] = None,
    components: Annotated[str | None, typer.Option(help="Heads or neurons, e.g. 0-99.")] = None,
    source: Annotated[
        str,
        typer.Option(
            help="other (the other run), zero, or mean (over other prompts of the task: drawn "
            "with the next seed, or the rows that follow in a file)."
        ),
    ] = "other",
    metric: MetricOption = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Top = 10,
    verbose: Verbose = False,
    json_file: JsonFile = None,
) -> None:
    """Patch activations from one run of each pair into the other; rank the components."""
    from interp.patching.activation import activation_patching
    from interp.patching.spec import PatchSpec
    from interp.patching.sweep import cost, make_sweep

    seed = terminal.seed_of(task, seed)
    loaded = terminal.load(model, dtype)
    chosen = terminal.make_task(task, loaded, n, seed, option, metric)
    options: dict[str, Any] = {
        "site": site,
        "by": tuple(by.split(",")),
        "direction": direction,
        "positions": terminal.names(positions),
        "layers": terminal.numbers(layers),
        "components": terminal.numbers(components),
        "source": source,
        "reference": None,
    }
    if source == "mean":
        drawn = terminal.make_task(task, loaded, 2 * n, seed + 1, option, metric)
        options["reference"] = drawn.without(chosen)
    guess = cost(loaded, make_sweep(loaded, chosen, PatchSpec(**options)))
    with terminal.progress(f"patching ({guess.runs} runs, {guess.words})") as progress:
        scores = activation_patching(loaded, chosen, budget_gb=budget, progress=progress, **options)
    terminal.print_scores(scores, top, json_file, verbose=verbose)


def path(
    receivers: Annotated[str, typer.Option(help="logits, or L9H6.q,L7.mlp_out ...")] = "logits",
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: CountOption = 16,
    seed: TaskSeed = None,
    senders: Annotated[str, typer.Option(help="heads or mlps.")] = "heads",
    direction: Annotated[str, typer.Option(help="noise or denoise.")] = "noise",
    positions: Annotated[str, typer.Option(help="Where senders are patched.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Sender layers, e.g. 3,7-9.")] = None,
    freeze_mlps: Annotated[
        bool, typer.Option(help="Keep the MLPs in between as in the unpatched run.")
    ] = False,
    metric: MetricOption = None,
    option: Option = None,
    dtype: Dtype = "float32",
    top: Top = 10,
    verbose: Verbose = False,
    json_file: JsonFile = None,
) -> None:
    """Path patching: the direct effect of every head or MLP on some receivers."""
    from interp.patching.path import path_patching

    seed = terminal.seed_of(task, seed)
    loaded = terminal.load(model, dtype)
    chosen = terminal.make_task(task, loaded, n, seed, option, metric)
    with terminal.progress("path patching") as progress:
        scores = path_patching(
            loaded,
            chosen,
            receivers=receivers.split(","),
            senders=senders,
            direction=direction,
            positions=terminal.names(positions),
            layers=terminal.numbers(layers),
            freeze_mlps=freeze_mlps,
            progress=progress,
        )
    terminal.print_scores(scores, top, json_file, verbose=verbose)
