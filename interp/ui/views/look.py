"""Look: any prompt, what the model says after it, and which parts say it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import json_text
from interp.models.language_model import LanguageModel
from interp.overview.findings import Scan
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import HEAD_METRICS, Look
from interp.plots.components import attention_map, token_bars
from interp.plots.heatmaps import heat_map
from interp.plots.tokens import token_table
from interp.ui.shared import cache, offered, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit, select

READINGS = {
    "lens": "Predictions and lens",
    "heads": "Heads",
    "neurons": "Neurons",
    "scan": "Scan: what matters",
}
DIRECT = "adds to the logit difference"
WINDOW = 16
"""Tokens of a lens table that are drawn at once."""
MOST_CHIPS = 80
"""Tokens that are shown as chips; with more, a token is chosen by its number."""


def _show() -> None:
    st.title("Look at a prompt", anchor=False)
    st.markdown(
        "**What it does.** It runs any prompt once and shows what the model predicts, when it "
        "decides, where heads attend, and which heads, MLPs and neurons write the answer.  \n"
        "**When to use it.** First, on any model. To test a finding, go on to Patching with a set "
        "of prompts: one prompt has no interval."
    )
    if (opened := prompts.opened("Look", ":material/visibility:")) is None:
        return
    model, asked = opened
    seen = cache.look(model, asked.given(model), asked.answer, asked.wrong)
    fit(token=range(seen.run.n_tokens))
    _readings(seen, asked)


@st.fragment
def _readings(seen: Look, asked: AskedPrompt) -> None:
    """The prompt's tokens and one reading at a time: only that one is computed."""
    try:
        _read(seen, asked, _token(seen))
    except InterpError as error:
        widgets.show_error(error)


def _read(seen: Look, asked: AskedPrompt, place: int) -> None:
    """What is explained, and the reading that is chosen."""
    parts = seen.attribution(position=place)
    widgets.facts(
        {
            "model": f"{offered.without_paths(seen.run.model.name)} · {seen.run.model.hash[:12]}",
            "tokens": seen.run.n_tokens,
            "explained": parts.words,
            "logit difference": f"{parts.logit_difference:+.3f}",
            f"sum of {len(parts.parts)} parts": f"{parts.total:+.3f}",
        }
    )
    shown = widgets.choose("Reading", "reading", READINGS, segments=True)
    if shown == "lens":
        _lens(seen, place)
    elif shown == "heads":
        _heads(seen, parts)
    elif shown == "neurons":
        _neurons(seen, place)
    else:
        _scan(seen, asked)
    _export(seen, asked)


def _token(seen: Look) -> int:
    """The token that is read, chosen by a click; the last by default."""
    last = seen.run.n_tokens - 1
    place = last if current().token is None else int(current().token or 0)
    words = {i: f"{widgets.visible(token)}" for i, token in enumerate(seen.tokens)}
    if last < MOST_CHIPS:
        widgets.picker(
            st.pills, "Read after this token", "token", shown=place, options=words, required=True
        )
    else:
        widgets.picker(
            st.number_input,
            f"Read after token, 0 to {last}",
            "token",
            shown=place,
            min_value=0,
            max_value=last,
        )
    return place


def _lens(seen: Look, place: int) -> None:
    table = seen.lens
    first = max(0, min(place - WINDOW + 2, seen.run.n_tokens - WINDOW))
    columns = slice(first, first + WINDOW)
    left, right = st.columns([1, 3], gap="large")
    following = seen.next_tokens(12, position=place)
    with left:
        st.markdown(f"**Next token after {widgets.plain(repr(seen.tokens[place]))}**")
        widgets.table(
            [{"token": repr(t.text), "probability": t.value} for t in following], key="next"
        )
    labels = [f"{i} {widgets.visible(text)}" for i, text in enumerate(seen.tokens)][columns]
    row = current().layer
    widgets.figure(
        token_table(
            table.probability[:, columns],
            texts=[texts[columns] for texts in table.texts],
            x=labels,
            y=[str(layer) for layer in table.layers],
            selected=None if row is None else (row, place - first),
        ),
        key="lens",
        title="Logit lens: the likeliest token at every layer",
        alt="Logit lens, layers by tokens",
        into=right,
        picked=lambda data: select(layer=data[0], token=first + data[1]),
    )
    if len(labels) < seen.run.n_tokens:
        right.caption(f"Tokens {first} to {first + len(labels) - 1} of {seen.run.n_tokens}.")
    widgets.caveat(
        "The lens reads a layer with the final norm and unembedding. Early layers need not write "
        "in that code: an answer that cannot be read may still be there."
    )


def _heads(seen: Look, parts: LogitParts) -> None:
    model = seen.run.model
    names = {DIRECT: DIRECT, **{name: f"attention {name}" for name in HEAD_METRICS}}
    names["entropy"] = "entropy of attention (nats)"
    measure = widgets.choose("Measure", "measured", names)
    if measure == DIRECT:
        values = parts.heads
    else:
        values = seen.head_attention(measure, token=parts.position)
    heads = [str(head) for head in range(model.n_heads)]
    labels = [[f"L{i}H{head}" for head in heads] for i in range(model.n_layers)]
    left, right = st.columns([2, 3], gap="large")
    cell = _cell(values)
    widgets.figure(
        heat_map(
            values,
            x=heads,
            y=[str(layer) for layer in range(model.n_layers)],
            x_title="head",
            y_title="layer",
            colour_title=f"{names[measure]}" + " (logits)" * (measure == DIRECT),
            selected=cell,
            names=labels,
        ),
        key="heads",
        title="Every head",
        alt=f"Layers by heads: {names[measure]}",
        into=left,
        picked=lambda data: select(layer=data[0], head=data[1]),
    )
    with right:
        _head(seen, parts, *cell)
    widgets.caveat(
        "A head that attends somewhere need not use it, and one that writes nothing here may act "
        "through later layers. Patching measures effects."
    )


def _cell(values: Any) -> tuple[int, int]:
    """The head looked at; the strongest of the map if none is chosen."""
    layer, head = current().layer, current().head
    if layer is None or head is None or head >= values.shape[1]:
        return divmod(int(abs(values).argmax()), values.shape[1])
    return layer, head


def _head(seen: Look, parts: LogitParts, layer: int, head: int) -> None:
    """One head: where it attends, and through which tokens it adds to the answer."""
    sizes = parts.heads.shape
    by_layer, by_head, _ = st.columns([1, 1, 3])
    for into, name, value, size in (
        (by_layer, "layer", layer, sizes[0]),
        (by_head, "head", head, sizes[1]),
    ):
        other = {"layer": layer, "head": head}

        def changed(name: str = name, other: dict[str, int] = other) -> None:
            select(**(other | {name: st.session_state[f"look-{name}"]}))

        st.session_state[f"look-{name}"] = value
        into.number_input(name.capitalize(), 0, size - 1, key=f"look-{name}", on_change=changed)
    st.subheader(f"L{layer}H{head}", anchor=False)
    total = parts.heads[layer, head]
    st.markdown(f"adds **{total:+.3f}** logits to {widgets.plain(parts.words)}, through:")
    sources = parts.by_source(layer, head)
    order = sorted(range(len(sources)), key=lambda i: -abs(sources[i]))[:6]
    pairs = [(f"{i}\u2002{seen.tokens[i]}", float(sources[i])) for i in order]
    widgets.figure(
        token_bars([p for p in pairs if p[1] > 0], [p for p in pairs if p[1] <= 0][::-1]),
        key="sources",
        alt=f"Tokens through which L{layer}H{head} adds to the answer",
    )
    pattern = seen.pattern(layer, head)
    first = max(0, parts.position + 1 - 4 * WINDOW)
    shown = slice(first, parts.position + 1)
    widgets.figure(
        attention_map(pattern[shown, shown], seen.tokens[shown]),
        key="attention",
        title=f"Where L{layer}H{head} attends",
        alt=f"Attention of L{layer}H{head}",
    )
    if first:
        st.caption(f"Tokens {first} to {parts.position} of {seen.run.n_tokens}.")


def _neurons(seen: Look, place: int) -> None:
    st.markdown("**Neurons that add most to the logit difference, either way**")
    widgets.table(
        [
            {
                "neuron": str(one.component),
                "adds, logits": one.value,
                "activation": one.activation,
                "raises here": " ".join(repr(token.text) for token in one.here[0]),
                "lowers here": " ".join(repr(token.text) for token in one.here[1]),
            }
            for one in seen.neurons(20, position=place)
        ],
        key="neurons",
        most=20,
    )
    widgets.caveat(
        "The tokens are what the neuron's output weights raise and lower by themselves, with the "
        "sign of its activation here. A neuron also acts through later layers."
    )


def _scan(seen: Look, asked: AskedPrompt) -> None:
    """Ranked by one gradient, then each confirmed by a run of its own."""
    st.markdown(
        "One gradient ranks every head and MLP; then the strongest ten are measured exactly, "
        "each by a run of its own, beside the nearest others of their kind."
        + ("" if asked.foil else " Without a foil, each is set to zero.")
    )
    if widgets.start_button("Scan"):
        st.session_state["scanned"] = asked
    if st.session_state.get("scanned") != asked:
        return
    try:
        found = _scanned(seen.run.model, asked)
    except InterpError as error:
        widgets.show_error(error)
        return
    for sentence in found.sentences[:4]:
        st.markdown(f"- {widgets.plain(sentence)}")

    def picked(row: int) -> None:
        part = found.found[row].component
        select(layer=part.layer, head=part.index, reading="heads" if part.site == "z" else "scan")

    widgets.table(found.to_dataframe().to_dict("records"), key="found", most=12, picked=picked)
    widgets.caveat(
        f"n = 1, so no interval. The gradient ranked {found.of} components; its correlation with "
        f"the exact effects is {found.agreement:.2f}. A rank among others is no "
        "p-value, because each was selected. Click a head to look at it."
    )


def _scanned(model: LanguageModel, asked: AskedPrompt) -> Scan:
    foil = asked.given(model, asked.foil) if asked.foil else None
    return cache.scan(model, asked.given(model), foil, asked.answer, asked.wrong)


def _export(seen: Look, asked: AskedPrompt) -> None:
    """The readings as JSON, and the call that gives them again."""
    st.divider()
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {"JSON": (lambda: json_text(seen.to_dict(), indent=1), "json")}, name="look"
        )
    model = offered.without_paths(seen.run.model.name)
    call = f"model = interp.load_model({model!r}, dtype={current().dtype!r})\n"
    given = f"{asked.python()}, {asked.answer!r}, {asked.wrong!r}"
    call += f"seen = interp.look(model, {given})"
    st.code(f"import interp\n\n{call}", language="python", wrap_lines=True)


if __name__ == "__main__":
    _show()
