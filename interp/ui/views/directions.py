"""Directions: two sets of prompts, where they can be told apart, and what their difference does."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded
from interp.overview.two_sets import SITE, Contrast
from interp.probing.probe_files import keep_probes
from interp.results.direction import keep_direction
from interp.ui import VIEWS
from interp.ui.prompts.frame import load_call, take_away
from interp.ui.prompts.strip import projection_strips
from interp.ui.runs.probed import auc_lines
from interp.ui.shared import cache, offered, opening, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit, ignored, select

THINGS = "game trip meal film book song walk party lesson match show concert meeting dinner".split()
EXAMPLE = AskedPrompt(
    "\n".join(f"The {thing} was wonderful, as everybody said" for thing in THINGS),
    foil="\n".join(f"The {thing} was terrible, as everybody said" for thing in THINGS),
)
CONTINUED = "I went to the town and the day was"


def _show() -> None:
    opening.intro(
        "Directions and probes",
        does="It compares two sets of prompts: at which layers a linear probe tells them apart, "
        "which direction separates them, which tokens that direction writes, and what adding it "
        "does to a text.",
        when="To see whether a property can be read from the model's state, and to steer with it.",
        lacks="A probe that separates two sets shows that they differ, perhaps by a word they do "
        "not share. That the model uses the direction is tested by steering beside a random one.",
    )
    key = current().sets
    sets = EXAMPLE if key is None else prompts.found(key)
    _form(sets or EXAMPLE)
    if sets is None:
        raise InterpError(
            f"the sets {key} that this link names", "they are not kept here", "type them again"
        )
    if key is None or current().model is None:
        st.info("Press **Compare**: the example runs on the default model.", icon=":material/east:")
        return
    model = cache.load_model(str(current().model), current().dtype)
    first, second = ([line for line in str(text).splitlines() if line.strip()]
                     for text in (sets.prompt, sets.foil))  # fmt: skip
    fit(layer=range(model.n_layers))
    _compared(cache.contrast(model, tuple(first), tuple(second)))


def _form(shown: AskedPrompt) -> None:
    """Two sets, a prompt a line; nothing runs before its button."""
    key = f"sets-{shown.hash}-{current().model}-".__add__

    def take() -> None:
        texts = [st.session_state[key(name)] for name in ("first", "second")]
        sets = AskedPrompt(texts[0], foil=texts[1])
        try:
            prompts.keep(sets)
        except InterpError as error:
            ignored().append(f"Nothing was compared. {error.asked}: {error.found}; {error.do}")
            return
        select(model=st.session_state[key("model")], sets=sets.hash, layer=None)

    with st.form("sets", border=True):
        left, right = st.columns(2)
        left.text_area("First set, a prompt a line", shown.prompt, key=key("first"), height=180)
        right.text_area("Second set, a prompt a line", shown.foil, key=key("second"), height=180)
        model, button = st.columns([4, 1], vertical_alignment="bottom")
        widgets.choose_model(list(offered.offered()), current().model, into=model, key=key("model"))
        button.form_submit_button(
            "Compare", type="primary", icon=":material/explore:", width="stretch", on_click=take
        )


@st.cache_resource(max_entries=32, show_spinner="Projecting the prompts …", hash_funcs=cache.HASHES)
def _along(
    model: LanguageModel, first: tuple[str, ...], second: tuple[str, ...], layer: int
) -> tuple[Unembedded, str]:
    """What a layer's direction writes, and two prompts of each set along it as HTML.

    The prompts run once, and not again whenever the page is opened.
    """
    found = cache.contrast(model, first, second)
    rows = found.projections(layer, [*first[:2], *second[:2]])
    return found.written(layer), projection_strips(rows, "projection", "projection")


@st.fragment
def _compared(found: Contrast) -> None:
    """The layers, and the direction of the one that is looked at."""
    rows: widgets.Rows = found.to_dataframe().to_dict("records")  # type: ignore[assignment]
    widgets.facts(
        {
            "model": f"{offered.without_paths(found.model.name)} · {found.model.hash[:12]}",
            "prompts": f"{len(found.first)} and {len(found.second)}",
            "held out": rows[0]["n_test"],
            "read": f"{SITE}, last token",
        }
    )
    chosen = current().layer
    layer = found.model.n_layers // 2 if chosen is None else chosen
    left, right = st.columns([3, 2], gap="large")
    widgets.figure(
        auc_lines(rows, "first or second set"),
        key="separation",
        title="Where the sets can be told apart",
        alt="AUC of probes by layer, beside probes of shuffled labels",
        into=left,
    )
    with right:
        widgets.picker(
            st.number_input, "Direction of layer", "layer", shown=layer,
            min_value=0, max_value=found.model.n_layers - 1,
        )  # fmt: skip
        row = rows[layer]
        st.markdown(
            f"length **{row['length']:z.2f}** · cosine with the probe **{row['cosine']:+z.2f}**"
        )
        written, strips = _along(found.model, found.first, found.second, layer)
        for words, tokens in (("raises", written.promoted), ("lowers", written.suppressed)):
            st.markdown(f"It {words} " + widgets.plain(" ".join(t.label for t in tokens)))
        if not offered.is_shared():
            _onwards(found, layer)
    st.markdown("**Two prompts of each set, along the direction**")
    st.html(strips)
    _steered(found, layer)
    call = (
        f"{load_call(found.model)}\nfirst = {list(found.first)!r}\n"
        f"second = {list(found.second)!r}\n"
        "found = interp.overview.contrast(model, first, second)\n"
        f"print(found.to_dataframe().to_string())\nprint(found.written({layer}))"
    )
    take_away("directions", lambda: rows, lambda: {"rows": rows}, call)


def _onwards(found: Contrast, layer: int) -> None:
    """The way to Interventions along this direction, and the button that keeps the probes."""
    name = f"sets-{content_key([*found.first, *found.second])[:8]}"
    with st.container(horizontal=True):
        if st.button("Try on Interventions", icon=":material/east:"):
            keep_direction(f"{name}-L{layer}", found.direction(layer))
            select(changes=(f"L{layer}.{SITE}, steer, 2, all tokens, {name}-L{layer}",))
            if current().asked is None:
                example = AskedPrompt(prompts.EXAMPLE)
                prompts.take(example)
                select(asked=example.hash)
            st.switch_page(VIEWS / "interventions.py")
        if st.button("Keep the probes", icon=":material/bookmark_add:"):
            origin = {**found.probes.source, "sets": str(current().sets)}
            keep_probes(name, replace(found.probes, source=origin))
            st.toast("Kept: Runs lists them.", icon=":material/bookmark_added:")


def _steered(found: Contrast, layer: int) -> None:
    """A text with the direction added, beside a random direction of the same length."""
    st.subheader("Steering", anchor=False)
    prompt, strength, button = st.columns([4, 2, 1], vertical_alignment="bottom")
    text = prompt.text_input("Prompt to continue", CONTINUED, key="steered-prompt")
    times = strength.slider("Times the direction is added", -8.0, 8.0, 2.0, 0.5, key="steered-by")
    asked = (layer, text, times)
    if widgets.generate_button(asked, key="steered-now", into=button, disabled=not text):
        made = found.texts(text, layer, times)
        for column, (name, one) in zip(st.columns(3), made.items(), strict=True):
            widgets.generated_text(name, one.text, "", into=column)


if __name__ == "__main__":
    _show()
