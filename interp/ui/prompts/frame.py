"""What frames every page of a typed prompt: its token, its facts, its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from interp.core.files import json_text
from interp.models.language_model import LanguageModel
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import Look
from interp.ui import VIEWS
from interp.ui.shared import cache, export, offered, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit

MOST_CHIPS = 80
"""Tokens that are shown as chips; with more, a token is chosen by its number."""


def ioi_example(model: str, which: str, label: str, begin: Callable[[], Any]) -> None:
    """One click from nothing to the page: a model, and pairs in which it names a person."""
    example(f"{which} of {model} name the indirect object?", label, begin)


def example(question: str, label: str, begin: Callable[[], Any]) -> None:
    """A question about the pairs of IOI, the button that asks it, and the way to other prompts."""
    st.markdown(
        f"**Example.** {question} 16 pairs such as *Then, Mary "
        "and John went to the store. John gave a ring to* → *Mary*; in the corrupted ones Mary "
        "gives."
    )
    widgets.start_button(label, begin)
    st.page_link(
        VIEWS / "setup.py",
        label="Another model, task or prompts of your own",
        icon=":material/tune:",
    )


def read(model: LanguageModel, asked: AskedPrompt) -> Look:
    """The prompt's run; the token in the selection is brought into its range."""
    seen = cache.look(model, asked.given(model), asked.answer, asked.wrong)
    fit(token=range(seen.run.n_tokens), target=range(seen.run.n_tokens))
    return seen


def parts(model: LanguageModel, asked: AskedPrompt, place: int) -> LogitParts:
    """What every part adds after a token of the prompt."""
    return cache.parts(model, asked.given(model), asked.answer, asked.wrong, place)


def choose_token(seen: Look, label: str, field: str, default: int) -> int:
    """A token of the prompt, chosen by a click on its chip."""
    last, chosen = seen.run.n_tokens - 1, getattr(current(), field)
    place = default if chosen is None else int(chosen)
    if last < MOST_CHIPS:
        words = {i: widgets.visible(token) for i, token in enumerate(seen.tokens)}
        widgets.picker(st.pills, label, field, shown=place, options=words, required=True)
    else:
        label = f"{label}: number, 0 to {last}"
        limits = {"min_value": 0, "max_value": last}
        widgets.picker(st.number_input, label, field, shown=place, **limits)
    return place


def read_after(seen: Look) -> int:
    """The token that is read, the last by default."""
    return choose_token(seen, "Read after this token", "token", seen.run.n_tokens - 1)


def facts(seen: Look, parts: LogitParts, **more: object) -> None:
    """Where the numbers come from, and that the parts add up to the logit difference."""
    kinds = Counter(part.kind for part in parts.parts)
    rest = {"bias": "biases", "change": "changes"}
    counted = [
        f"{kinds['head']} heads",
        f"{kinds['mlp']} MLPs",
        "the embedding",
        *(f"{kinds[kind]} {words}" for kind, words in rest.items() if kinds[kind]),
    ]
    widgets.facts(
        {
            **more,
            "model": f"{offered.without_paths(seen.run.model.name)} · {seen.run.model.hash[:12]}",
            "precision": current().dtype,
            "tokens": seen.run.n_tokens,
            "answer - other token": parts.words,
            "logit difference": f"{parts.logit_difference:+z.3f} logits",
            "what all parts add": f"{parts.total:+z.3f} logits",
        }
    )
    st.caption(
        "**Logit difference**: how much higher the model scores the answer than the other token. "
        "**One logit** more makes the odds of the two 2.7 times as large. It is the sum of what "
        f"{' and '.join([', '.join(counted[:-1]), counted[-1]])} add."
    )


def soft_cap(model: LanguageModel, words: str) -> None:
    """Say that a model caps its logits, and which logits are shown here."""
    if (decoder := model.decoder) is not None and decoder.final_softcap is not None:
        cap = f"c tanh(logit / c), c = {decoder.final_softcap:g}"
        st.caption(f"This model caps its logits: {cap}. {words}")


def look_call(model: LanguageModel, asked: AskedPrompt) -> str:
    """The Python that loads the model and runs the prompt, as `seen`."""
    tokens = {"answer": asked.answer, "wrong": asked.wrong}
    given = "".join(f", {name}={text!r}" for name, text in tokens.items() if text is not None)
    return f"{load_call(model)}\nseen = interp.look(model, {asked.python()}{given})"


def load_call(model: LanguageModel) -> str:
    """The Python that loads the model."""
    name = offered.without_paths(model.name)
    return f"import interp\n\nmodel = interp.load_model({name!r}, dtype={current().dtype!r})"


def take_away(
    name: str, rows: Callable[[], Sequence[dict[str, Any]]], found: Callable[[], Any], python: str
) -> None:
    """The table as CSV, everything as JSON; the numbers again as Python and as a notebook.

    `rows` and `found` are called when a file is asked for.
    """
    st.subheader("Export", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {
                "CSV": (lambda: widgets.csv_text(rows()), "csv"),
                "JSON": (lambda: json_text(found(), indent=1), "json"),
            },
            name=name,
        )
    export.python(python, name=name, words="Python that gives these numbers again")
