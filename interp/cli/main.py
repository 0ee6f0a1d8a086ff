"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from interp.cli import terminal
from interp.cli.circuits.app import circuit_app
from interp.cli.patching import patch, path
from interp.cli.studies import study_app
from interp.cli.terminal import (
    DEFAULT_MODEL,
    Count,
    Dtype,
    JsonFile,
    ModelName,
    Option,
    TaskSeed,
)
from interp.cli.workbench import workbench
from interp.core.errors import InterpError


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
        from interp.models.loading import known_families
        from interp.models.registry import known_models

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
    from interp.tasks.registry import TASKS

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


app.command(epilog="Example: interp patch --task ioi --n 16 --site z --by layer,head")(patch)
app.command(epilog="Example: interp path --task ioi --receivers L20H3.q,L21H0.q --n 8")(path)
app.command("app", epilog="Example: interp app --models my-models --port 8600")(workbench)
app.add_typer(circuit_app, name="circuit")
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
