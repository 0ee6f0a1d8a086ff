"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.loading import LanguageModel
    from interp.prompts import Task
    from interp.scores import Scores

DEFAULT_MODEL = "smollm2-135m-instruct"

app = typer.Typer(
    help="Which heads and neurons carry a behaviour of a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ModelName = Annotated[str, typer.Option("--model", help="A model's name; see `interp models`.")]
TaskName = Annotated[str, typer.Option("--task", help="A task's name, a .csv or a .jsonl file.")]
Count = Annotated[int, typer.Option("--n", min=1, help="Number of prompt pairs, at most.")]
Seed = Annotated[int, typer.Option(help="Seed of the random choices.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result here.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Budget = Annotated[float, typer.Option("--budget", help="Memory for the sweep, in GB.")]
Option = Annotated[
    list[str] | None, typer.Option("--option", help="Of the task, e.g. corruption=abc.")
]
Metric = Annotated[str | None, typer.Option(help="logit_diff, prob_diff, log_odds, kl.")]
Top = Annotated[int, typer.Option(min=1, help="How many components to print.")]


@app.command(epilog="Example: interp models --check smollm2-135m-instruct")
def models(
    check: Annotated[
        str | None, typer.Option(help="Load this model and print what it offers.")
    ] = None,
    dtype: Dtype = "float32",
    json_file: JsonFile = None,
) -> None:
    """List the models that need no hub, or check one."""
    if check is None:
        from interp.loading import known_models

        entries = known_models()
        _table(["name", "kind", ""], [[e.name, e.kind, e.description] for e in entries])
        _say("Any Hugging Face id or local directory works too.")
        _write(json_file, [asdict(entry) for entry in entries])
        return
    model = _load(check, dtype)
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
    }
    _table(["", model.name], [[key, str(value)] for key, value in facts.items()])
    _table(["site", "offered"], [[s, why or "yes"] for s, why in model.sites.items()])
    if model.card:
        _say(model.card)
    _write(json_file, {**facts, "sites": model.sites})


@app.command(epilog="Example: interp tasks ioi --model smollm2-135m-instruct --n 64")
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to check on a model.")] = None,
    model: ModelName = DEFAULT_MODEL,
    n: Count = 32,
    seed: Seed = 0,
    option: Option = None,
    json_file: JsonFile = None,
) -> None:
    """List the tasks, or say whether a model shows one: accuracy and baselines."""
    from interp.tasks import TASKS

    if name is None:
        _table(["name", "metric", ""], [[k, t.metric, t.description] for k, t in TASKS.items()])
        _say("A toy's name is its own task; .csv and .jsonl files are read as tasks.")
        _write(json_file, {k: t.description for k, t in TASKS.items()})
        return
    loaded = _load(model)
    task = _task(name, loaded, n, seed, option)
    pair = task.pairs[0]
    _say(f"clean      {pair.clean!r} -> {', '.join(map(str, pair.answers))}")
    _say(f"corrupted  {pair.corrupted!r} -> {', '.join(map(str, pair.wrong))}")
    report = task.check(loaded)
    _say(str(report))
    _write(json_file, asdict(report))


@app.command(epilog="Example: interp patch --task ioi --n 16 --site z --by layer,head")
def patch(
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: Count = 16,
    seed: Seed = 0,
    site: Annotated[str, typer.Option(help="z, q, k, v, pattern, mlp_out, resid_pre ...")] = "z",
    by: Annotated[str, typer.Option(help="Axes swept: layer,head,position.")] = "layer,head",
    direction: Annotated[str, typer.Option(help="denoise or noise.")] = "denoise",
    positions: Annotated[str, typer.Option(help="all, or names: S2,last.")] = "all",
    layers: Annotated[str | None, typer.Option(help="E.g. 3,7-9; all by default.")] = None,
    components: Annotated[str | None, typer.Option(help="Heads or neurons, e.g. 0-99.")] = None,
    source: Annotated[str, typer.Option(help="other, zero or mean.")] = "other",
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

    loaded = _load(model, dtype)
    chosen = _task(task, loaded, n, seed, option, metric)
    options: dict[str, Any] = {
        "site": site,
        "by": tuple(by.split(",")),
        "direction": direction,
        "positions": _names(positions),
        "layers": _numbers(layers),
        "components": _numbers(components),
        "source": source,
    }
    request = make_request(loaded, chosen, **options)
    guess = cost(loaded, request)
    _say(f"{request.n_cells} cells, {guess.runs} patched runs, about {guess.seconds:.0f} s")
    with _progress("patching") as progress:
        scores = activation_patching(loaded, chosen, budget_gb=budget, progress=progress, **options)
    _print_scores(scores, top, json_file)


@app.command(epilog="Example: interp path --task ioi --receivers L20H3.q,L21H0.q --n 8")
def path(
    receivers: Annotated[str, typer.Option(help="logits, or L9H6.q,L7.mlp_out ...")] = "logits",
    task: TaskName = "ioi",
    model: ModelName = DEFAULT_MODEL,
    n: Count = 16,
    seed: Seed = 0,
    senders: Annotated[str, typer.Option(help="heads or mlps.")] = "heads",
    direction: Annotated[str, typer.Option(help="noise or denoise.")] = "noise",
    positions: Annotated[str, typer.Option(help="Where senders are patched.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Sender layers, e.g. 3,7-9.")] = None,
    freeze_mlps: Annotated[bool, typer.Option(help="Hold MLPs in between.")] = False,
    metric: Metric = None,
    option: Option = None,
    dtype: Dtype = "float32",
    top: Top = 10,
    json_file: JsonFile = None,
) -> None:
    """Path patching: the direct effect of every head or MLP on some receivers."""
    from interp.paths import path_patching

    loaded = _load(model, dtype)
    chosen = _task(task, loaded, n, seed, option, metric)
    with _progress("path patching") as progress:
        scores = path_patching(
            loaded,
            chosen,
            receivers=receivers.split(","),
            senders=senders,
            direction=direction,
            positions=_names(positions),
            layers=_numbers(layers),
            freeze_mlps=freeze_mlps,
            progress=progress,
        )
    _print_scores(scores, top, json_file)


bench_app = typer.Typer(help="Time the package beside its peers.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench() -> None:
    """Time the package beside its peers."""


@bench_app.command("patching", epilog="Example: interp bench patching --cases a,b --json FILE")
def bench_patching_command(
    cases: Annotated[str, typer.Option(help="Which of a, b, c.")] = "a,b,c",
    peers: Annotated[bool, typer.Option(help="Also run TransformerLens (minutes).")] = True,
    json_file: JsonFile = None,
) -> None:
    """Activation patching beside TransformerLens' own sweep: same weights, cells and thread."""
    from interp.bench import bench_patching

    _write(json_file, bench_patching(cases.split(","), say=_say, peers=peers))


@bench_app.command("generation", epilog="Example: interp bench generation --n 300 --json FILE")
def bench_generation_command(
    model: ModelName = "countdown-tiny", n: Count = 300, json_file: JsonFile = None
) -> None:
    """Cached generation under intervention beside plain cached generation."""
    from interp.bench import bench_generation

    _write(json_file, bench_generation(model, n=n, say=_say))


study_app = typer.Typer(help="Redo a published study, with controls.", no_args_is_help=True)
app.add_typer(study_app, name="study")


@study_app.callback()
def study() -> None:
    """Redo a published study, with controls."""


@study_app.command(
    "verification",
    epilog="Example: interp study verification --model countdown-tiny --n 60 --out report",
)
def study_verification_command(
    model: Annotated[str, typer.Option(help="A model that writes CountDown chains of thought.")],
    base: Annotated[
        str | None, typer.Option(help="The model it was trained from; known for shipped ones.")
    ] = None,
    n: Annotated[
        int, typer.Option(min=20, help="Samples, half of them valid; half to test on.")
    ] = 300,
    draws: Annotated[int, typer.Option(min=2, help="Random sets behind every selection.")] = 50,
    seed: Seed = 0,
    template: Annotated[str, typer.Option(help="short, or paper (the released prompt).")] = "short",
    max_new_tokens: Annotated[int, typer.Option(help="Of each chain of thought.")] = 300,
    out: Annotated[
        Path | None, typer.Option(help="Where report.md and report.html go; beside the steps.")
    ] = None,
) -> None:
    """How a model checks its own answers (arXiv 2504.14379): every step, one report; resumes."""
    from interp.models.organisms import base_of
    from interp.studies.verification.context import Settings
    from interp.studies.verification.study import study_verification
    from interp.studies.verification.write_up import write_up

    origin = base or base_of(model)
    done = study_verification(
        _load(model),
        _load(origin) if origin else None,
        settings=Settings(
            n=n, draws=draws, seed=seed, template=template, max_new_tokens=max_new_tokens
        ),
        say=_say,
    )
    path = write_up(done).save(out or done.directory)
    _say(f"{sum(done.seconds.values()) / 60:.1f} minutes of computing; report: {path}")


def main() -> None:
    """Run the command line; what the user can fix is one message, not a traceback."""
    try:
        app()
    except InterpError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text(f"error: {error}", style="red"))
        sys.exit(1)


# -- shared pieces -------------------------------------------------------------------------


def _load(name: str, dtype: str = "float32") -> LanguageModel:
    from interp.loading import load_model

    with _status(f"loading {name}"):
        return load_model(name, dtype=dtype)


def _task(
    name: str,
    model: LanguageModel,
    n: int,
    seed: int,
    options: list[str] | None,
    metric: str | None = None,
) -> Task:
    from interp.metrics import metric_named
    from interp.prompts import Task
    from interp.tasks import load_task

    if name.endswith((".jsonl", ".csv")):
        task = Task.from_csv(name) if name.endswith(".csv") else Task.from_jsonl(name)
        task = task.first(n) if n < len(task) else task
    else:
        pairs = [option.partition("=")[::2] for option in options or []]
        extra = {key: int(value) if value.isdecimal() else value for key, value in pairs}
        task = load_task(name, model, n=n, seed=seed, **extra)
    return task if metric is None else task.with_metric(metric_named(metric))


def _names(text: str) -> str | tuple[str, ...]:
    """Names of positions, or all of them."""
    return text if text == "all" else tuple(text.split(","))


def _numbers(text: str | None) -> list[int] | None:
    """Numbers and ranges, such as 3,7-9."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InterpError(f"numbers {text!r}", f"{part!r} is no range", "write 3,7-9")
        found += range(int(first), int(last or first) + 1)
    return found


def _print_scores(scores: Scores, top: int, json_file: Path | None) -> None:
    _say(repr(scores))
    ranked = scores.top(top, by="absolute")
    low, high = scores.interval()
    cells = [scores.index(one.label.split(" @ ")[0], one.position) for one in ranked]
    _table(
        ["rank", "component", "effect (of the gap)", "95 % interval", "stderr"],
        [
            [
                f"{one.rank} of {one.of}",
                one.label,
                f"{one.value:+.3f}",
                f"[{low[cell]:+.3f}, {high[cell]:+.3f}]",
                f"{one.stderr:.3f}",
            ]
            for one, cell in zip(ranked, cells, strict=True)
        ],
    )
    try:
        null = scores.null(min(top, 5))
        _say(
            f"top {min(top, 5)} of one half of the prompts, scored on the other, "
            f"against random components of the same layers: {null}"
        )
    except InterpError as error:
        null = None
        _say(f"no random control: {error.found}")
    top_rows = [
        {"component": one.label, "value": one.value, "stderr": one.stderr, "rank": one.rank}
        for one in ranked
    ]
    control = None if null is None else asdict(null)
    _write(json_file, {"top": top_rows, "null": control, **scores.to_dict()})


def _say(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _table(head: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def _write(path: Path | None, value: Any) -> None:
    if path is not None:
        from interp.files import write_atomically

        text = json.dumps(value, indent=1, default=str)
        write_atomically(path, lambda partial: partial.write_text(text))


@contextmanager
def _status(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


if __name__ == "__main__":
    main()
