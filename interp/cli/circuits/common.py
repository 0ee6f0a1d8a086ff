"""Options and helpers that the circuit commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit
    from interp.core.prompts import Task


Half = Annotated[
    str,
    typer.Option(
        help="Which half of the pairs: first, second or all. Split by the seed, so that halves are "
        "disjoint where --n and --seed are the same."
    ),
]


TheirModel = Annotated[
    str | None, typer.Option("--model", help="By default the one the circuit was found in.")
]


TheirTask = Annotated[
    str | None,
    typer.Option("--task", help="A task's name or file; by default the one it was found on."),
]


Ablation = Annotated[
    str, typer.Option(help="What removed edges carry: counterfactual, resample, zero or mean.")
]


CircuitFile = Annotated[Path, typer.Argument(help="A circuit that `find` or `export` wrote.")]


def home(circuit: Circuit, model: str | None, task: str | None) -> tuple[str, str]:
    """The names given, or those of where the circuit was found."""
    origin = circuit.provenance
    if origin is None and (model is None or task is None):
        raise InterpError(
            f"{circuit!r}", "it does not say where it is from", "give --model, --task"
        )
    return model or str(origin and origin.model), task or str(origin and origin.task)


def note_found_on(circuit: Circuit, judging: Task) -> None:
    """Say so where a circuit is judged on the prompts it was found on."""
    if (origin := circuit.provenance) is not None and origin.task_hash == judging.hash:
        terminal.say("Note: it is judged on the prompts it was found on; see --half and --seed.")
