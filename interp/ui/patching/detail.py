"""One component, looked at: its effect prompt by prompt, where it attends, what it writes."""

from __future__ import annotations

import streamlit as st

from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.plots.components import attention_map, effect_strip, token_bars
from interp.ui.shared import cache, widgets
from interp.ui.shared.state import current, select

HEAD_SITES = ("q", "k", "v", "pattern", "z")
NOTHING = 1e-3  # logits


def effect(result: cache.Result, cell: tuple[int, ...]) -> None:
    """The effect with its interval and rank, and its spread over prompts."""
    scores = result.scores
    ranked = result.ranked[scores.label(cell)]
    low, high = (float(end[cell]) for end in result.interval)
    st.subheader(ranked.label, anchor=False)
    st.markdown(
        f"effect **{widgets.number(ranked.value)}** of the gap · 95 % interval "
        f"{widgets.span(low, high)} · rank **{ranked.rank} of {ranked.of}**"
    )
    widgets.clickable(
        effect_strip(
            scores.effects[(slice(None), *cell)],
            scores.gap,
            low=low,
            high=high,
            selected=current().prompt,
        ),
        key="strip",
        alt=f"Effect of {ranked.label} on each of {scores.n} prompts",
        filename=f"{ranked.label}-prompts",
        picked=lambda data: select(prompt=data[0]),
    )


def inside(open_: cache.Opened, result: cache.Result, cell: tuple[int, ...]) -> None:
    """For attention sites: the head's pattern and output on one prompt."""
    part = result.scores.component(cell)
    if part.site not in HEAD_SITES or part.index is None:
        return
    model, head = open_.model, part.index
    if SITES[part.site] == "kv_head":
        head *= model.n_heads // model.n_kv_heads
    label = f"L{part.layer}H{head}"
    st.subheader(f"Inside {label}", anchor=False)
    if SITES[part.site] == "kv_head" and model.n_heads > model.n_kv_heads:
        group = model.n_heads // model.n_kv_heads
        st.caption(
            f"Key/value head {part.index} serves query heads {head} to {head + group - 1}; "
            f"this is the first of them."
        )
    most = len(open_.task) - 1
    picker, text = st.columns([1, 5], vertical_alignment="bottom")
    with picker:
        prompt = widgets.picker(
            st.number_input, f"Prompt, 0 to {most}", "prompt", min_value=0, max_value=most
        )
    text.markdown(widgets.plain(str(open_.task.pairs[prompt].clean)))
    try:
        view = cache.head_view(open_, part.layer, head, prompt)
    except InterpError as error:
        widgets.show_error(error)
        return
    left, right = st.columns([1, 1], gap="large")
    with left:
        st.markdown(f"**Where {label} attends**")
        figure = attention_map(view.pattern.numpy(), view.tokens)
        st.plotly_chart(
            figure,
            key="attention",
            width="content",
            config=widgets.chart_config(f"{label}-attention-{prompt}"),
            alt=f"Attention pattern of {label} on prompt {prompt}",
        )
    with right:
        st.markdown(f"**What {label} writes** at the last token, read through the unembedding")
        written = [*view.promoted, *view.suppressed]
        if not written:
            st.info("Not available: a norm after attention lies between this head and the logits.")
            return
        if all(abs(value) < NOTHING for _, value in written):
            st.info("It adds nothing to any logit directly: its effect goes through later layers.")
            return
        if view.direct is not None:
            st.caption(
                f"Direct logit attribution: {view.direct:+.3f} logits for the answer over the "
                "wrong ones, on this prompt."
            )
        st.plotly_chart(
            token_bars(view.promoted, view.suppressed),
            key="tokens",
            width="stretch",
            config=widgets.chart_config(f"{label}-tokens-{prompt}"),
            alt=f"Tokens {label} promotes and suppresses on prompt {prompt}",
        )
