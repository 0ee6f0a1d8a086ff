"""Paths: which heads or MLPs act through the inputs of some receivers."""

from __future__ import annotations

import streamlit as st

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.patching.path_spec import parse_receivers
from interp.results.scores import Scores
from interp.ui.patching.estimate import first_guess
from interp.ui.patching.explore import component_map
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.state import current, ignored, in_words, select

SENDERS = {"heads": "every head", "mlps": "every MLP"}
INPUTS = {"q": "queries", "k": "keys", "v": "values"}
PATHS = (
    "A sender takes its value from the other run, and all other heads keep theirs. The inputs of "
    "the receivers are recorded, then put into a fresh run, and the metric is read. Paths through "
    "other heads do not count, and a sender above all receivers has effect 0."
)
SITE = {"site": "z", "by": ("layer", "head"), "source": "other", "reference": None}


def path_controls(open_: cache.Opened) -> None:
    """Receivers and senders, in the sidebar."""
    model = open_.model
    if strange := [label for label in current().receivers if not _exists(model, label)]:
        why = f"{model.name} has no such input; write L0H0.q, L0KV0.k, L0.mlp_out or logits"
        ignored().extend(
            in_words("receivers", label, offered.without_paths(why)) for label in strange
        )
        select(receivers=tuple(label for label in current().receivers if label not in strange))
    heads = [f"L{i}H{h}.q" for i in range(model.n_layers) for h in range(model.n_heads)]
    shared = [
        f"L{i}KV{h}.{site}"
        for site in "kv"
        for i in range(model.n_layers)
        for h in range(model.n_kv_heads)
    ]
    mlps = [f"L{i}.mlp_out" for i in range(model.n_layers)]
    widgets.picker(
        st.multiselect,
        "Receivers",
        "receivers",
        options=list(dict.fromkeys([*current().receivers, "logits", *heads, *shared, *mlps])),
        placeholder="L20H0.q, or click heads",
        help="Inputs that the paths end in: a head's queries (q), a key/value head's keys (k) or "
        "values (v), an MLP, or the logits alone. Several are patched together.",
    )
    widgets.picker(
        st.selectbox,
        "Senders",
        "senders",
        options=SENDERS,
        help="Each sender takes its value from the other run; only its paths into the receivers "
        "carry the change.",
    )


def _exists(model: LanguageModel, label: str) -> bool:
    try:
        parse_receivers(model, [label])
    except InterpError:
        return False
    return True


def receiver(model: LanguageModel, layer: int, head: int, site: str) -> str:
    """The label of a head's input; keys and values belong to its key/value head."""
    if site == "q":
        return f"L{layer}H{head}.q"
    return f"L{layer}KV{head * model.n_kv_heads // model.n_heads}.{site}"


def choose_receivers(open_: cache.Opened) -> None:
    """The estimated map of heads, on which a click adds a receiver or takes it away."""
    left, right = st.columns([5, 7], gap="large")
    with right:
        st.markdown("**Click heads to make them receivers**, or type them on the left.")
        site = st.segmented_control(
            "Input of the head",
            INPUTS,
            format_func=INPUTS.__getitem__,
            default="q",
            required=True,
            key="receiver-input",
        )
        st.markdown(PATHS)
    try:
        arguments = SITE | {"direction": current().direction, "positions": "all"}
        guess = first_guess(open_, arguments)
    except InterpError as error:
        left.caption(f"No map to click on: {widgets.plain(error.found)}.")
        return
    if guess is None:
        return

    def picked(data: list[int]) -> None:
        _toggle(receiver(open_.model, data[0], data[1], str(site)))

    with left:
        st.markdown(
            f":orange-badge[:material/pending: estimate] Effects of heads by one gradient, on the "
            f"first {guess.n} pairs"
        )
        component_map(guess, None, picked=picked)


def _toggle(label: str) -> None:
    chosen = current().receivers
    rest = tuple(one for one in chosen if one not in (label, "logits"))
    select(receivers=rest if label in chosen else (*rest, label))


def offer_paths(model: LanguageModel, scores: Scores, place: tuple[int, ...]) -> None:
    """Buttons that make the head looked at a receiver."""
    part: Component = scores.component(place)
    if part.site != "z" or part.index is None:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Paths into L{part.layer}H{part.index}, through its")
        for site, words in INPUTS.items():
            label = receiver(model, part.layer, part.index, site)
            st.button(
                words,
                icon=":material/conversion_path:",
                help=label,
                on_click=select,
                kwargs={"patched": "paths", "receivers": (label,)},
            )
