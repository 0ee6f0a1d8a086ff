"""Tiny transformers with a circuit planted by hand: the answer key for every search method.

Each toy is an ordinary `LlamaForCausalLM` whose weights were set, not trained.
"""

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
"""Every toy's builder, by name."""


def build_toy(name: str) -> Toy:
    """The toy of that name, built anew; every build has the same weights and pairs.

    Raises:
        InterpError: no such toy; the nearest name is given.
    """
    if name not in TOYS:
        raise unknown("toy", name, TOYS)
    return TOYS[name]()
