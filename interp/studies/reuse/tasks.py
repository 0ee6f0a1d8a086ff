"""The tasks that are compared, and the positions of the roles in their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.core.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Named positions that matter for the answer; () or None if a task has no such position.

    answer: where the answer (or what decides it) is named. wrong: where the wrong answers are,
    every mention. cue: what says which of them is asked for: the repeated name, or the object
    asked about. earlier: the cue's first mention. cue_name: the label of a head that reads the cue
    at the last token.
    """

    answer: str
    wrong: tuple[str, ...] = ()
    cue: str | None = None
    earlier: str | None = None
    cue_name: str = "inhibition"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A task of the study, run on the model itself or on the one trained on Colored Objects.

    group: "ioi" (the reference), "variant", "control" or "target".
    """

    name: str
    task: str
    group: str
    roles: Roles
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False


_IOI = Roles(answer="IO", wrong=("S1", "S2"), cue="S2", earlier="S1")
_OBJECTS = Roles(
    answer="right",
    wrong=("wrong1", "wrong2"),
    cue="object",
    earlier="thing",
    cue_name="content gatherer",
)
_HELD_OUT = {"split": "test"}
ENTRIES = tuple(
    Entry(name=name, task=task, group=group, roles=roles, options=options, trained=trained)
    for name, task, group, roles, options, trained in (
        ("ioi", "ioi", "ioi", _IOI, {}, False),
        ("ioi, other wording", "ioi", "variant", _IOI, {"variant": "other"}, False),
        ("ioi, three names", "ioi", "variant", _IOI, {"variant": "three"}, False),
        ("ioi, swapped roles", "ioi", "variant", _IOI, {"variant": "roles"}, False),
        ("greater_than", "greater_than", "control", Roles(answer="year"), {}, False),
        ("capitals", "capitals", "control", Roles(answer="country"), {}, False),
        ("colored_objects", "colored_objects", "target", _OBJECTS, _HELD_OUT, False),
        ("ioi, trained model", "ioi", "ioi", _IOI, {}, True),
        ("colored_objects, trained model", "colored_objects", "target", _OBJECTS, _HELD_OUT, True),
    )
)
BY_NAME = {entry.name: entry for entry in ENTRIES}
IOI, OBJECTS = BY_NAME["ioi"], BY_NAME["colored_objects"]
IOI_TRAINED = BY_NAME["ioi, trained model"]
OBJECTS_TRAINED = BY_NAME["colored_objects, trained model"]

PUBLISHED = {
    "shared": {"colored_objects": (25, 32), "greater_than": (3, 18), "capitals": (0.25, None)},
    "accuracy": {"none": 0.496, "both": 0.937, "negative mover": 0.781, "inhibition": 0.815},
    "attention": {"wrong": -0.087, "right": 0.027},
    "spearman": 0.69,
}
"""Merullo et al. 2024 on GPT-2 medium: heads shared with IOI (top 2 % a stage), accuracy on
Colored Objects without and with the interventions, the movers' attention to colours changed by
them, and the rank correlation of effects."""


def entry_named(name: str) -> Entry:
    """An entry of the study.

    Raises:
        InterpError: no such entry.
    """
    if name not in BY_NAME:
        raise unknown("task of the study", name, BY_NAME)
    return BY_NAME[name]
