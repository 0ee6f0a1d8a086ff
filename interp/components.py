"""Addresses inside a transformer: sites, and components such as L17H11 or L26N6475."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Literal

from interp.errors import InterpError, unknown

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

q, k, v are the projections before q/k norms and rotary embedding; with grouped-query attention
k and v have one component per key/value head. pattern is the attention after softmax; z the
mixed values of a head; pre, pre_linear and post the gate, the linear part and their product in a
gated MLP (pre and post where there is no gate). attn_out and mlp_out are what is added to the
residual stream: after a post-norm or a multiplier (Granite) where there is one, without the stream
where the module itself adds it (BLOOM, MPT's MLP), routed and shared experts together in a mixture.
A mixture of experts has no pre, pre_linear or post, because each token has other neurons.
"""

_LABEL = re.compile(r"L(?P<layer>\d+)(?:(?P<kind>[HN])(?P<index>\d+))?(?:\.(?P<site>\w+))?")


def check_site(site: str) -> str:
    """The name itself, if it is a site.

    Raises:
        InterpError: no such site; the nearest name is given.
    """
    if site not in SITES:
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
        kind, default = ("N", "post") if SITES[self.site] == "neuron" else ("H", "z")
        suffix = "" if self.site == default else f".{self.site}"
        return f"L{self.layer}{kind}{self.index}{suffix}"

    @classmethod
    def parse(cls, label: str) -> Component:
        """The inverse of `str`: L17H11 (that head's z), L17H11.q, L26N6475, L5.mlp_out.

        Raises:
            InterpError: the label does not read like a component.
        """
        match = _LABEL.fullmatch(label)
        if match is None or (match["kind"] is None and match["site"] is None):
            raise InterpError(
                f"component {label!r}",
                "not a label",
                "write L17H11, L17H11.q, L26N6475 or L5.mlp_out",
            )
        site = match["site"] or ("post" if match["kind"] == "N" else "z")
        index = None if match["index"] is None else int(match["index"])
        kinds = {"H": ("head", "kv_head"), "N": ("neuron",)}
        if match["kind"] and SITES[check_site(site)] not in kinds[match["kind"]]:
            raise InterpError(
                f"component {label!r}",
                f"{site} has no {'heads' if match['kind'] == 'H' else 'neurons'}",
                f"heads: {_with_axis('head', 'kv_head')}; neurons: {_with_axis('neuron')}",
            )
        return cls(int(match["layer"]), site, index)


def within(wanted: Iterable[int] | None, size: int, what: str, owner: str) -> list[int]:
    """Sorted layer, head or neuron numbers, all of them for None.

    Raises:
        InterpError: nothing is asked for, a number that does not exist, or not a whole number.
    """
    try:
        numbers = list(range(size)) if wanted is None else sorted({index(i) for i in wanted})
    except TypeError as error:
        raise InterpError(f"{what}s of {owner}", str(error), "give whole numbers") from error
    if not numbers or numbers[0] < 0 or numbers[-1] >= size:
        raise InterpError(
            f"{what} {numbers} of {owner}", f"it has {what}s 0 to {size - 1}", "choose among these"
        )
    return numbers


def _with_axis(*axes: str) -> str:
    return ", ".join(site for site, axis in SITES.items() if axis in axes)
