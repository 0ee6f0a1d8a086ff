"""What a head's weights say by themselves: its composition with other heads, and its OV."""

from __future__ import annotations

from concurrent.futures import Future
from itertools import product
from math import isnan

import streamlit as st

from interp.core.errors import InterpError
from interp.heads.composition import Composition, head_composition
from interp.heads.matrices import HeadDirection, head_directions
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded
from interp.plots.style import visible
from interp.ui.shared import jobs, widgets
from interp.ui.shared.cache import HASHES
from interp.ui.shared.state import select

MOST_PAIRS = 8
"""Heads that are listed on either side."""
DIRECTIONS = 3
KINDS = ("queries", "keys", "values")
"""In the order of `Composition.values`."""


@st.cache_resource(max_entries=2, show_spinner=False, hash_funcs=HASHES)
def _composition(model: LanguageModel) -> Future[Composition]:
    return jobs.THREADS.submit(head_composition, model)


@st.cache_resource(max_entries=32, show_spinner="Reading the weights …", hash_funcs=HASHES)
def _directions(model: LanguageModel, layer: int, head: int) -> list[HeadDirection]:
    return head_directions(model, layer, head, "OV", n=DIRECTIONS)


def show_directions(model: LanguageModel, layer: int, head: int) -> None:
    """The strongest singular directions of its OV, read as tokens."""
    st.markdown("**What its OV reads and writes**: its strongest singular directions")
    rows: widgets.Rows = []
    for one in _directions(model, layer, head):
        for sign in (True, False):
            rows.append(
                {
                    "direction": one.label if sign else "",
                    "share": f"{one.share:.1%}" if sign else "",
                    "from tokens like": _words(one.reads, sign),
                    "it writes": _words(one.other, sign),
                }
            )
    widths = {"direction": 75, "share": 60, "from tokens like": 265, "it writes": 265}
    widgets.table(rows, key="head-directions", widths=widths, lines=2)
    st.caption(
        f"Share: of the sum of squared singular values; {model.d_head} equal ones would have "
        f"{1 / model.d_head:.1%} each. A second line gives the tokens of the opposite sign."
    )


def _words(found: Unembedded, sign: bool) -> str:
    side = found.promoted if sign else found.suppressed
    return " ".join(visible(token.text) for token in side)


def show_composition(model: LanguageModel, layer: int, head: int) -> None:
    """The earlier heads that this one can read most, and the later heads that can read it."""
    st.markdown("**Composition**: how much of what one head can write another one reads")
    try:
        found = jobs.later(
            _composition(model),
            "Comparing all pairs of heads, once for a model: some ten seconds …",
        )
    except InterpError as error:
        widgets.show_error(error)
        return
    if found is None:
        return
    label = f"L{layer}H{head}"
    sides = {
        "Earlier heads, into this one": pairs(found, layer, head, "receiver"),
        "This one, into later heads": pairs(found, layer, head, "sender"),
    }
    for column, (title, rows) in zip(st.columns(2), sides.items(), strict=True):
        column.markdown(title)
        if not rows:
            column.caption("There are none.")
            continue
        heads = [str(row["head"]) for row in rows]
        widgets.table(
            rows,
            key=f"composed-{title}-{label}",
            into=column,
            picked=lambda row, heads=heads: _look_at(heads[row]),
        )
    st.caption(
        f"From 0 to 1, by the weights alone; random heads have {found.chance:z.3f}. sd: how many "
        "standard deviations of random heads the squared score is above theirs. All heads of a "
        "trained model share directions, so most pairs are above chance: compare the rows with "
        "one another. Keys are at the query's own place. A pair that composes need not do so on "
        "this prompt: Patching measures paths."
    )


def pairs(found: Composition, layer: int, head: int, side: str) -> widgets.Rows:
    """The strongest partners of a head that is the "sender" or the "receiver"."""
    cells = []
    for kind, name in enumerate(KINDS):
        for other in product(*map(range, found.values.shape[1:3])):
            sent = side == "sender"
            at = (kind, layer, head, *other) if sent else (kind, *other, layer, head)
            score = float(found.values[at])
            if not isnan(score):
                row = {"head": "L{}H{}".format(*other), "through its": name, "score": score}
                cells.append(row | {"sd": float(found.z[at])})
    return sorted(cells, key=lambda row: -row["score"])[:MOST_PAIRS]


def _look_at(head: str) -> None:
    layer, _, index = head[1:].partition("H")
    select(layer=int(layer), head=int(index))
