"""Addresses inside a transformer: sites, and components such as L17H11, L5KV0.k or L26N6475."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from interp.core.errors import InterpError, unknown

Axis = Literal["head", "kv_head", "neuron"]

SITES: dict[str, Axis | None] = {
    "resid_pre": None,
    "q": "head",
    "k": "kv_head",
    "v": "kv_head",
    "pattern": "head",
    "z": "head",
    "attn_out": None,
    "resid_mid": None,
    "pre": "neuron",
    "pre_linear": "neuron",
    "post": "neuron",
    "mlp_out": None,
    "resid_post": None,
}
"""TransformerLens' site names in causal order, with the axis that numbers their components.

q, k, v are the projections before q/k norms and rotary embedding; k and v have one component per
key/value head, of which grouped-query attention has fewer than heads. pattern is the attention
after softmax; z the mixed values of a head; pre, pre_linear and post the gate, the linear part and
their product in a gated MLP (pre and post where there is no gate). attn_out and mlp_out are what is
added to the residual stream: after a post-norm or a multiplier (Granite) where there is one,
without the stream where the module itself adds it (BLOOM, MPT's MLP), routed and shared experts
together in a mixture. A mixture of experts has no pre, pre_linear or post, because each token has
other neurons.
"""

_LABEL = re.compile(
    r"L(?P<layer>[0-9]{1,9})(?:(?P<kind>H|KV|N)(?P<index>[0-9]{1,9}))?(?:\.(?P<site>\w+))?"
)
MARKS: dict[Axis, str] = {"head": "H", "kv_head": "KV", "neuron": "N"}
"""What stands before a component's number in its label."""
_NAMES = {"H": "heads", "KV": "key/value heads", "N": "neurons"}
_USUAL = {"H": "z", "N": "post"}


def check_site(site: str) -> str:
    """The name itself, if it is a site.

    Raises:
        InterpError: no such site; the nearest name is given.
    """
    if not isinstance(site, str) or site not in SITES:
        raise unknown("site", site, SITES)
    return site


@dataclass(frozen=True)
class Component:
    """A place in the model: a layer, a site, and a head or neuron number (None: all of them)."""

    layer: int
    site: str
    index: int | None = None

    def __post_init__(self) -> None:
        check_site(self.site)
        if self.index is not None and SITES[self.site] is None:
            raise InterpError(
                f"component {self.index} of {self.site}",
                f"{self.site} is one vector per token",
                "leave the number out",
            )

    def __str__(self) -> str:
        if self.index is None:
            return f"L{self.layer}.{self.site}"
        axis = SITES[self.site]
        assert axis is not None
        kind = MARKS[axis]
        suffix = "" if self.site == _USUAL.get(kind) else f".{self.site}"
        return f"L{self.layer}{kind}{self.index}{suffix}"

    @classmethod
    def parse(cls, label: str) -> Component:
        """The inverse of `str`: L17H11 (that head's z), L17H11.q, L5KV0.k, L26N6475, L5.mlp_out.

        Raises:
            InterpError: the label does not read like a component, or its site has no such parts:
                keys and values are numbered by key/value heads, KV, and not by heads, H.
        """
        match = _LABEL.fullmatch(label) if isinstance(label, str) else None
        site = None if match is None else match["site"] or _USUAL.get(match["kind"])
        if match is None or site is None:
            raise InterpError(
                f"component {label!r:.60}",
                "not a label",
                "write L17H11, L17H11.q, L5KV0.k, L26N6475 or L5.mlp_out",
            )
        layer, kind = int(match["layer"]), match["kind"]
        index = None if match["index"] is None else int(match["index"])
        axis = SITES[check_site(site)]
        if kind and (axis is None or MARKS[axis] != kind):
            meant = None if axis is None else str(cls(layer, site, index))
            raise InterpError(
                f"component {label!r}",
                f"{site} has no {_NAMES[kind]}",
                f"write {meant} for one of its {_NAMES[MARKS[axis]]}"
                if axis is not None
                else f"write L{layer}.{site}, one vector per token",
            )
        return cls(layer, site, index)


def precedes(part: Component, neuron: Component, *, parallel: bool) -> bool:
    """Whether changing a component can change a neuron's activation, by their place in the model.

    In the neuron's own layer, these can: the stream before the layer, the attention unless MLP and
    attention run in `parallel`, and the neuron itself.
    """
    if part.layer != neuron.layer:
        return part.layer < neuron.layer
    if SITES[part.site] == "neuron":
        return part.index in (None, neuron.index)
    before_mlp = list(SITES).index(part.site) < list(SITES).index("pre")
    return part.site == "resid_pre" or (before_mlp and not parallel)


def whole(value: Any) -> int:
    """One whole number of any library as Python's.

    Raises:
        TypeError: anything else, among it a boolean, or an array with axes.
    """
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool) or "bool" in kind or getattr(value, "ndim", 0):
        raise TypeError(f"{value!r} is not one whole number")
    try:
        return index(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{value!r} is not one whole number") from error


def alone(given: Any) -> bool:
    """Whether it is one thing: a string, or what has no items."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    return one or getattr(given, "ndim", 1) == 0


def within(wanted: Iterable[int] | int | None, size: int, what: str, owner: str) -> list[int]:
    """Sorted layer, head or neuron numbers, one or several, all of them for None.

    Raises:
        InterpError: nothing is asked for, a number that does not exist, or not a whole number.
    """
    try:
        if isinstance(wanted, bytes | dict):
            raise TypeError(f"{wanted!r:.60} is no list of numbers")
        given: Any = range(size) if wanted is None else [wanted] if alone(wanted) else wanted
        numbers = sorted({whole(i) for i in given})
    except TypeError as error:
        raise InterpError(f"{what}s of {owner}", str(error), "give whole numbers") from error
    if not numbers or numbers[0] < 0 or numbers[-1] >= size:
        raise InterpError(
            f"{what} {numbers} of {owner}", f"it has {what}s 0 to {size - 1}", "choose among these"
        )
    return numbers
