"""What is on screen: one `Selection`, the one function that changes it, and its permalink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import streamlit as st

from interp.components import SITES, Component
from interp.errors import InterpError
from interp.scores import Scores

CHOICES = {
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "corruption": ("swap", "random", "abc"),
    "site": tuple(SITES),
    "by": ("component", "position", "component-position", "layer"),
    "direction": ("denoise", "noise"),
    "source": ("other", "zero", "mean"),
}
"""The values a field may have; the first is the default."""

SETUP = ("model", "dtype", "task", "n", "seed", "corruption")
SEARCH = ("finder", "removed", "price")
PICKED = {"edges": None, "edge": None, "node": None, "place": None, "worth": None}
CELL = {"layer": None, "head": None, "position": None}
MOST_PROMPTS = 512


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The model and prompts, the sweep, and the cell and prompt looked at.

    positions: names; none means all tokens. layers, neurons: of a neuron sweep, the second as
    (first, last). head: a head, key/value head or neuron. finder, removed, price: how a circuit is
    found, what its removed edges carry, and what an edge must be worth; edges: its size; look,
    edge, node, place: what of it is looked at; worth: what an edge must be worth at a token; left,
    right: two kept circuits. A link may name a layer or
    head that does not exist: `strangers` finds out.
    """

    model: str | None = None
    dtype: str = "float32"
    task: str = "ioi"
    n: int = 32
    seed: int = 0
    corruption: str = "swap"
    site: str = "z"
    by: str = "component"
    direction: str = "denoise"
    source: str = "other"
    positions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    layer: int | None = None
    head: int | None = None
    position: str | None = None
    prompt: int = 0
    finder: str | None = None
    removed: str | None = None
    price: str | None = None
    look: str | None = None
    edges: int | None = None
    edge: str | None = None
    node: str | None = None
    place: str | None = None
    worth: str | None = None
    left: str | None = None
    right: str | None = None

    @property
    def setup(self) -> dict[str, Any]:
        """The fields that say which model and prompts."""
        return {name: getattr(self, name) for name in SETUP}


def granularities(site: str) -> tuple[str, ...]:
    """The values of `by` that a site permits, the usual one first."""
    return CHOICES["by"] if SITES[site] else ("position", "layer")


def current() -> Selection:
    """The selection; on the first visit it is read from the link."""
    if "selection" not in st.session_state:
        names = [field.name for field in fields(Selection)]
        st.session_state.selection = read({name: st.query_params.get_all(name) for name in names})
    return st.session_state.selection


def select(**changes: Any) -> None:
    """Change the selection and its link. Nothing else writes either of them.

    What a change makes meaningless is cleared: the cell with the sweep, positions with the prompts.
    """
    old = current()
    new = replace(old, **changes)
    if new.setup != old.setup:
        new = replace(new, positions=(), layers=(), neurons=(), prompt=0, **CELL, **PICKED)
    elif any(getattr(old, name) not in (None, getattr(new, name)) for name in SEARCH):
        new = replace(new, **PICKED)
    elif (new.site, new.by) != (old.site, old.by):
        new = replace(new, **CELL)
    if new.by not in granularities(new.site):
        new = replace(new, by=granularities(new.site)[0])
    st.session_state.selection = new
    write_link()


def write_link() -> None:
    """Bring the address bar in line with the selection: on its change, and on a change of page."""
    wanted = link(current())
    for field in fields(Selection):
        if field.name not in wanted:
            st.query_params.pop(field.name, None)
        elif st.query_params.get_all(field.name) != wanted[field.name]:
            st.query_params[field.name] = wanted[field.name]


def link(selection: Selection) -> dict[str, list[str]]:
    """The query parameters of a selection; empty fields are left out."""
    found: dict[str, list[str]] = {}
    if selection.model is None:
        return found
    for field in fields(Selection):
        value = getattr(selection, field.name)
        if value is not None and value != ():
            found[field.name] = [str(v) for v in (value if isinstance(value, tuple) else [value])]
    return found


def read(query: Mapping[str, Sequence[str]]) -> Selection:
    """The selection of some query parameters; what cannot be read becomes the default."""
    found: dict[str, Any] = {}
    for field in fields(Selection):
        texts = list(query.get(field.name, []))
        if not texts:
            continue
        if field.type == "tuple[str, ...]":
            found[field.name] = tuple(texts)
        elif "int" in str(field.type):
            numbers = tuple(int(text) for text in texts if text.isdecimal())
            if str(field.type).startswith("tuple"):
                found[field.name] = numbers
            elif numbers:
                found[field.name] = numbers[0]
        elif texts[0] in CHOICES.get(field.name, texts):
            found[field.name] = texts[0]
    selection = Selection(**found)
    if selection.by not in granularities(selection.site):
        selection = replace(selection, by=granularities(selection.site)[0])
    return replace(selection, n=min(max(selection.n, 1), MOST_PROMPTS))


def strangers(scores: Scores, selection: Selection) -> dict[str, None]:
    """The parts of the selected cell that these scores do not have, each to be cleared."""
    names = {_field(axis): scores.coordinates[axis] for axis in scores.axes}
    parts = {name: getattr(selection, name) for name in CELL}
    return {
        name: None
        for name, value in parts.items()
        if value is not None and str(value) not in names.get(name, ())
    }


def _field(axis: str) -> str:
    return axis if axis in CELL else "head"


def cell(scores: Scores, selection: Selection) -> tuple[int, ...] | None:
    """The cell looked at; None if no cell, or only a part of one, is selected.

    Where every component has several positions and none is chosen: the one with its largest
    absolute value.
    """
    if selection.layer is None:
        return None
    positions: Sequence[str | None] = [selection.position]
    if len(scores.axes) == 3 and selection.position is None:
        positions = scores.coordinates["position"]
    try:
        label = str(Component(selection.layer, scores.site, selection.head))
        cells = [scores.index(label, position) for position in positions]
    except InterpError:
        return None
    return max(cells, key=lambda place: abs(scores.values[place]))
