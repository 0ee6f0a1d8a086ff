"""One prompt on two models: what each says next, and which layers and heads write the answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import streamlit as st

from interp.models.language_model import LanguageModel
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import Look
from interp.plots.components import layer_bars
from interp.plots.lines import share_axis
from interp.plots.style import visible
from interp.ui.prompts import frame
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current

LIKELY = 200
MOST = 12
"""Next tokens and heads that are listed."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The rows that the page shows, and the Python that gives them again."""

    rows: widgets.Rows
    python: str


def choose_other(caption: str) -> LanguageModel | None:
    """A second model, which is loaded; None, and the caption, before one is chosen.

    Raises:
        InterpError: it cannot be loaded.
    """
    names = [name for name in offered.offered() if name != current().model]
    options = {widgets.NONE: "choose a model", **{name: name for name in names}}
    name = widgets.choose("The other model", "other", options)
    if name == widgets.NONE:
        st.caption(caption)
        return None
    return cache.load_model(name, current().dtype)


def beside_another(
    model: LanguageModel, asked: AskedPrompt, seen: Look, parts: LogitParts
) -> Compared | None:
    """The same prompt on a second model that is chosen; None before one is."""
    if (other := choose_other("Both models stay in memory: two at a time.")) is None:
        return None
    answer, wrong = model.strings([parts.answer, parts.wrong])
    theirs = cache.look(other, asked.given(other), answer, wrong)
    if theirs.tokens != seen.tokens:
        st.info(
            f"The two models cut the prompt into other tokens: {len(seen.tokens)} and "
            f"{len(theirs.tokens)}. Each is read as far from the end.",
            icon=":material/straighten:",
        )
    place = max(0, parts.position - seen.run.n_tokens + theirs.run.n_tokens)
    its = theirs.attribution(position=place)
    titles = [widgets.plain(offered.without_paths(one.name)) for one in (model, other)]
    rows = next_tokens(seen, theirs, parts.position, place)
    st.markdown(
        f"**{widgets.plain(parts.words)}**: {parts.logit_difference:+z.3f} logits on {titles[0]} "
        f"(left), {its.logit_difference:+z.3f} on {titles[1]} (right)."
    )
    widgets.table(rows, key="two-next", most=MOST)
    st.caption(
        f"Probability of the next token. Empty: not among the {LIKELY} likeliest of that model."
    )
    _layers((parts, its), titles)
    _heads(parts, its)
    widgets.caveat(
        "n = 1 prompt, so no interval: two models differ on any prompt. Run the same sweep on both "
        "over a set of prompts, and compare the two on Runs."
    )
    return Compared(rows=rows, python=_python(model, other, asked, (answer, wrong)))


def next_tokens(left: Look, right: Look, at: int, there: int) -> widgets.Rows:
    """The likeliest next tokens of either model, with their probability on both."""
    sides = [
        {
            token.text: token.value
            for token in one.next_tokens(min(LIKELY, one.run.model.d_vocab), position=position)
        }
        for one, position in ((left, at), (right, there))
    ]
    either = sorted({*sides[0], *sides[1]}, key=lambda text: -max(x.get(text, 0.0) for x in sides))
    return [
        {"token": visible(text), "left": sides[0].get(text), "right": sides[1].get(text)}
        for text in either[:MOST]
    ]


def _layers(both: tuple[LogitParts, LogitParts], titles: list[str]) -> None:
    """What each layer writes, both in one range."""
    drawn = [
        layer_bars(
            {"attention, all heads": one.heads.sum(1) + one.attention_bias, "MLP": one.mlps},
            y_title=f"added to {one.words} (logits)",
        )
        for one in both
    ]
    share_axis(drawn, "y")
    columns = st.columns(2, gap="large")
    for number, (figure, title, column) in enumerate(zip(drawn, titles, columns, strict=True)):
        alt = f"What each layer of {title} adds to the logit difference"
        widgets.figure(figure, key=f"two-layers-{number}", title=title, alt=alt, into=column)


def _heads(parts: LogitParts, its: LogitParts) -> None:
    """The heads that differ most, if both models have the same heads."""
    if parts.heads.shape != its.heads.shape:
        shapes = " and ".join(f"{a} x {b}" for a, b in (parts.heads.shape, its.heads.shape))
        st.caption(f"The heads are not paired: the models have {shapes} of them.")
        return
    difference = parts.heads - its.heads
    cells = product(*map(range, difference.shape))
    order = sorted(cells, key=lambda cell: -abs(difference[cell]))[:MOST]
    st.markdown(f"**The {MOST} heads that differ most** of {difference.size}, in logits")
    widgets.table(
        [
            {
                "head": f"L{layer}H{head}",
                "left": float(parts.heads[layer, head]),
                "right": float(its.heads[layer, head]),
                "left - right": float(difference[layer, head]),
            }
            for layer, head in order
        ],
        key="two-heads",
    )
    st.caption(
        "Heads are paired by their place. That means something if one model was trained from the "
        "other, and nothing for two models that were trained apart."
    )


def _python(
    model: LanguageModel, other: LanguageModel, asked: AskedPrompt, words: tuple[str, str]
) -> str:
    answer, wrong = words
    lines = [frame.load_call(model)]
    name = offered.without_paths(other.name)
    lines.append(f"other = interp.load_model({name!r}, dtype={current().dtype!r})")
    for one in ("model", "other"):
        prompt = asked.python().replace("(model,", f"({one},")
        lines.append(
            f"seen = interp.look({one}, {prompt}, answer={answer!r}, wrong={wrong!r})\n"
            f"print(seen)\nprint(seen.attribution())"
        )
    return "\n".join(lines)
