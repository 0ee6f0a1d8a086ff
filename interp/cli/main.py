"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from interp.cli import terminal
from interp.cli.cache import cache_app
from interp.cli.circuits.app import circuit_app
from interp.cli.costs import cost, fit
from interp.cli.heads import heads_app, strongest
from interp.cli.lenses import fit_lens, lens
from interp.cli.patching import patch, path
from interp.cli.probes import probes
from interp.cli.prompts import corrupt, look, scan
from interp.cli.runs import runs_app
from interp.cli.slices import slices
from interp.cli.studies import study_app
from interp.cli.terminal import about
from interp.cli.vectors import vectors
from interp.cli.verdicts import calibrate
from interp.cli.weights import weights_app
from interp.cli.workbench import workbench
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.core.prompts import PromptPair, TaskReport


class Commands(TyperGroup):
    """All commands; one that is interrupted says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            from rich.console import Console

            Console(stderr=True).print(
                "stopped; run the command again: parts that it has stored are not computed again"
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
    check: Annotated[str | None, about("Load this model and print what it offers.")] = None,
    dtype: terminal.Dtype = "float32",
    verbose: terminal.Verbose = False,
    json_file: terminal.JsonFile = None,
) -> None:
    """List the models that need no download and the families that were tried, or check one."""
    if check is None:
        from interp.models.loading import known_families
        from interp.models.registry import known_models

        entries, families = known_models(), known_families()
        terminal.say(
            f"{len(entries)} models need no Hugging Face access. A Hugging Face id, a directory "
            "(an adapter's too) or a GGUF file works too."
        )
        known = [[e.name, e.kind, e.description] for e in entries]
        terminal.table(["name", "kind", "description"], known)
        fast = sum(row["runs"] == "engine" for row in families)
        terminal.say(f"\n{fast} of {len(families)} tried families run on the fast engine.")
        terminal.say("Hooks: the same numbers, more slowly, without the methods that read weights.")
        rows = []
        for row in families:
            absent = " ".join(filter(None, row["missing"]))
            said = wrap(row["missing"].get("", ""), 80)
            lines = [*filter(None, [absent]), *said] or [""]
            rows += [[row["name"], row["runs"], lines[0]], *(["", "", x] for x in lines[1:])]
        terminal.table(["family", "runs", "absent sites"], rows)
        terminal.say("To see why a site is absent: --check MODEL, or --json FILE for all families.")
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
    how = f"with hooks ({model.engine_reason})" if model.engine_reason else "on the fast engine"
    offered = f"{sum(not why for why in model.sites.values())} of {len(model.sites)} sites"
    terminal.say(f"{model.name} runs {how} and offers {offered}.")
    yes = {True: "yes", False: "no"}
    shown = [[k, yes[v] if isinstance(v, bool) else str(v)] for k, v in facts.items()]
    terminal.table(["fact", "value"], shown)
    terminal.table(["site", "offered"], [[s, why or "yes"] for s, why in model.sites.items()])
    if verbose and model.card:
        terminal.say(model.card)
    terminal.write(json_file, {**facts, "sites": model.sites})


@app.command(epilog="Example: interp tasks ioi --model smollm2-135m-instruct --n 64")
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to check on a model.")] = None,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: terminal.CountOption = 32,
    seed: terminal.TaskSeed = None,
    option: terminal.Option = None,
    json_file: terminal.JsonFile = None,
) -> None:
    """List the tasks, or say whether a model shows one: accuracy and baselines."""
    from interp.tasks.registry import TASKS

    if name is None:
        terminal.say(
            f"{len(TASKS)} tasks ship. A toy's name is its own task, and a .csv or .jsonl file is "
            "read as a task."
        )
        rows = [[k, t.metric, t.description] for k, t in TASKS.items()]
        terminal.table(["name", "metric", "description"], rows)
        terminal.write(json_file, {k: t.description for k, t in TASKS.items()})
        return
    seed = terminal.seed_of(name, seed)
    loaded = terminal.load(model)
    task = terminal.make_task(name, loaded, n, seed, option)
    report = task.check(loaded)
    _print_report(report, task.pairs[0])
    terminal.write(json_file, asdict(report))


def _print_report(report: TaskReport, pair: PromptPair) -> None:
    """Whether the model shows the behaviour, the numbers that say so, and an example."""
    where, metric, n = f"{report.task} on {report.model}", report.metric, report.clean.n
    if report.clean.low <= 0:
        terminal.say(f"{where}: {n} prompts do not show the behaviour: clean {metric} may be 0.")
    elif report.accuracy.low < 0.5:
        terminal.say(
            f"{where}: {metric} shows the behaviour, but the model often says something else "
            f"(its most likely token is an answer on {report.accuracy.mean:.0%} of {n} prompts)."
        )
    else:
        share = f"{report.accuracy.mean:.0%} of {n} prompts"
        terminal.say(f"{where}: the model shows the behaviour, with an answer first on {share}.")
    if report.repeated:
        terminal.say(f"{report.repeated} of {n} prompts repeat earlier ones.")
    named = {
        "top-1 accuracy": report.accuracy,
        f"share with {metric} > 0": report.preferred,
        f"{metric}, clean": report.clean,
        f"{metric}, corrupted": report.corrupted,
    }
    terminal.table(
        ["measure", "mean", "95 % interval", "n"],
        [
            [name, f"{x.mean:z.3f}", terminal.spread(x.low, x.high), str(x.n)]
            for name, x in named.items()
            if x is not None
        ],
    )
    sides = (("clean", pair.clean, pair.answers), ("corrupted", pair.corrupted, pair.wrong))
    example = [
        [side, repr(text), ", ".join(map(str, said))]
        for side, text, said in sides
        if text is not None
    ]
    terminal.table(["run", "first prompt", "answers"], example)


app.command(epilog="Example: interp fit Qwen/Qwen2.5-7B --n 32 --tokens 40")(fit)
app.command(epilog='Example: interp cost reuse --model llama --gpu "H100 SXM" --price 2.5')(cost)
app.command(epilog='Example: interp look "The Eiffel Tower is in the city of"')(look)
app.command(
    epilog='Example: interp scan "The capital of France is" --foil "The capital of Italy is"'
)(scan)
app.command(epilog="Example: interp corrupt 'From 1749 to 17' --kind number")(corrupt)
app.command(epilog="Example: interp patch --task ioi --n 16 --site z --by layer,head")(patch)
app.command(epilog="Example: interp path --task ioi --receivers L20H3.q,L21H0.q --n 8")(path)
app.command(epilog="Example: interp calibrate --models 60 --prompts 12,32")(calibrate)
app.command(epilog="Example: interp strongest L16H0 --texts corpus.txt")(strongest)
app.command(epilog="Example: interp vectors smollm2-135m-instruct --tasks capital,antonym")(vectors)
app.command(epilog="Example: interp probes countdown-smollm2 --against smollm2-135m-instruct")(
    probes
)
app.command(epilog="Example: interp slices --task ioi --layer 20 --keep 0")(slices)
app.command(epilog="Example: interp lens 'The capital of France is' --words ' Paris'")(lens)
app.command("fit-lens", epilog="Example: interp fit-lens my_jacobian_lens.pt --layers 20,26")(
    fit_lens
)
app.command("app", epilog="Example: interp app --models my-models --port 8600")(workbench)
app.add_typer(circuit_app, name="circuit")
app.add_typer(heads_app, name="heads")
app.add_typer(weights_app, name="weights")
app.add_typer(study_app, name="study")
app.add_typer(runs_app, name="runs")
app.add_typer(cache_app, name="cache")


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
