"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp import terminal
from interp.cli_bench import bench_app
from interp.cli_circuits import circuit_app
from interp.cli_studies import study_app
from interp.errors import InterpError
from interp.terminal import (
    DEFAULT_MODEL,
    Budget,
    Count,
    Dtype,
    JsonFile,
    Metric,
    ModelName,
    Option,
    TaskName,
    TaskSeed,
    Top,
)


class Commands(TyperGroup):
    """All commands; one that is interrupted says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            from rich.console import Console

            Console(stderr=True).print(
                "stopped; what is finished is kept: the same command goes on from there"
            )
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Commands,
    help="Which heads and neurons carry a behaviour of a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command(epilog="Example: interp models --check smollm2-135m-instruct")
def models(
    check: Annotated[
        str | None, typer.Option(help="Load this model and print what it offers.")
    ] = None,
    dtype: Dtype = "float32",
    json_file: JsonFile = None,
) -> None:
    """List the models that need no hub and the families that were tried, or check one model."""
    if check is None:
        from interp.loading import known_families, known_models

        entries, families = known_models(), known_families()
        terminal.table(["name", "kind", ""], [[e.name, e.kind, e.description] for e in entries])
        terminal.say("Any Hugging Face id, directory (an adapter's too) or GGUF file works too.")
        terminal.say("Tried families (hooks: slower, same numbers, nothing that reads weights):")
        rows = []
        for row in families:
            absent = " ".join(filter(None, row["missing"]))
            lines = [*filter(None, (absent, row["missing"].get("")))] or [""]
            rows += [[row["name"], row["runs"], lines[0]], *(["", "", x] for x in lines[1:])]
        terminal.table(["family", "runs", "absent sites"], rows)
        terminal.say("Why a site is absent: --json FILE for all families, --check MODEL for one.")
        terminal.write(json_file, [asdict(entry) for entry in entries] + families)
        return
    model = terminal.load(check, dtype)
    facts = {
        "name": model.name,
        "family": model.family,
        "layers": model.n_layers,
        "heads": model.n_heads,
        "key/value heads": model.n_kv_heads,
        "d_model": model.d_model,
        "neurons": model.d_mlp,
        "gated MLP": model.gated,
        "parallel blocks": model.parallel,
        "post-norms": model.post_norms,
        "hash": model.hash,
        "fast engine": model.engine_reason or "yes",
        "longest prompt": model.max_positions or "any",
        "notes": "; ".join(model.notes) or "none",
    }
    terminal.table(["", model.name], [[key, str(value)] for key, value in facts.items()])
    terminal.table(["site", "offered"], [[s, why or "yes"] for s, why in model.sites.items()])
    if model.card:
        terminal.say(model.card)
    terminal.write(json_file, {**facts, "sites": model.sites})


@app.command(epilog="Example: interp tasks ioi --model smollm2-135m-instruct --n 64")
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to check on a model.")] = None,
    model: ModelName = DEFAULT_MODEL,
    n: Count = 32,
    seed: TaskSeed = None,
    option: Option = None,
    json_file: JsonFile = None,
) -> None:
    """List the tasks, or say whether a model shows one: accuracy and baselines."""
    from interp.tasks import TASKS

    if name is None:
        terminal.table(
            ["name", "metric", ""], [[k, t.metric, t.description] for k, t in TASKS.items()]
        )
        terminal.say("A toy's name is its own task; .csv and .jsonl files are read as tasks.")
        terminal.write(json_file, {k: t.description for k, t in TASKS.items()})
        return
    seed = terminal.seed_of(name, seed)
    loaded = terminal.load(model)
    task = terminal.make_task(name, loaded, n, seed, option)
    pair = task.pairs[0]
    terminal.say(f"clean      {pair.clean!r} -> {', '.join(map(str, pair.answers))}")
    terminal.say(f"corrupted  {pair.corrupted!r} -> {', '.join(map(str, pair.wrong))}")
    report = task.check(loaded)
    terminal.say(str(report))
    terminal.write(json_file, asdict(report))


@app.command(epilog="Example: interp patch --task ioi --n 16 --site z --by layer,head")
def patch(
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: Count = 16,
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
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    budget: Budget = 1.0,
    top: Top = 10,
    json_file: JsonFile = None,
) -> None:
    """Patch activations from one run of each pair into the other; rank the components."""
    from interp.patching import activation_patching
    from interp.sweeps import cost, make_request

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
    request = make_request(loaded, chosen, **options)
    guess = cost(loaded, request)
    terminal.say(f"{request.n_cells} cells, {guess.runs} patched runs, {guess.words}")
    with terminal.progress("patching") as progress:
        scores = activation_patching(loaded, chosen, budget_gb=budget, progress=progress, **options)
    terminal.print_scores(scores, top, json_file)


@app.command(epilog="Example: interp path --task ioi --receivers L20H3.q,L21H0.q --n 8")
def path(
    receivers: Annotated[str, typer.Option(help="logits, or L9H6.q,L7.mlp_out ...")] = "logits",
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: Count = 16,
    seed: TaskSeed = None,
    senders: Annotated[str, typer.Option(help="heads or mlps.")] = "heads",
    direction: Annotated[str, typer.Option(help="noise or denoise.")] = "noise",
    positions: Annotated[str, typer.Option(help="Where senders are patched.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Sender layers, e.g. 3,7-9.")] = None,
    freeze_mlps: Annotated[
        bool, typer.Option(help="Keep the MLPs in between as in the unpatched run.")
    ] = False,
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    top: Top = 10,
    json_file: JsonFile = None,
) -> None:
    """Path patching: the direct effect of every head or MLP on some receivers."""
    from interp.paths import path_patching

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
    terminal.print_scores(scores, top, json_file)


app.add_typer(circuit_app, name="circuit")
app.add_typer(bench_app, name="bench")
app.add_typer(study_app, name="study")


def main() -> None:
    """Run the command line; what the user can fix is one message, not a traceback."""
    try:
        app()
    except InterpError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(f"error: {error}", style="red"))
        sys.exit(1)


if __name__ == "__main__":
    main()
