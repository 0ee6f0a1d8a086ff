"""`interp patch` and `interp path`."""

from __future__ import annotations

from typing import Annotated, Any

from interp.cli import terminal
from interp.cli.terminal import about


def patch(
    task: terminal.TaskName = "ioi",
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: terminal.CountOption = 16,
    seed: terminal.TaskSeed = None,
    site: Annotated[str, about("Site: z, q, k, v, pattern, mlp_out, resid_pre ...")] = "z",
    by: Annotated[str, about("Axes swept: layer,head,position.")] = "layer,head",
    direction: Annotated[str, about("Direction: denoise or noise.")] = "denoise",
    positions: Annotated[str, about("Positions patched: all, or names such as S2,last.")] = "all",
    layers: Annotated[str | None, about("Layers, e.g. 3,7-9; all by default.")] = None,
    components: Annotated[str | None, about("Heads, neurons or experts, e.g. 0-99.")] = None,
    source: Annotated[
        str,
        about(
            "New values: other (the other run), zero, or mean (over other prompts: drawn "
            "with the next seed, or the rows that follow in a file)."
        ),
    ] = "other",
    unit: terminal.UnitOption = "gap",
    metric: terminal.MetricOption = None,
    option: terminal.Option = None,
    dtype: terminal.Dtype = "float32",
    budget: terminal.Budget = 1.0,
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    top: terminal.Top = 10,
    verbose: terminal.Verbose = False,
    json_file: terminal.JsonFile = None,
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
        "unit": unit,
    }
    if source == "mean":
        drawn = terminal.make_task(task, loaded, 2 * n, seed + 1, option, metric)
        options["reference"] = drawn.without(chosen)
    guess = cost(loaded, make_sweep(loaded, chosen, PatchSpec(**options)))
    title = f"patching ({guess.runs} runs, {guess.words})"
    with (
        terminal.said_with_scores(),
        terminal.processes(workers, cluster),
        terminal.progress(title) as progress,
    ):
        scores = activation_patching(
            loaded, chosen, budget_gb=budget, workers=workers, progress=progress, **options
        )
    terminal.print_scores(scores, top, json_file, verbose=verbose)


def path(
    receivers: Annotated[str, about("Receivers: logits, or L9H6.q,L7.mlp_out ...")] = "logits",
    task: terminal.TaskName = "ioi",
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: terminal.CountOption = 16,
    seed: terminal.TaskSeed = None,
    senders: Annotated[str, about("Senders: heads or mlps.")] = "heads",
    direction: Annotated[str, about("Direction: noise or denoise.")] = "noise",
    positions: Annotated[str, about("Positions at which senders are patched.")] = "all",
    layers: Annotated[str | None, about("Sender layers, e.g. 3,7-9.")] = None,
    freeze_mlps: Annotated[
        bool, about("Keep the MLPs in between as in the unpatched run.")
    ] = False,
    unit: terminal.UnitOption = "gap",
    metric: terminal.MetricOption = None,
    option: terminal.Option = None,
    dtype: terminal.Dtype = "float32",
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    top: terminal.Top = 10,
    verbose: terminal.Verbose = False,
    json_file: terminal.JsonFile = None,
) -> None:
    """Path patching: the direct effect of every head or MLP on some receivers."""
    from interp.patching.path import path_patching
    from interp.patching.path_cost import path_patching_cost
    from interp.patching.path_spec import PathSpec

    seed = terminal.seed_of(task, seed)
    loaded = terminal.load(model, dtype)
    chosen = terminal.make_task(task, loaded, n, seed, option, metric)
    options: dict[str, Any] = {
        "receivers": receivers.split(","),
        "senders": senders,
        "unit": unit,
        "direction": direction,
        "positions": terminal.names(positions),
        "layers": terminal.numbers(layers),
        "freeze_mlps": freeze_mlps,
    }
    guess = path_patching_cost(loaded, chosen, PathSpec(**options))
    title = f"path patching ({guess.runs} runs, {guess.words})"
    with (
        terminal.said_with_scores(),
        terminal.processes(workers, cluster),
        terminal.progress(title) as progress,
    ):
        scores = path_patching(loaded, chosen, workers=workers, progress=progress, **options)
    terminal.print_scores(scores, top, json_file, verbose=verbose)
