"""Weights: a change of a model's weights, what it leaves of a task, and where the weights moved."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import streamlit as st

from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.deltas.compression import Compression
from interp.deltas.merging import MergeRule
from interp.deltas.weight_trial import WeightTrial
from interp.models.language_model import LanguageModel
from interp.models.registry import adapters_of
from interp.models.weight_delta import require_alike
from interp.ui.prompts import frame
from interp.ui.prompts.two_models import choose_other
from interp.ui.shared import cache, jobs, offered, opening, widgets
from interp.ui.shared.state import current, fit, select
from interp.ui.weights.chosen import (
    PASSAGES,
    TOP,
    AskedTrial,
    ChosenChange,
    read_trial,
    start,
)

EXAMPLE = "refusal-smollm2"
BEGUN = "weights-example"
KINDS = {"adapters": "Adapters", "compression": "Compression", "model": "Another model"}
RULES = {
    "sum": "sum",
    "mean": "mean",
    "ties": "TIES",
    "dare": "DARE",
    "ram": "RAM",
    "ram+": "RAM+",
}
COMPRESSIONS = {
    "wanda": "Wanda",
    "magnitude": "magnitude",
    "random": "random (the control)",
    "round": "rounding",
}
ABOUT = {
    "wanda": "The smallest weights times inputs become zero.",
    "magnitude": "The smallest weights become zero.",
    "random": "Random weights become zero.",
    "round": "Weights are rounded to a grid.",
}
SHARES = tuple(f"{x / 10:g}" for x in range(1, 10))
WHENS = ("before", "after", "change", "random change")
assert {*RULES} == {*get_args(MergeRule)}
assert {*COMPRESSIONS} == {*get_args(Compression)}


def _show() -> None:
    opening.intro(
        "Weights",
        does="It changes the model's weights, by adapters, by compression or to those of another "
        "model, and measures what that leaves of a task: the metric, the heads that carry it, the "
        "loss of texts. A map shows where the weights moved.",
        when="To see what a fine-tune, a merge or a pruning did to a behaviour, and whether the "
        "same heads still carry it.",
        lacks="Why the weights moved, and what other prompts would show. Heads that still carry "
        "their share of a gap say little if the gap itself is nearly gone.",
    )
    begun = st.session_state.pop(BEGUN, False)
    if current().model is None:
        name = next(iter(offered.offered()))
        question = (
            f"The adapter {EXAMPLE} taught {name} to refuse gardening. Does it still name the "
            "indirect object, and by the same heads?"
        )
        frame.example(widgets.plain(question), "Run the example", _begin)
        return
    open_ = cache.opened()
    with st.sidebar:
        change = _change(open_)
        ask = change and _asked(open_, change)
    if ask is None:
        st.info("Choose the other model beside the page.", icon=":material/west:")
        return
    if begun and read_trial(ask.key) is None:
        start(ask)
    found = jobs.result(
        ask.key,
        lambda key: cache.kept(key, "change of weights", read_trial),
        lambda: _ready(ask),
        title=f"A change of {widgets.plain(offered.without_paths(open_.model.name))}",
    )
    if found is not None:
        _stored(found, open_.task)


def _begin() -> None:
    select(model=next(iter(offered.offered())), task="ioi", n=16)
    select(weights="adapters", adapters=(EXAMPLE,))
    st.session_state[BEGUN] = True


def _change(open_: cache.Opened) -> ChosenChange | None:
    """The controls of the change; without a choice it is that of the example, if it fits.

    Raises:
        InterpError: the other model cannot be loaded, or does not fit.
    """
    there = adapters_of(open_.model.hash)
    fit(adapters=there)
    kinds = {kind: words for kind, words in KINDS.items() if there or kind != "adapters"}
    kind = widgets.choose("What changes the weights", "weights", kinds, segments=True)
    if kind == "model":
        return _other_model(open_.model)
    if kind == "adapters":
        adapters = current().adapters or (EXAMPLE if EXAMPLE in there else next(iter(there)),)
        words = "".join(f"  \n{name}: {about}." for name, about in there.items())
        widgets.picker(
            st.multiselect, "Adapters", "adapters", shown=adapters, options=list(there),
            help=f"One alone, or several merged into one change.{widgets.plain(words)}",
        )  # fmt: skip
        merged = len(adapters) > 1
        rule = widgets.choose("Merged by", "merging", RULES) if merged else ""
        return ChosenChange(adapters=adapters, rule=rule)
    if not there:
        st.caption("No shipped adapter has this model, in this precision, as its base.")
    how = widgets.choose("Compression", "compressed", COMPRESSIONS)
    st.caption(ABOUT[how])
    if how == "round":
        bits = current().bits or 4
        widgets.picker(st.number_input, "Bits", "bits", shown=bits, min_value=2, max_value=16)
        return ChosenChange(how=how, bits=bits)
    fit(share=SHARES)
    share = current().share or "0.5"
    widgets.picker(
        st.select_slider, "Share of every row set to zero", "share", shown=share, options=SHARES
    )
    return ChosenChange(how=how, share=float(share))


def _other_model(model: LanguageModel) -> ChosenChange | None:
    """The change that makes the model another one that is loaded; None before one is chosen.

    Raises:
        InterpError: it cannot be loaded, or it has other tensors or the same weights.
    """
    words = "A fine-tune of this model, for example. Both stay in memory: two at a time."
    if (other := choose_other(words)) is None:
        return None
    require_alike(model, other)
    if other.hash == model.hash:
        raise InterpError(
            f"the difference of {model.name} and {other.name}",
            "they have the same weights",
            "choose another model",
        )
    st.caption("*Before* is the chosen model, *after* this one; both read the same tokens.")
    return ChosenChange(other=other)


def _asked(open_: cache.Opened, change: ChosenChange) -> AskedTrial:
    """The controls of the heads, and what is asked for."""
    model = open_.model
    labels = [f"L{i}H{j}" for i in range(model.n_layers) for j in range(model.n_heads)]
    fit(carriers=labels)
    widgets.picker(
        st.multiselect, "Heads", "carriers", options=labels,
        placeholder=f"the {TOP} strongest",
        help="Patched together in the model before and after, beside random heads of the same "
        "layers. Empty: one gradient on other pairs of the task chooses them.",
    )  # fmt: skip
    draws, seed = widgets.choose_draws("Random sets", *st.columns(2))
    heads = current().carriers
    others = None if heads else cache.other_pairs(current(), open_)
    return AskedTrial(
        model=model, task=open_.task, change=change, heads=heads, others=others, draws=draws,
        seed=seed,
    )  # fmt: skip


def _ready(ask: AskedTrial) -> None:
    """What will be measured, and the button."""
    st.code(ask.change.python(), language="python")
    widgets.start_button("Measure", start, ask)
    st.caption(
        f"Before and after, on {len(ask.task)} pairs of {widgets.plain(ask.task.name)} and "
        f"{PASSAGES} shipped texts. The model in memory stays as it is: the work runs in a "
        "process of its own, about a minute or two on the default model."
    )


def _stored(found: WeightTrial, task: Task) -> None:
    """The trial: the table, the map, and the overlap of merged changes."""
    one, origin = found.survival, found.provenance
    widgets.stored_result(
        f"{one.task} under {found.name}".replace("_", " "),
        origin,
        one.before.n,
        {"the weights moved by": f"{found.sizes.whole:.1%} of their length"},
    )
    rows: widgets.Rows = found.to_dataframe().to_dict("records")  # type: ignore[assignment]
    widgets.table(_pivoted(rows), key="trial", widths={"measure": 220})
    heads = () if one.heads_before is None else one.heads_before.components
    st.caption(
        f"Metric: {widgets.plain(task.metric.name)}, {task.metric.unit}, mean over the clean "
        "prompts. 95 % intervals; changes are paired by prompt. *random change*: normal numbers, "
        "as large in every tensor. The change did more than its size explains if the two intervals "
        f"do not meet. Heads: {', '.join(heads)}, patched together at all tokens; 1 is the whole "
        "gap between clean and corrupted prompts, of each model its own. Random heads: mean and "
        "95 % range. Loss and Jensen-Shannon divergence in nats per token."
    )
    if one.no_gap:
        st.info(widgets.plain(f"Heads after the change: {one.no_gap}."), icon=":material/block:")
    sizes: widgets.Rows = found.sizes.to_dataframe().to_dict("records")  # type: ignore[assignment]
    if found.sizes.parts:
        widgets.figure(
            found.sizes.plot(),
            key="sizes",
            title="Where the weights moved: |change| / |weights|",
            alt="Relative size of the change of weights, by layer and part",
        )
    if found.shares:
        st.markdown("**How the merged changes overlap**")
        shares = [{"change": name, **share} for name, share in found.shares.items()]
        widgets.table(shares, key="shares", widths={"change": 260})
        st.caption(
            "Active: of all numbers of the changed tensors, changed by more than 0.00001. Shared, "
            "unique: of the active ones, active in another change too or in this one alone."
        )
    widgets.caveat(
        "A weight that moved far is no sign that the behaviour is there. The control of a pruning "
        "is the compression *random*, with as many weights of every row."
    )
    st.caption(
        "**What next?** Measure another change, and compare both on Runs. *Beside another model* "
        "on Look reads one prompt on two models."
    )
    call = offered.shown(origin.call, origin)
    where = asdict(origin) | {"model": offered.without_paths(origin.model), "call": call}
    told = {"rows": rows, "sizes": sizes, "shares": found.shares, "origin": where}
    frame.take_away(
        "weights", lambda: rows, lambda: told, f"{call}\nprint(found)\nprint(found.sizes)"
    )


def _pivoted(rows: widgets.Rows) -> list[dict[str, Any]]:
    """A row for each measure, with its value and interval at each time."""
    cells = {(row["measure"], row["when"]): row for row in rows}
    return [
        {"measure": what} | {when: widgets.value(cells.get((what, when))) for when in WHENS}
        for what in dict.fromkeys(row["measure"] for row in rows)
    ]


if __name__ == "__main__":
    _show()
