"""What is on screen: one `Selection`, the one function that changes it, and its link."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import streamlit as st

from interp.core.components import SITES, Component
from interp.core.errors import InterpError
from interp.results.scores import Scores
from interp.tasks.saved import is_saved_name
from interp.ui.shared import offered

CHOICES = {
    "dtype": ("float32", "float64", "bfloat16", "float16"),
    "corruption": ("swap", "random", "abc"),
    "site": tuple(SITES),
    "by": ("component", "position", "component-position", "layer"),
    "direction": ("denoise", "noise"),
    "source": ("other", "zero", "mean"),
    "unit": ("gap", "metric"),
    "patched": ("components", "paths"),
    "senders": ("heads", "mlps"),
}
"""The values a field may have; the first is the default."""

SETUP = ("model", "dtype", "task", "n", "seed", "corruption")
SEARCH = ("finder", "removed", "price")
STUDIES = ("study", "refusal", "reuse")
PICKED = {"edges": None, "edge": None, "node": None, "place": None, "worth": None}
CELL = {"layer": None, "head": None, "position": None}
MOST_PROMPTS = 512
LARGEST = 2**53 - 1
"""The largest whole number a browser holds exactly."""
BOUNDS = {
    "n": (1, MOST_PROMPTS), "edges": (1, LARGEST), "top": (1, 100), "draws": (2, 200),
    "draw_seed": (0, 2**31), "new_tokens": (1, 200),
    "bits": (2, 16),
}  # fmt: skip
"""Least and most of whole numbers in a link; of the others 0 and `LARGEST`."""
LONGEST = 200
"""Characters of a text in a link."""
HIDDEN = "not shown on a shared server"
"""Stands for a text that somebody else may have typed."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The model and prompts, the sweep, and the cell and prompt looked at.

    positions: names; none means all tokens. layers, neurons: of a neuron sweep, the second as
    (first, last). patched: components or paths; receivers, senders: the ends of the paths. head: a
    head, key/value head or neuron. tour, step: the guided tour under way. asked: the hash of the
    prompt that was typed; other: the model it is also run on; reading, lens, measured, token,
    target: what is shown of it, by which lens, after which token and of which key; subject: the
    prompt or the loaded set; ranked, mlp: the order of neurons, and the layer they are of;
    searched, sign: the words of the search, and whether they are written. top: how many cells of a
    sweep are listed and tested together; together: those that are patched together. draws,
    draw_seed: of random components. finder, removed, price: how a circuit is found, what its
    removed edges carry, and what an edge must be worth; edges: its size; look, edge, node, place:
    what of it is looked at; worth: what an edge must be worth at a token; left, right: two kept
    circuits. study, refusal, reuse: the folder of the open study of verification, of refusal and of
    circuit reuse; the fields after them: what the pages of a study show. run, beside: a kept
    result, and the one it is compared with. changes, dose, tried, new_tokens: the table of
    interventions, how far they go, what is shown of them, and how long the texts are. weights:
    which kind of change of weights; adapters, merging: adapters, and how several are merged;
    compressed, share, bits: the kind of compression and how far it goes; carriers: the heads that
    are measured before and after. slice: the slice of the prompts looked at; weigh, cut: how slices
    are made. A link may name what is not loaded: `fit`, `strangers` and
    `widgets.choose` find out.
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
    unit: str = "gap"
    patched: str = "components"
    receivers: tuple[str, ...] = ()
    senders: str = "heads"
    positions: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    layer: int | None = None
    head: int | None = None
    position: str | None = None
    prompt: int = 0
    asked: str | None = None
    sets: str | None = None
    tour: str | None = None
    step: int | None = None
    reading: str | None = None
    lens: str | None = None
    other: str | None = None
    measured: str | None = None
    token: int | None = None
    target: int | None = None
    subject: str | None = None
    ranked: str | None = None
    mlp: int | None = None
    searched: str | None = None
    sign: str | None = None
    top: int | None = None
    together: tuple[str, ...] = ()
    draws: int | None = None
    draw_seed: int | None = None
    new_tokens: int | None = None
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
    study: str | None = None
    refusal: str | None = None
    reuse: str | None = None
    probed: str | None = None
    attended: str | None = None
    shown: str | None = None
    picked: str | None = None
    glu: str | None = None
    neuron: str | None = None
    section: str | None = None
    rule: str | None = None
    ablation: str | None = None
    measure: str | None = None
    candidates: str | None = None
    score: str | None = None
    side: str | None = None
    method: str | None = None
    run: str | None = None
    beside: str | None = None
    changes: tuple[str, ...] = ()
    dose: str | None = None
    tried: str | None = None
    weights: str | None = None
    adapters: tuple[str, ...] = ()
    merging: str | None = None
    compressed: str | None = None
    share: str | None = None
    bits: int | None = None
    carriers: tuple[str, ...] = ()
    slice: int | None = None
    weigh: str | None = None
    cut: str | None = None

    def differs(self, other: Selection, names: Collection[str]) -> bool:
        """Whether the other selection has another value of one of these fields."""
        return any(getattr(self, name) != getattr(other, name) for name in names)


TYPES = {field.name: str(field.type) for field in fields(Selection)}
DEFAULTS = {field.name: field.default for field in fields(Selection)}


def granularities(site: str) -> tuple[str, ...]:
    """The values of `by` that a site permits, the usual one first."""
    return CHOICES["by"] if SITES[site] else ("position", "layer")


def current() -> Selection:
    """The selection; on the first visit it is read from the link.

    A model that is not offered is not in it: the page asks first.
    """
    if "selection" not in st.session_state:
        names = [field.name for field in fields(Selection)]
        query = {name: st.query_params.get_all(name) for name in names}
        found, words = read(query)
        ignored().extend(words)
        linked().update(name for name, texts in query.items() if texts)
        if found.model is not None and found.model not in offered.offered():
            offered.ask(found.model)
            found = replace(found, model=None)
        st.session_state.selection = found
    return st.session_state.selection


def agree() -> None:
    """Take the model that a link names, though it is not offered, and the rest of the link."""
    st.session_state.selection = replace(current(), model=offered.asked())
    offered.ask(None)
    write_link()


def ignored() -> list[str]:
    """What of a link was ignored, in words."""
    return st.session_state.setdefault("ignored", [])


def linked() -> set[str]:
    """The fields that the link named and no page has shown yet."""
    return st.session_state.setdefault("linked", set())


def fit(**there: Collection[Any]) -> None:
    """Drop what the selection names and what is loaded does not have, with a word.

    Args:
        there: field -> the values it may have.
    """
    changes: dict[str, Any] = {}
    for name, values in there.items():
        value = getattr(current(), name)
        whole = isinstance(value, tuple)
        strange = [v for v in (value if whole else (value,)) if v is not None and v not in values]
        if strange:
            known = (
                f"{values[0]} to {values[-1]}"
                if isinstance(values, range) and values
                else ", ".join(map(str, list(values)[:12])) or "none"
            )
            ignored().extend(in_words(name, str(v), f"there are {known}") for v in strange[:3])
            kept = tuple(v for v in value if v in values) if whole else None
            changes[name] = kept if whole else DEFAULTS[name]
    if changes:
        select(**changes)


def in_words(name: str, text: str, why: str) -> str:
    """A value of a link, and why it is ignored."""
    return f"{name}={text if len(text) <= 40 else text[:40] + '…'}: {why}"


def select(**changes: Any) -> None:
    """Change the selection and its link. Nothing else writes either of them.

    A change clears what it makes meaningless: the cell with the sweep, positions with the prompts,
    the head and neuron looked at with the study, the edge with a node and the other way round.
    """
    old = current()
    new = replace(old, **changes)
    if "model" in changes:
        offered.ask(None)
    if changes.get("edge") is not None:
        new = replace(new, node=None)
    elif changes.get("node") is not None:
        new = replace(new, edge=None)
    if new.differs(old, STUDIES):
        new = replace(new, picked=changes.get("picked"), neuron=changes.get("neuron"))
    if new.differs(old, SETUP):
        new = replace(
            new, positions=(), layers=(), neurons=(), receivers=(), prompt=0, **CELL, **PICKED
        )
    elif old.finder not in (None, new.finder):
        new = replace(new, price=changes.get("price"), **PICKED)
    elif any(getattr(old, name) not in (None, getattr(new, name)) for name in SEARCH):
        new = replace(new, **PICKED)
    elif new.differs(old, ("site", "by", "patched", "senders")):
        new = replace(new, **CELL)
    if new.by not in granularities(new.site):
        new = replace(new, by=granularities(new.site)[0])
    st.session_state.selection = new
    write_link()


def write_link() -> None:
    """Bring the address bar in line with the selection: on its change, and on a change of page.

    In one message, whatever changes: a browser ignores more than 200 changes of its address in half
    a minute, and then shows an old one.
    """
    shown = {name: st.query_params.get_all(name) for name in st.query_params}
    others = {name: texts for name, texts in shown.items() if name not in DEFAULTS}
    wanted = others | link(current())
    if shown != wanted:
        st.query_params.from_dict(wanted)


def link(selection: Selection) -> dict[str, list[str]]:
    """The query parameters of a selection: all values, and without a model only those chosen."""
    found: dict[str, list[str]] = {}
    for name, usual in DEFAULTS.items():
        value = getattr(selection, name)
        if value not in (None, ()) and (selection.model is not None or usual is None):
            found[name] = [str(v) for v in (value if isinstance(value, tuple) else [value])]
    return found


def read(query: Mapping[str, Sequence[str]]) -> tuple[Selection, list[str]]:
    """The selection of some query parameters, and words on each value that was ignored."""
    found: dict[str, Any] = {}
    words: list[str] = []
    for name, texts in query.items():
        values = []
        for text in texts:
            try:
                values.append(parse(name, text))
            except ValueError as error:
                words.append(in_words(name, text, str(error)))
        if TYPES[name].startswith("tuple"):
            found[name] = tuple(values)
        elif values:
            found[name] = values[0]
            words += [in_words(name, str(v), "given more than once") for v in values[1:]]
    ends = found.get("neurons")
    if ends and (len(ends) != 2 or ends[0] > ends[1]):
        words.append(in_words("neurons", ", ".join(map(str, ends)), "not the first and the last"))
        found["neurons"] = ()
    selection = Selection(**found)
    if selection.by not in granularities(selection.site):
        if "by" in found:
            words.append(in_words("by", selection.by, f"{selection.site} has no components"))
        selection = replace(selection, by=granularities(selection.site)[0])
    return selection, words


def parse(name: str, text: str) -> str | int:
    """The value of one query parameter: a whole number for a field of numbers, else the text.

    Raises:
        ValueError: no whole number in its bounds, not a choice, or no text that anything is called.
    """
    if "int" in TYPES[name]:
        low, high = BOUNDS.get(name, (0, LARGEST))
        plain = text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST))
        if not plain or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)
    if text not in CHOICES.get(name, (text,)):
        raise ValueError("none of " + ", ".join(CHOICES[name]))
    if len(text) > LONGEST or not text.isprintable() or not text.strip():
        raise ValueError(f"not a name of 1 to {LONGEST} printable characters")
    return text


def may_read() -> bool:
    """Whether a text that somebody else may have typed is shown: not on a shared server."""
    return not offered.is_shared()


def may_see(task: str) -> bool:
    """Whether a task's results are listed: others' own prompts only where they may be read."""
    return may_read() or not is_saved_name(task) or task == current().task


def strangers(scores: Scores, selection: Selection) -> dict[str, None]:
    """The parts of the selected cell that these scores do not have, each to be cleared."""
    names = {axis if axis in CELL else "head": scores.coordinates[axis] for axis in scores.axes}
    parts = {name: getattr(selection, name) for name in CELL}
    return {
        name: None
        for name, value in parts.items()
        if value is not None and str(value) not in names.get(name, ())
    }


def cell(scores: Scores, selection: Selection) -> tuple[int, ...] | None:
    """The cell looked at; None if no cell, or only a part of one, is selected.

    Where every component has several positions and none is chosen: the one with its largest
    absolute value.
    """
    if selection.layer is None:
        return None
    chosen = selection.position if "position" in scores.axes else None
    positions: Sequence[str | None] = [chosen]
    if len(scores.axes) == 3 and selection.position is None:
        positions = scores.coordinates["position"]
    try:
        label = str(Component(selection.layer, scores.site, selection.head))
        cells = [scores.index(label, position) for position in positions]
    except InterpError:
        return None
    return max(cells, key=lambda place: abs(scores.values[place]))
