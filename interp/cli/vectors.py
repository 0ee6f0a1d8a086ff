"""`interp vectors`: which vector makes a model do which task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import about, count

if TYPE_CHECKING:
    from interp.steering.vector_transfer import TransferMatrix, VectorTest


def vectors(
    model: Annotated[
        str, typer.Argument(help="A model's name; see `interp models`.")
    ] = terminal.DEFAULT_MODEL,
    tasks: Annotated[
        str | None, about("Word tasks such as capital,antonym; by default all six.")
    ] = None,
    sources: Annotated[
        str,
        about("What vectors are read from: examples, instruction, both, bare, heads.", "--from"),
    ] = "examples,instruction,both,heads",
    heads: Annotated[int, count("Heads of a function vector.")] = 10,
    examples: Annotated[int, count("Examples in a prompt.")] = 5,
    draws: Annotated[int, count("Random vectors, and random sets of heads.")] = 20,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """Vectors that make a model do a task, on held-out queries, beside four nulls."""
    from interp.steering.vector_transfer import transfer_matrix
    from interp.tasks.word_pairs import word_tasks

    loaded = terminal.load(model, dtype)
    chosen = word_tasks(None if tasks is None else terminal.names(tasks), loaded)
    with terminal.progress("reading vectors") as progress:
        found = transfer_matrix(
            loaded,
            chosen,
            terminal.names(sources),
            heads=heads,
            examples=examples,
            draws=draws,
            seed=seed,
            progress=progress,
        )
    _print_matrix(found)
    terminal.write(json_file, found.to_json())


def _print_matrix(found: TransferMatrix) -> None:
    specs = tuple(dict.fromkeys(one.spec for one in found.vectors))
    pooled = [found.pooled(spec) for spec in specs]
    best = max(pooled, key=lambda test: test.accuracy.mean)
    plain, n = best.plain_accuracy.mean, best.accuracy.n
    terminal.say(
        f"Vectors of {len(found.tasks)} tasks on {found.model}: without a vector {plain:z.0%} of "
        f"{n} held-out queries are right, with the best kind ({best.spec}) "
        f"{best.accuracy.mean:z.0%}."
    )
    rows = [
        [task, shown, *_shown(one.mean, one.low, one.high), str(one.n)]
        for task in found.tasks
        for shown, one in found.prompted_accuracy(task).items()
    ]
    terminal.table(["task", "the prompt shows", "accuracy", "95 % interval", "n"], rows)
    every = [*found.tests, *(pooled if len(found.tasks) > 1 else [])]
    terminal.table(
        ["task", "read from", "layer", "accuracy", "95 % interval", "beyond"],
        [
            [test.name, test.spec, ", ".join(map(str, test.layers))]
            + [*_shown(test.accuracy.mean, test.accuracy.low, test.accuracy.high), _beyond(test)]
            for test in every
        ],
    )
    if len(found.tasks) > 1:
        table = found.to_dataframe()
        terminal.table(
            ["vector of", "read from", *(f"on {task}" for task in found.tasks)],
            [
                [row["vector"], row["read from"], *(terminal.number(row[t]) for t in found.tasks)]
                for row in table.to_dict("records")
            ],
        )
    terminal.say(
        "Beyond: accuracy minus that of the null, with a bootstrap interval over queries. Layers "
        "and heads were chosen on the other half of the queries."
    )


def _beyond(test: VectorTest) -> str:
    """The differences from the nulls, as text."""
    return "; ".join(
        f"{name} {terminal.number(one.mean, '+')} {terminal.spread(one.low, one.high, '+')}"
        for name, one in test.gains.items()
    )


def _shown(mean: float, low: float, high: float) -> tuple[str, str]:
    return terminal.number(mean), terminal.spread(low, high)
