"""What the commands share: options, loading, tables and progress."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from inspect import Parameter, signature
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from interp.core import schema
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.core.prompts import Task
    from interp.models.language_model import LanguageModel
    from interp.results.scores import Scores

Command = TypeVar("Command", bound=Callable[..., None])
WIDE = 10_000
"""Columns of a line that no terminal breaks."""
NONE = "–"
"""Stands for a missing number."""
NUMBER = re.compile(rf"$|{NONE}|[\[<]?[+-]?\d")
"""How a cell of a column of numbers begins; such columns are aligned to the right."""

DEFAULT_MODEL = "smollm2-135m-instruct"


def typed(rule: Any) -> Callable[[Any], Any]:
    """The reader of an option whose values follow a rule of `interp.core.schema`."""

    def read(given: Any) -> Any:
        try:
            return schema.checked(rule, given, "", typed=isinstance(given, str))
        except InterpError as error:
            raise typer.BadParameter(f"{error.found}; {error.do}") from error

    return read


def about(words: str, *flags: str, **more: Any) -> Any:
    """An option and its help; `flags` are its names, if they are not the argument's."""
    return typer.Option(*flags, help=words, **more)


def shares(options: Callable[..., Any], **usual: Any) -> Callable[[Command], Command]:
    """Give a command the options of a function, which the command takes as `**given`.

    They stand after its own; `usual` are other defaults.
    """

    def add(command: Command) -> Command:
        mine, theirs = signature(command, eval_str=True), signature(options, eval_str=True)
        own = [one for one in mine.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        more = [
            one.replace(default=usual.get(one.name, one.default), kind=Parameter.KEYWORD_ONLY)
            for one in theirs.parameters.values()
        ]
        command.__signature__ = mine.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in [*own, *more]}
        return command

    return add


COUNT, SIZE = typed(schema.Count), typed(schema.Whole)
POSITIVE, NOT_NEGATIVE = typed(schema.Positive), typed(schema.NotNegative)
count = partial(about, parser=COUNT)
"""An option of whole numbers from 1."""
whole = partial(about, parser=SIZE)
"""An option of whole numbers from 0."""
not_negative = partial(about, parser=NOT_NEGATIVE)
"""An option of numbers from 0."""

TASK_HELP = (
    "A task's name, or a .csv or .jsonl file; hf://owner/name@commit/file for one of a data set. "
    "Columns: clean, corrupted, answers, wrong (texts; in "
    "CSV several answers with | between them); positions.NAME (a part of the clean prompt) and "
    "indices.NAME (a token's number), in JSONL objects positions and indices; for token ids "
    "clean_ids, corrupted_ids, answers_ids, wrong_ids."
)
ModelName = Annotated[str, typer.Option("--model", help="A model's name; see `interp models`.")]
TaskName = Annotated[str, typer.Option("--task", help=TASK_HELP)]
CountOption = Annotated[int, count("Number of prompt pairs, at most.", "--n")]
SeedOption = Annotated[int, whole("Seed of the random choices.")]
TaskSeed = Annotated[
    int | None, whole("Seed of the prompts (default 0). Files and toys have none.", "--seed")
]


def tried(path: Path | None, *, folder: bool = False) -> Path | None:
    """A place for a file, or a folder of files, tried before the work begins.

    The folder it goes into must exist: none is made for a path that may be mistyped.

    Raises:
        InterpError: there is no such folder, or it cannot be written; nothing is left there.
    """
    from interp.core.files import require_writable

    if path is None:
        return None
    above = Path(os.path.realpath(path)).parent
    if not path.exists() and not above.exists():
        raise InterpError(f"writing {path}", f"no folder {above}", "make it first")
    require_writable(path, folder=folder)
    return path


def tried_record(path: Path | None) -> Path | None:
    """A place for what `Record.save` writes, tried before the work begins; see `tried`."""
    from interp.core.records import place_of

    tried(None if path is None else place_of(path))
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        callback=lambda path: tried(path),
        help="Also write the result to this file. Its folder must exist.",
    ),
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        callback=tried_record,
        help="Save what is found to this file. Its folder must exist.",
    ),
]
Dtype = Annotated[str, about("Number format: float32, float64, bfloat16 or float16.")]
Budget = Annotated[
    float, typer.Option("--budget", parser=POSITIVE, help="Memory for runs in flight, in GB.")
]
Workers = Annotated[
    int,
    whole("Processes that share the work; each holds the models and uses one core. 0: this one."),
]
Cluster = Annotated[
    str | None,
    about(
        "Address of a Ray cluster whose processes share the work: auto, ray://host:10001, local."
    ),
]
Option = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the task, e.g. corruption=abc.")
]
MetricOption = Annotated[str | None, about("Metric: logit_diff, prob_diff, log_odds or kl.")]
UnitOption = Annotated[
    str, about("Unit: gap (fractions of the clean-corrupted gap) or metric (the metric's own).")
]
Top = Annotated[int, count("How many components to print.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print how it was measured, and details.")
]
LEVEL = 0.05
"""A smaller p is called an effect."""
MOST = 1_000_000
"""More layers, heads or neurons than any model has."""


def load(name: str, dtype: str = "float32") -> LanguageModel:
    """A model by name; a spinner is shown while it loads."""
    from interp.models.loading import load_model

    with status(f"loading {name}"):
        return load_model(name, dtype=dtype)


def seed_of(name: str, seed: int | None) -> int:
    """The seed that a task's prompts are drawn by, 0 unless one is given.

    Raises:
        InterpError: one is given for a file or a toy, whose prompts are not drawn.
    """
    from interp.tasks.registry import TASKS

    if seed is not None and name not in TASKS:
        raise InterpError(f"--seed {seed} for {name}", "its prompts are fixed", "leave --seed out")
    return seed or 0


def make_task(
    name: str,
    model: LanguageModel,
    n: int,
    seed: int,
    options: list[str] | None,
    metric: str | None = None,
) -> Task:
    """A shipped task, or one from a file, as the options ask."""
    from interp.core.metrics import metric_named
    from interp.core.prompts import Task
    from interp.tasks.registry import load_task

    extra = task_options(options)
    if name.endswith((".jsonl", ".csv")) and not name.startswith("hf://"):
        if extra:
            raise InterpError(
                f"--option {min(extra)} for {name}", "a file has none", "leave it out"
            )
        task = Task.from_csv(name) if name.endswith(".csv") else Task.from_jsonl(name)
        task = task.first(n) if n < len(task) else task
    else:
        task = load_task(name, model, n=n, seed=seed, **extra)
    return task if metric is None else task.with_metric(metric_named(metric))


def task_options(options: Sequence[str] | None) -> dict[str, int | str]:
    """Options of a task as typed: name=value, whole numbers as such.

    Raises:
        InterpError: no name or no value, a name twice, or one that has an option of its own.
    """
    found: dict[str, int | str] = {}
    for option in options or []:
        name, equal, value = option.partition("=")
        if not name or not equal or not value or name in found:
            wrong = f"{name!r} twice" if name in found else "no name=value"
            raise InterpError(f"--option {option!r}", wrong, "write each once, as corruption=abc")
        if name in ("n", "seed", "model", "name"):
            raise InterpError(f"--option {option!r}", f"--{name} says that", f"write --{name}")
        found[name] = schema.whole_number(value) if schema.is_whole(value) else value
    return found


def halves(task: Task, half: str, seed: int) -> tuple[Task, Task | None]:
    """The half of the pairs asked for (first, second or all), and the other one.

    Raises:
        InterpError: another half.
    """
    if half == "all":
        return task, None
    if half not in ("first", "second"):
        raise InterpError(f"half {half!r}", "unknown", "write first, second or all")
    first, second = task.split(0.5, seed=seed)
    if len(first) != round(len(task) / 2):
        say(
            f"The halves have {len(first)} and {len(second)} of {len(task)} pairs, and this is the "
            f"{half}: pairs that share a prompt stay in one half."
        )
    return (first, second) if half == "first" else (second, first)


def reference_of(ablation: str, chosen: Task, other: Task | None) -> Task | None:
    """What means are taken over: the other half, but for pairs that share a prompt with this one.

    Raises:
        InterpError: there is no other half, or no such pair in it.
    """
    if ablation != "mean":
        return None
    if other is None:
        raise InterpError("mean ablation on all pairs", "no pairs are left", "give --half")
    return other.without(chosen)


def names(text: str) -> str | tuple[str, ...]:
    """Names of positions, or all of them."""
    return text if text == "all" else tuple(text.split(","))


def numbers(text: str | None) -> list[int] | None:
    """Numbers and ranges, such as 3,7-9.

    Raises:
        InterpError: no range, one that runs backwards, or numbers no model has.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not schema.is_whole(first) or (dash and not schema.is_whole(last)):
            raise InterpError(f"numbers {text!r}", f"{part!r} is no range", "write 3,7-9")
        low, high = int(first), int(last or first)
        if high < low:
            raise InterpError(f"numbers {text!r}", f"{part!r} runs backwards", "write 7-9")
        if high >= MOST or len(found) + high - low >= MOST:
            raise InterpError(f"numbers {text!r}", f"{part!r} is too many", f"stay below {MOST}")
        found += range(low, high + 1)
    return found


def text_of(name: str, known: Collection[str]) -> str:
    """What a text file of that name holds; a known name, or one that is no file, as it is.

    Raises:
        InterpError: a file that cannot be read as text.
    """
    if name in known or "\n" in name or not os.path.isfile(name):  # noqa: PTH113, names may be long
        return name
    return schema.read_text(Path(name), f"the text file {name}")


@contextmanager
def said_with_scores() -> Iterator[None]:
    """Inside, no warning of a negative gap: `print_scores` says it."""
    from interp.runs.pairs import NegativeGap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NegativeGap)
        yield


def print_scores(scores: Scores, top: int, json_file: Path | None, *, verbose: bool) -> None:
    """The strongest component and the test of the first five, the ranking, and the JSON file."""
    from interp.runs.pairs import negative_gap

    ranked = scores.top(top)
    low, high = scores.interval()
    cells = [scores.index(one.label.split(" @ ")[0], one.position) for one in ranked]
    try:
        null, p, why = scores.null(min(top, 5)), scores.p_values(), ""
    except InterpError as error:
        null, p, why = None, None, error.found
    unit = "of the gap" if scores.unit == "gap" else scores.unit_words
    best, span = ranked[0], spread(low[cells[0]], high[cells[0]], "+")
    say(
        f"{best.label} has the largest of {best.of} effects on {scores.metric}: "
        f"{number(best.value, '+')} {unit} {span}, n={scores.n}."
    )
    if (words := negative_gap(scores.clean, scores.corrupted)) is not None:
        say(f"Warning: {words}.")
    if null is None:
        say(f"The ranking is not tested: {why}.")
    else:
        found = f"(p = {null.flips.p:z.4f}{null.warning})"
        say(
            f"At least one of the top {null.k} has an effect {found}."
            if null.flips.p < LEVEL
            else f"The top {null.k} cannot be distinguished from noise {found}."
        )
    table(
        ["rank", "component", f"effect ({unit})", "95 % interval", "stderr", "p of all"],
        [
            [
                f"{one.rank} of {one.of}",
                one.label,
                number(one.value, "+"),
                spread(low[cell], high[cell], "+"),
                f"{one.stderr:z.3f}",
                NONE if p is None else f"{p[cell]:z.4f}",
            ]
            for one, cell in zip(ranked, cells, strict=True)
        ],
    )
    if null is not None:
        random = "" if isnan(null.mean) else f"; random ones of the same layers {number(null.mean)}"
        say(
            f"Chosen on one half of the prompts{null.of}, the top {null.k} have a mean effect of "
            f"{number(null.unseen.mean)} {spread(null.unseen.low, null.unseen.high)} on the other"
            f"{random}. p of all is that of one component, corrected for all {best.of}."
        )
    if verbose:
        say(repr(scores))
    if verbose and null is not None:
        say(f"ranked by effect, the most positive first; {null}")
    top_rows = [
        {
            "component": one.label,
            "value": one.value,
            "stderr": one.stderr,
            "rank": one.rank,
            "p": None if p is None else float(p[cell]),
        }
        for one, cell in zip(ranked, cells, strict=True)
    ]
    control = None if null is None else asdict(null)
    write(json_file, {"top": top_rows, "null": control, **scores.to_dict()})


def number(value: float, sign: str = "") -> str:
    """Three decimals, and no minus before a zero; `sign` is "+" where a plus is written too."""
    return f"{value:{sign}z.3f}"


def spread(low: float, high: float, sign: str = "") -> str:
    """An interval; `sign` is "+" where a plus is written too."""
    return f"[{number(low, sign)}, {number(high, sign)}]"


def say(text: str) -> None:
    """A line of output, as it is."""
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def table(head: list[str], rows: list[list[str]]) -> None:
    """Rows under bold heads, numbers to the right. Nothing is cut; in a pipe a row is one line."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(head):
        numbers = all(NUMBER.match(row[place]) for row in rows)
        table.add_column(name, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table)


def write(path: Path | None, value: Any) -> None:
    """A value as JSON, if a path is given; "NaN" and "Infinity" are strings there."""
    if path is not None:
        from interp.core.files import json_text, write_atomically

        text = json_text(value, indent=1, default=_plain)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    """What JSON has no type for: numpy's as numbers and lists, the rest as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner beside a text, on stderr, while the work goes on."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def processes(workers: int, cluster: str | None) -> AbstractContextManager[None]:
    """Inside, processes that share work are those of the cluster, if one is named."""
    from interp.runs.workers import ray_cluster

    if cluster is not None and not workers:
        raise InterpError(f"--cluster {cluster}", "--workers 0", "say how many processes to use")
    return ray_cluster(cluster)


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on stderr."""
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn(text), bars.BarColumn(), bars.MofNCompleteColumn())
    with bars.Progress(
        *columns, bars.TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        row = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
