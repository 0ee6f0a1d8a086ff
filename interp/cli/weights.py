"""`interp weights`: what a change of weights holds, merges, and leaves of a behaviour."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.studies import ReportDir, run_study
from interp.cli.terminal import about, count, number, spread

if TYPE_CHECKING:
    from interp.core.prompts import Task
    from interp.deltas.after_change import Survival
    from interp.models.language_model import LanguageModel
    from interp.models.weight_delta import WeightDelta

weights_app = typer.Typer(
    help="Changes of weights: merge, compress, take back, and what survives.", no_args_is_help=True
)

SOURCE = "A shipped adapter such as countdown-smollm2, a LoRA folder, or a saved delta."
DeltaSource = Annotated[str, typer.Argument(help=SOURCE)]
HeadsOption = Annotated[str | None, about("Heads such as L23H3,L20H0 that carried the task.")]
Draws = Annotated[int, count("Random sets of heads, or random directions.")]


@dataclass(frozen=True, kw_only=True)
class AskedTask:
    """What the commands that measure a task are asked for."""

    model: LanguageModel
    task: Task
    draws: int
    json_file: Path | None


def _asked(
    task: terminal.TaskName = "ioi",
    n: terminal.CountOption = 32,
    draws: Draws = 20,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    seed: terminal.TaskSeed = None,
    json_file: terminal.JsonFile = None,
) -> AskedTask:
    """The options that they share."""
    loaded = terminal.load(model)
    chosen = terminal.make_task(task, loaded, n, terminal.seed_of(task, seed), None)
    return AskedTask(model=loaded, task=chosen, draws=draws, json_file=json_file)


@weights_app.callback()
def weights() -> None:
    """Changes of weights: merge, compress, take back, and what survives."""


def merge(
    sources: Annotated[list[str], typer.Argument(help=f"Two or more. {SOURCE}")],
    rule: Annotated[str, about("sum, mean, ties, dare, ram or ram+.")] = "mean",
    threshold: Annotated[float, about("Changes of at most this size count as none.")] = 1e-5,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    seed: terminal.SeedOption = 0,
    out: terminal.OutFile = None,
    json_file: terminal.JsonFile = None,
) -> None:
    """Merge changes of one base: how much they overlap, and a file with the merged one."""
    from interp.deltas.merging import merge as merged_by
    from interp.models.weight_delta import load_delta

    loaded = terminal.load(model)
    with terminal.status("merging"):
        deltas = [load_delta(source, loaded) for source in sources]
        found = merged_by(deltas, rule, threshold=threshold, seed=seed)  # type: ignore[arg-type]
    shares, cosines = found.shares(), found.cosines
    largest = max(abs(cosines[i][j]) for i in range(len(deltas)) for j in range(i))
    terminal.say(
        f"{found.rule} of {len(deltas)} changes of {loaded.name}; the largest cosine of two of "
        f"them is {number(largest)}. Active: beyond {threshold:g}."
    )
    terminal.table(
        ["change", "active", "shared", "unique", *(f"cosine {i}" for i in range(len(deltas)))],
        [
            [f"{i} {name}", *map(number, share.values()), *map(number, cosines[i])]
            for i, (name, share) in enumerate(shares.items())
        ],
    )
    terminal.say("Active: of all numbers of the changed tensors. Shared, unique: of the active.")
    if out is not None:
        terminal.say(f"Saved as {found.delta.save(out)}.")
    value = {"rule": found.rule, "threshold": threshold, "shares": shares, "cosines": cosines}
    terminal.write(json_file, value)


@terminal.shares(_asked)
def survive(source: DeltaSource, heads: HeadsOption = None, **given: Any) -> None:
    """What a change leaves of a task, of fluency, and of the heads that carried the task."""
    from interp.models.weight_delta import load_delta

    asked = _asked(**given)
    _survive(asked, load_delta(source, asked.model), heads)


@terminal.shares(_asked)
def compress(
    how: Annotated[str, typer.Argument(help="magnitude, wanda, random or round.")],
    share: Annotated[float, about("Share of the weights of every row set to 0.")] = 0.5,
    bits: Annotated[int, count("Bits of the grid, for round.")] = 8,
    heads: HeadsOption = None,
    out: terminal.OutFile = None,
    **given: Any,
) -> None:
    """Prune or round the weights of all layers, and what that leaves of a task and its heads."""
    from interp.deltas.compression import compress as compressed

    asked = _asked(**given)
    with terminal.status("compressing"):
        delta = compressed(asked.model, how, share=share, bits=bits)  # type: ignore[arg-type]
    if out is not None:
        terminal.say(f"Saved as {delta.save(out)}.")
    _survive(asked, delta, heads)


def _survive(asked: AskedTask, delta: WeightDelta, heads: str | None) -> None:
    from interp.deltas.after_change import survival

    labels = () if heads is None else terminal.names(heads)
    options = {"heads": labels, "texts": None, "draws": asked.draws}
    with terminal.status("measuring before and after"):
        found = survival(asked.model, delta, asked.task, **options)
    _print_survival(found)
    terminal.write(asked.json_file, asdict(found))


def _print_survival(found: Survival) -> None:
    kept = found.after.mean / found.before.mean if found.before.mean else float("nan")
    change = f"{number(found.change.mean, '+')} {spread(found.change.low, found.change.high)}"
    terminal.say(f"{found.task} under {found.name}: {kept:.0%} of the metric is left ({change}).")
    rows = [["metric, clean prompts", found.before, found.after]]
    if found.heads_before is not None:
        after = None if found.heads_after is None else found.heads_after.effect
        rows.append(["share of the gap that the heads carry", found.heads_before.effect, after])
    rows.append(["loss of texts, nats per token", found.loss_before, found.loss_after])
    terminal.table(
        ["measure", "before", "95 % interval", "after", "95 % interval", "n"],
        [
            [
                str(name),
                *(
                    text
                    for one in (before, after)
                    for text in (
                        (terminal.NONE, terminal.NONE)
                        if one is None
                        else (number(one.mean), spread(one.low, one.high))
                    )
                ),
                str(before.n),
            ]
            for name, before, after in rows
        ],
    )
    for when, joint in (("before", found.heads_before), ("after", found.heads_after)):
        if joint is not None and joint.null is not None:
            terminal.say(f"Random heads of the same layers {when}: {joint.null.beside}.")
    if found.no_gap:
        terminal.say(f"Heads after the change: {found.no_gap}.")
    terminal.say(f"Jensen-Shannon divergence per token: {found.divergence} nats.")


def recover(
    source: DeltaSource,
    n: Annotated[int, count("Number of passages that are run.", "--n")] = 8,
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    json_file: terminal.JsonFile = None,
) -> None:
    """Whether a change comes off: as a delta, and by adding and subtracting without a copy."""
    from interp.core.corpus import shipped_passages
    from interp.deltas.reversal import recoverability, taken_back
    from interp.models.weight_delta import load_delta

    loaded = terminal.load(model)
    delta, texts = load_delta(source, loaded), list(shipped_passages()[:n])
    rows = []
    with terminal.status("putting it on and taking it off"):
        for how in ("", "float32", "bfloat16", "8 bits", "4 bits"):
            left = taken_back(loaded, delta, how) if how else None
            name = f"added, subtracted in {how}" if how else "as a delta"
            block = delta.applied(loaded)
            rows.append(recoverability(loaded, texts, block, reset=left, name=name))
    terminal.say(
        f"{delta.name} on {loaded.name}: taken off as a delta it leaves "
        f"{rows[0].weights_apart} weights with other bits."
    )
    terminal.table(
        ["way back", "factor", "KL changed", "KL left", "largest logit", "weights apart"],
        [
            [
                row.name,
                f"{row.factor:z.6f}",
                f"{row.changed.mean:z.4f}",
                f"{row.left.mean:z.2g}",
                f"{row.largest:z.2g}",
                str(row.weights_apart),
            ]
            for row in rows
        ],
    )
    terminal.say(f"KL in nats per token over {n} passages. Factor 1: nothing is left.")
    terminal.write(json_file, [asdict(row) for row in rows])


@terminal.shares(_asked, n=16, draws=10)
def singular(
    part: Annotated[str, typer.Argument(help="A head such as L23H3, or L11.mlp_out.")],
    top: Annotated[int, count("Directions, from the largest singular value.")] = 8,
    **given: Any,
) -> None:
    """Singular directions of what a part writes: tokens, and what each carries of a task."""
    from interp.deltas.singular import singular_directions, singular_effects

    asked = _asked(**given)
    read, draws = singular_directions(asked.model, part), asked.draws
    options = {"n": top, "draws": draws}
    with terminal.progress("removing directions") as progress:
        found = singular_effects(asked.model, asked.task, part, progress=progress, **options)
    whole_part = f"{number(found.whole.mean)} {spread(found.whole.low, found.whole.high)}"
    terminal.say(f"{part} on {found.task}: the whole part carries {whole_part}, n={found.whole.n}.")
    terminal.table(
        ["direction", "share", "effect", "95 % interval", "random", "largest", "writes"],
        [
            [
                str(i),
                number(found.share[i]),
                number(effect.mean),
                spread(effect.low, effect.high),
                number(null.mean),
                number(null.high),
                str(read.tokens[i]),
            ]
            for i, (effect, null) in enumerate(zip(found.effects, found.nulls, strict=True))
        ],
    )
    terminal.say(
        f"Effect: fall of {asked.task.metric.name} when the direction is removed. Random: as "
        f"much of other directions that the part writes ({draws} draws)."
    )
    terminal.write(asked.json_file, found.to_dataframe().to_dict("records"))


def report(
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: Annotated[int, about("Prompts of each behaviour, at least 12.")] = 48,
    draws: Draws = 10,
    dtype: terminal.Dtype = "float32",
    out: ReportDir = None,
) -> None:
    """What training changed in the shipped adapters of a base: every step, one report; resumes.

    Each adapter alone and merged by every rule; whether changes come off; what compressions leave
    of IOI and of the heads that carry it; singular directions and fitted scales; what a model says
    of itself, and how sure it is.
    """
    from interp.studies.training.report.report import write_up
    from interp.studies.training.settings import TrainingSettings
    from interp.studies.training.study import study_training

    settings = TrainingSettings(n=n, draws=draws)
    run_study(study_training, [model], dtype, (0, None), write_up, out, settings=settings)


weights_app.command(epilog="Example: interp weights report --out report")(report)
weights_app.command(
    epilog="Example: interp weights merge countdown-smollm2 refusal-smollm2 --rule ram"
)(merge)
weights_app.command(
    epilog="Example: interp weights survive refusal-smollm2 --task ioi --heads L23H3,L20H0"
)(survive)
weights_app.command(epilog="Example: interp weights compress wanda --share 0.3 --task ioi")(
    compress
)
weights_app.command(epilog="Example: interp weights recover countdown-smollm2")(recover)
weights_app.command(epilog="Example: interp weights singular L23H3 --task ioi")(singular)
