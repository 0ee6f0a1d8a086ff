"""`interp circuit places --narrow`: a circuit cut to the tokens where it needs its edges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import terminal
from interp.errors import InterpError

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
    from interp.circuits.narrowing import narrow_curve

    with terminal.progress("removing edges token by token") as progress:
        found = narrow_curve(
            model,
            *halves,
            circuit,
            positions=positions,
            thresholds=(threshold,),
            references=references,
            progress=progress,
            **asked,
        )
    if not found.thresholds:
        raise InterpError(
            f"{circuit.name} cut at {threshold:g}", "no path is left", "lower --narrow"
        )
    cut = found.judged.circuits[1]
    terminal.say(str(found))
    for label in cut.edges():
        terminal.say(f"  {label}")
    if out is not None:
        terminal.say(f"written to {cut.save(out)}")
    return {
        "protocol": found.judged.protocol,
        "edges": cut.edges(),
        "rows": found.judged.to_dataframe().to_dict("records"),
    }
