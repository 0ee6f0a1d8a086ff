"""The findings of a scan as sentences, each with the page on which it is looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from interp.core.components import Component
from interp.models.language_model import LanguageModel
from interp.tasks.chat_pairs import in_chat_template
from interp.tasks.own_prompts import pair
from interp.tasks.saved import save_task
from interp.ui import VIEWS
from interp.ui.prompts.scanned import scanned
from interp.ui.shared import widgets
from interp.ui.shared.prompts import AskedPrompt, token_text
from interp.ui.shared.state import select

MARKS = {"": ":gray[:material/hourglass_empty:]", "right": ":green[:material/check:]"}
MISJUDGED = ":orange[:material/warning:]"


def show(model: LanguageModel, asked: AskedPrompt) -> dict[str, Any] | None:
    """The findings, ranked by one gradient and then each confirmed by a run of its own.

    Returns:
        The scan, as `scanned` keeps it; None before all are confirmed.
    """
    st.markdown(
        "One gradient ranks every head, every MLP, and every token at every layer; then the "
        "strongest ten, and three tokens, are measured exactly, each by a run of its own, beside "
        "the nearest others of their kind."
        + (
            " *Patched*: it takes its value on the prompt while the model reads the foil."
            if asked.foil
            else " Without a foil, each is set to zero."
        )
    )
    draw = partial(_findings, model, asked)
    if (scan := scanned(model, asked, draw)) is None:
        return None
    draw(scan)
    _offer_patching(model, asked, scan)
    ranked, agreement = scan["found"]["ranked"], float(scan["found"]["agreement"])
    widgets.caveat(
        f"n = 1, so no interval. The gradient ranked {ranked} components and tokens; its "
        f"correlation with the exact effects is {agreement:z.2f}. A rank among others is no "
        "p-value, because each was selected. A token is shown at the layer of its largest "
        "estimate; its stream there holds all that earlier parts wrote."
    )
    return scan


def _findings(model: LanguageModel, asked: AskedPrompt, scan: dict[str, Any]) -> None:
    """A sentence for each finding with its button, and the table."""
    findings = scan["found"]["findings"]
    waiting = sum(one["exact"] is None for one in findings)
    if waiting == len(findings):
        st.markdown(
            ":orange-badge[:material/pending: estimate] **Nothing is measured yet**: effects by "
            "one gradient. Scan measures each."
        )
    elif waiting:
        st.markdown(
            f":orange-badge[:material/pending: estimate] **{len(findings) - waiting} of "
            f"{len(findings)} measured.** The others are estimates by one gradient."
        )
    st.markdown(widgets.plain(scan["sentences"][0]))
    if asked.foil and asked.wrong is None:
        st.caption("The other token is the likeliest after the foil; *Compared with* names one.")
    with st.container(gap="xxsmall"):
        for number, one in enumerate(findings):
            text, way = st.columns([5, 1], vertical_alignment="center", gap="small")
            kind = "" if one["exact"] is None else "right"
            mark = MISJUDGED if one["note"] else MARKS[kind]
            text.markdown(f"{mark} {widgets.plain(one['sentence'])}")
            _way(model, asked, scan, one, number, way)
    st.caption(
        "L0.mlp_out: what the MLP of layer 0 writes. L23H3: head 3 of layer 23. L21.resid_pre: the "
        "residual stream before layer 21. "
        f"{MARKS['right']} measured, and the gradient was within a factor of two · {MISJUDGED} "
        f"measured, and the gradient was wrong · {MARKS['']} an estimate. The button opens the "
        "page on which this one is looked at."
    )
    with st.expander("As a table", icon=":material/table:"):
        widgets.table(scan["rows"], key="found", most=12)


def _way(
    model: LanguageModel,
    asked: AskedPrompt,
    scan: dict[str, Any],
    one: dict[str, Any],
    number: int,
    into: Any,
) -> None:
    """The button that opens a head, the neurons of an MLP, or a token on its page."""
    part, place = Component.parse(one["component"]), one["position"]
    page, go = "look", partial(_to_lens, part.layer, place)
    if part.site == "z":
        page, go = "heads", partial(select, layer=part.layer, head=part.index)
    elif part.site == "mlp_out":
        page, go = "neurons", partial(select, mlp=part.layer, neuron=None, ranked=None)
    elif asked.foil:
        page, go = "patching", partial(_to_map, model, asked, scan, part.layer, place)
    words = {"heads": "Head", "neurons": "Neurons", "patching": "Map", "look": "Lens"}[page]
    label = f"{words} of {part.layer}" if page == "neurons" else words
    help_ = f"Open {page.capitalize()} with {widgets.plain(one['label'])} selected."
    if into.button(label, key=f"way-{number}", help=help_, icon=":material/east:", width="stretch"):
        go()
        if page == "look":
            st.rerun()
        st.switch_page(VIEWS / f"{page}.py")


def _to_lens(layer: int, place: int) -> None:
    """What can be read at a token before a layer; before layer 0 there is nothing to read."""
    select(reading="lens", layer=layer - 1 if layer else None, token=place)


def _to_map(
    model: LanguageModel, asked: AskedPrompt, scan: dict[str, Any], layer: int, place: int
) -> None:
    """The map of the pair by layer and token, in logits as the scan, with this cell selected."""
    _take_pair(model, asked, scan)
    select(
        site="resid_pre", by="position", unit="metric", patched="components",
        direction="denoise", source="other", positions=(),
    )  # fmt: skip
    select(layer=layer, position=str(place))


def _offer_patching(model: LanguageModel, asked: AskedPrompt, scan: dict[str, Any]) -> None:
    """The way to every position and site of the pair."""
    if asked.foil and st.button("Measure this pair on Patching", icon=":material/grid_on:"):
        _take_pair(model, asked, scan)
        st.switch_page(VIEWS / "patching.py")


def _take_pair(model: LanguageModel, asked: AskedPrompt, scan: dict[str, Any]) -> None:
    """Keep prompt and foil as a task, with the answers that the scan compared, and select it."""
    made = pair(asked.prompt, asked.foil, 0, 1)
    if asked.chat:
        made = in_chat_template(model, made)
    (both,) = made.pairs
    tokens = (scan["found"][name] for name in ("answer", "wrong"))
    right, wrong = (
        one if isinstance(one, str) else token_text(model, both.clean, one) for one in tokens
    )
    kept = save_task(pair(both.clean, both.corrupted, right, wrong), "pair")
    select(task=kept.name, n=1, seed=0)
