"""Names of places in a transformer: sites, and components such as L17H11, L26N6475 or L3E5."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from interp.core.errors import InterpError, unknown

Axis = Literal["head", "kv_head", "neuron", "expert"]

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
    "router": "expert",
    "expert_out": "expert",
    "mlp_out": None,
    "resid_post": None,
}
"""TransformerLens' site names in causal order, each with the axis that numbers its components.

q, k and v are the projections before the q/k norms and the rotary embedding. k and v have one
component per key/value head; grouped-query attention has fewer of these than query heads. pattern
is the attention after the softmax. z is a head's weighted mean of the values. In a gated MLP, pre
is the activation's input, pre_linear the linear factor, and post act(pre) * pre_linear; without a
gate, post is act(pre) and there is no pre_linear. attn_out and mlp_out are what the layer adds to
the residual stream: after the post-norm or multiplier (Granite) if the model has one, without the
stream if the module adds it itself (BLOOM, MPT's MLP), and summed over routed and shared experts. A
mixture of experts has no pre, pre_linear or post, because each token uses other neurons. Its router
is one logit for each expert, before the choice; expert_out is what each expert writes, times its
routing weight, 0 if the token does not use it. The sum over experts is the MLP's output, before a
post-norm. A shared expert comes last, with the logit of its own gate as its router.
"""

SINGLE = frozenset({"pre", "pre_linear", "post", "router"})
"""Sites whose components are one number each; those of other sites are vectors."""

EXPERT_SITES = frozenset(site for site, axis in SITES.items() if axis == "expert")
"""Sites that only a mixture of experts has."""

_LABEL = re.compile(
    r"L(?P<layer>[0-9]{1,9})(?:(?P<kind>H|KV|N|E)(?P<index>[0-9]{1,9}))?(?:\.(?P<site>\w+))?"
)
MARKS: dict[Axis, str] = {"head": "H", "kv_head": "KV", "neuron": "N", "expert": "E"}
"""The letters before a component's number in its label."""

_NAMES = {"H": "heads", "KV": "key/value heads", "N": "neurons", "E": "experts"}
_USUAL = {"H": "z", "N": "post", "E": "expert_out"}


def check_site(site: str) -> str:
    """The name, if it is a site.

    Raises:
        InterpError: there is no such site; the message suggests the nearest name.
    """
    if not isinstance(site, str) or site not in SITES:
        raise unknown("site", site, SITES)
    return site


@dataclass(frozen=True)
class Component:
    """A layer, a site and the number of a head, neuron or expert there (None: the whole site)."""

    layer: int
    site: str
    index: int | None = None

    def __post_init__(self) -> None:
        check_site(self.site)
        if self.index is not None and SITES[self.site] is None:
            raise InterpError(
                f"component {self.index} of {self.site}",
                f"{self.site} is one vector per token",
                "omit the number",
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
        """The inverse of `str`: L17H11 (that head's z), L5KV0.k, L26N6475, L3E5 or L5.mlp_out.

        Raises:
            InterpError: the label has another form, or its site has no such components: keys and
                values are numbered by key/value heads (KV), not by query heads (H).
        """
        match = _LABEL.fullmatch(label) if isinstance(label, str) else None
        site = None if match is None else match["site"] or _USUAL.get(match["kind"])
        if match is None or site is None:
            raise InterpError(
                f"component {label!r:.60}",
                "not the label of a component",
                "write L17H11, L17H11.q, L5KV0.k, L26N6475, L3E5 or L5.mlp_out",
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
    """A whole number of any library as a Python int.

    Raises:
        TypeError: another value, a boolean, or an array with axes.
    """
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool) or "bool" in kind or getattr(value, "ndim", 0):
        raise TypeError(f"{value!r} is not one whole number")
    try:
        return index(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{value!r} is not one whole number") from error


def alone(given: Any) -> bool:
    """Whether the value is a single one: a string, or a value that cannot be iterated over."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    return one or getattr(given, "ndim", 1) == 0


def within(wanted: Iterable[int] | int | None, size: int, what: str, owner: str) -> list[int]:
    """Sorted numbers of layers, heads or neurons: of one, of several, or of all (None).

    Raises:
        InterpError: no number is given, a number does not exist, or a value is not a whole number.
    """
    try:
        if isinstance(wanted, bytes | dict):
            raise TypeError(f"{wanted!r:.60} is not a list of numbers")
        given: Any = range(size) if wanted is None else [wanted] if alone(wanted) else wanted
        numbers = sorted({whole(i) for i in given})
    except TypeError as error:
        raise InterpError(f"{what}s of {owner}", str(error), "give whole numbers") from error
    if not numbers or numbers[0] < 0 or numbers[-1] >= size:
        raise InterpError(
            f"{what} {numbers} of {owner}", f"it has {what}s 0 to {size - 1}", "choose from these"
        )
    return numbers
