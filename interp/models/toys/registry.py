"""The toys by name. Each is a `LlamaForCausalLM` whose weights were set by hand, not trained."""

from __future__ import annotations

from collections.abc import Callable

from interp.core.errors import unknown
from interp.models.toys.circuits import (
    toy_and,
    toy_induction,
    toy_or,
    toy_refusal,
    toy_verification,
)
from interp.models.toys.toy import Toy

TOYS: dict[str, Callable[[], Toy]] = {
    "toy-induction": toy_induction,
    "toy-verification": toy_verification,
    "toy-refusal": toy_refusal,
    "toy-or": toy_or,
    "toy-and": toy_and,
}
"""The function that builds each toy, by name."""


def build_toy(name: str) -> Toy:
    """Build the toy with a name. Every build has the same weights and pairs.

    Raises:
        InterpError: there is no such toy; the message suggests the nearest name.
    """
    if name not in TOYS:
        raise unknown("toy", name, TOYS)
    return TOYS[name]()
