"""`interp circuit places --narrow`: a circuit cut to the tokens where it needs its edges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import terminal

if TYPE_CHECKING:
    from interp.circuits.circuit import Circuit
    from interp.models.language_model import LanguageModel
    from interp.prompts import Task


def narrowed(
    model: LanguageModel,
    circuit: Circuit,
    halves: tuple[Task, Task],
    references: tuple[Task | None, Task | None],
    out: Path | None,
    *,
    positions: str | tuple[str, ...],
    threshold: float,
    **asked: Any,
) -> dict[str, Any]:
    """Cut on one half, judge on the other beside the edges everywhere; print, write, and tell."""
    from interp.circuits.narrowing import evaluate_positioned, narrow
    from interp.circuits.positioned import PositionedCircuit

    with terminal.progress("removing edges token by token") as progress:
        found = narrow(
            model,
            halves[0],
            circuit,
            positions=positions,
            threshold=threshold,
            reference=references[0],
            progress=progress,
            **asked,
        )
    terminal.say(str(found))
    for label in found.circuit.edges():
        terminal.say(f"  {label}")
    everywhere = PositionedCircuit.everywhere(circuit, found.circuit.places)
    judged = evaluate_positioned(
        model, halves[1], [everywhere, found.circuit], reference=references[1], **asked
    )
    terminal.say(str(judged))
    if out is not None:
        terminal.say(f"written to {found.circuit.save(out)} and .json beside it")
    return {
        "protocol": judged.protocol,
        "edges": found.circuit.edges(),
        "rows": judged.to_dataframe().to_dict("records"),
    }
