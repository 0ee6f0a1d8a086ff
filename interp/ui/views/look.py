"""Look: any prompt, what the model says after it, and which parts say it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.overview.logit_parts import LogitParts
from interp.plots.components import layer_bars
from interp.probing.lens_readings import LensReading
from interp.ui import VIEWS
from interp.ui.prompts import frame, lens_panel, scan_panel, two_models
from interp.ui.shared import jobs, offered, opening, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, select

READINGS = {
    "lens": "Predictions and lens",
    "layers": "What writes the answer",
    "scan": "Scan: what matters",
    "models": "Beside another model",
}
TYPE_FOIL = "Type a foil, a prompt of as many tokens with another answer, and "
NEXT = {
    "lens": "**What next?** *What writes the answer* shows the parts behind the last row; with a "
    "foil, *Scan* measures which of them matter.",
    "layers": f"**What next?** {TYPE_FOIL}*Scan*: what writes the answer need not be what "
    "decides it.",
    "scan": "**What next?** Open the strongest head by its button, then test it on a set of "
    "pairs: choose a task on Setup, or type your own there, and go to Patching.",
}
MOST_PARTS = 12


def _show() -> None:
    opening.intro(
        "Look at a prompt",
        does="It runs any prompt once and shows what the model predicts, at which layer it "
        "decides, and which parts write the answer.",
        when="First, on any model. Then look closer on Heads and Neurons.",
        lacks="One prompt has no interval, and what writes the answer need not cause it. Scan and "
        "Patching measure effects.",
    )
    if (opened := prompts.opened("Look", ":material/visibility:")) is not None:
        _readings(*opened)


@st.fragment
def _readings(model: LanguageModel, asked: AskedPrompt) -> None:
    """The prompt's tokens and one reading at a time: only that one is computed."""
    try:
        _read(model, asked)
    except InterpError as error:
        widgets.show_error(error)


def _read(model: LanguageModel, asked: AskedPrompt) -> None:
    """What is explained, and the reading that is chosen."""
    alone = current().reading == "models"
    read = (prompts.by_first_tokens if alone else prompts.by_sums)(model, asked)
    seen = frame.read(model, read)
    place = frame.read_after(seen)
    parts = frame.parts(model, read, place)
    frame.facts(seen, parts)
    shown = widgets.choose("Reading", "reading", READINGS, segments=True)
    scan, drawn = None, parts
    call = f"{frame.look_call(model, read)}\nseen.to_dict(position={place})"
    if shown == "lens":
        drawn, call = lens_panel.show(model, read, seen, place)
    elif shown == "layers":
        _layers(parts)
    elif shown == "models":
        if (both := two_models.beside_another(model, read, seen, parts)) is not None:
            found = {"prompt": asked.prompt, "next tokens": both.rows}
            frame.take_away("look-two", lambda: both.rows, lambda: found, both.python)
        return
    else:
        scan = scan_panel.show(model, asked)
    st.caption(NEXT[shown].replace(TYPE_FOIL, "") if asked.foil else NEXT[shown])
    if shown == "scan" and scan is None:  # what was read before it is not what is shown
        jobs.prepare()
        return
    if scan is not None:
        call = f"{frame.load_call(model)}\n{_scan_call(model, asked)}"

    def rows() -> list[dict[str, Any]]:
        if scan is not None:
            return scan["rows"]
        return drawn.to_dataframe().to_dict("records")

    def whole() -> dict[str, Any]:
        if scan is not None:
            return scan["found"]
        found = {**seen.to_dict(position=place), "model": offered.without_paths(model.name)}
        if isinstance(drawn, LensReading):
            found["lens readings"] = drawn.to_dataframe().to_dict("records")
        return found

    frame.take_away("look", rows, whole, call)
    jobs.prepare_soon()  # for a scan


def _scan_call(model: LanguageModel, asked: AskedPrompt) -> str:
    """The Python that scans the prompt."""
    named = {"answer": asked.answer, "wrong": asked.wrong}
    given = [f"{name}={text!r}" for name, text in named.items() if text is not None]
    if asked.foil:
        given.insert(0, f"foil={asked.python(asked.foil)}")
    return f"interp.scan({', '.join(['model', asked.python(), *given])}).to_dataframe()"


def _layers(parts: LogitParts) -> None:
    """What attention and MLP of each layer add to the answer, and the strongest parts."""
    left, right = st.columns([3, 2], gap="large")
    widgets.figure(
        layer_bars(
            {
                "attention, all heads": parts.heads.sum(1) + parts.attention_bias,
                "MLP": parts.mlps,
            },
            y_title=f"added to {parts.words} (logits)",
        ),
        key="layers",
        title="What each layer writes",
        alt="What attention and MLP of each layer add to the logit difference",
        into=left,
    )
    strongest = parts.top(MOST_PARTS)

    def picked(row: int) -> None:
        layer, _, head = strongest[row].label[1:].partition("H")
        if head:
            select(layer=int(layer), head=int(head))

    with right:
        st.markdown(f"**The {len(strongest)} strongest of {len(parts.parts)} parts**")
        widgets.table(
            [{"part": part.label, "adds, logits": part.value} for part in strongest],
            key="parts",
            picked=picked,
        )
        _to_heads()
    widgets.caveat(
        "These are direct contributions, and together they are the whole logit difference. A part "
        "that acts through later parts shows little here."
    )
    frame.soft_cap(
        parts.run.model,
        "The parts here add up to the logits before the cap. Scan, Patching and Interventions "
        "measure capped logits, whose differences are smaller.",
    )


def _to_heads() -> None:
    """The way to the head that was clicked."""
    if current().head is not None and current().layer is not None:
        label = f"Look at L{current().layer}H{current().head} on Heads"
        st.page_link(VIEWS / "heads.py", label=label, icon=":material/east:")


if __name__ == "__main__":
    _show()
