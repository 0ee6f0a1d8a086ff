"""What the refusal report names besides the steps' results."""

from __future__ import annotations

from typing import Any

from interp.studies.steps import Result

Results = dict[str, Result]

REPLIES = ("direct_answer", "direct_refusal", "indirect_refusal")
"""The classes of a reply that answers or refuses; all others are neither."""


def step_of(step: str, side: str) -> str:
    """The name of a step of one side."""
    return f"{step}_{side}".replace(" ", "_")


def methods_of(results: Results) -> dict[str, Result]:
    """Evaluations by method, random versions last."""
    found = {x["name"]: x for name, x in results.items() if name.startswith("method_")}
    return dict(sorted(found.items(), key=lambda pair: (pair[1]["null"], pair[0])))


def doses_of(results: Results) -> list[Result]:
    """Dose-responses of more than two doses."""
    found = (x for name, x in results.items() if name.startswith("dose_"))
    return [x for x in found if len(x["doses"]) > 2]


def strongest(found: Result) -> list[Result]:
    """The first candidates of a selection, by bypass - induce."""
    rows = [row for row in found["rows"] if row["rejected"] not in ("zero", "nan")]
    return sorted(rows, key=lambda row: row["bypass"] - row["induce"])[:8]


def distinct_effects(found: Result) -> dict[str, Any]:
    """Effects by direction; where everything is refused, two directions are one."""
    kinds: dict[str, Any] = {}
    for kind, effects in found.items():
        if kind not in ("n", "plain") and effects not in kinds.values():
            kinds[kind] = effects
    return kinds


def most_draws(found: Result) -> int:
    """The most random directions behind an effect."""
    sides = (x for effects in distinct_effects(found).values() for x in effects.values())
    return max((len(x["random"]) for side in sides for x in side.values()), default=0)


def neither(counts: dict[str, int]) -> str:
    """Replies that neither answer nor refuse, by class."""
    other = [f"{n} {name}" for name, n in counts.items() if n and name not in REPLIES]
    return ", ".join(other) or "0"


def by_side(counts: dict[str, int] | int | None) -> str:
    """Rows of either side; – without a count."""
    if not isinstance(counts, dict):
        return "–" if counts is None else str(counts)
    return f"{counts['answer']} to answer, {counts['refuse']} to refuse"
