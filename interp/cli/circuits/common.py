"""Options and helpers that the circuit commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import about
from interp.core.errors import InterpError

if TYPE_CHECKING:
    import numpy as np

    from interp.circuits.circuit import Circuit
    from interp.circuits.discovery.redundancy import Redundancy
    from interp.circuits.evaluation.faithfulness import Faithfulness
    from interp.core.prompts import Task


Half = Annotated[
    str,
    about(
        "Which half of the pairs: first, second or all. Split by the seed, so that halves are "
        "disjoint where --n and --seed are the same."
    ),
]
TheirModel = Annotated[
    str | None, typer.Option("--model", help="By default the one the circuit was found in.")
]
TheirTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="A task's name or file; by default the one it was found on, unless that was a file.",
    ),
]
Ablation = Annotated[
    str, about("What removed edges carry: counterfactual, resample, zero or mean.")
]
CircuitFile = Annotated[Path, typer.Argument(help="A circuit that `find` or `export` wrote.")]


def home(circuit: Circuit, model: str | None, task: str | None) -> tuple[str, str]:
    """The names given, or those of where the circuit was found."""
    from interp.models.toys.circuits import TOYS
    from interp.tasks.registry import TASKS

    origin = circuit.provenance
    if origin is None and (model is None or task is None):
        raise InterpError(
            f"{circuit!r}", "it does not say where it is from", "give --model, --task"
        )
    if task is None and origin is not None and origin.task not in (*TASKS, *TOYS):
        raise InterpError(
            f"{circuit!r}",
            f"it was found on {origin.task!r}, which is not a task of the package",
            "give the file it was read from, by --task FILE",
        )
    return model or str(origin and origin.model), task or str(origin and origin.task)


def note_found_on(circuit: Circuit, judging: Task) -> None:
    """Say so if a circuit is judged on the prompts it was found on."""
    if (origin := circuit.provenance) is not None and origin.task_hash == judging.hash:
        terminal.say("Note: it is judged on the prompts it was found on; see --half and --seed.")


def size_of(circuit: Circuit) -> str:
    """How many edges of its graph a circuit has."""
    return f"{circuit.n_edges} of {circuit.graph.n_edges} edges ({circuit.share:.2%})"


def strongest_first(scores: np.ndarray, circuit: Circuit) -> list[tuple[int, int]]:
    """The circuit's edges, the largest |score| first."""
    return sorted(zip(*circuit.mask.nonzero(), strict=True), key=lambda p: -abs(scores[p]))


def random_words(one: Faithfulness, circuit: int | None, *, connected: bool = False) -> str:
    """Random circuits like one of these, or like its curve: mean, 95 % range and its rank."""
    if not len(one.random_connected if connected else one.random):
        return terminal.NONE
    return one.null(circuit, connected=connected).beside


def print_redundancy(found: Redundancy) -> None:
    """How many pairs stand in for each other, and the strongest of them."""
    missed = len(found.missed)
    terminal.say(
        f"{len(found.pairs)} of {found.tried} pairs are redundant: losing both costs at least "
        f"{found.threshold:g} of the gap more than the sum of losing each (n={found.n}). Single "
        f"ablation misses {missed} of them."
    )
    head = ["pair", "first alone", "second alone", "both", "excess", "95 % interval"]
    rows = [
        [
            " and ".join(pair.parts),
            *(f"{x:z.3f}" for x in (*pair.alone, pair.together, pair.excess)),
            terminal.spread(pair.low, pair.high),
        ]
        for pair in found.pairs[:10]
    ]
    if rows:
        terminal.table(head, rows)
    if len(found.pairs) > 10:
        terminal.say(f"{len(found.pairs) - 10} more pairs are not printed; --json has all.")
