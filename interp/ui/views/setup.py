"""Setup: which model, which prompts, and does the model show the behaviour at all?"""

from __future__ import annotations

import streamlit as st

import interp
from interp.core.components import SITES
from interp.core.positions import resolve
from interp.core.prompts import TaskReport
from interp.core.statistics import Estimate
from interp.models.toys.circuits import TOYS
from interp.tasks.saved import is_saved_name
from interp.ui import VIEWS
from interp.ui.prompts import frame
from interp.ui.setup.own_prompts import edited, own_prompts
from interp.ui.setup.slices_panel import slices_panel
from interp.ui.shared import cache, export, jobs, offered, opening, widgets
from interp.ui.shared.state import CHOICES, LARGEST, MOST_PROMPTS, Selection, current, select

MEANING = {
    "resid_pre": "residual stream before the layer",
    "q": "queries, before rotary embedding",
    "k": "keys, before rotary embedding",
    "v": "values",
    "pattern": "attention weights after softmax",
    "z": "mixed values of a head, before the output matrix",
    "attn_out": "what attention adds to the stream",
    "resid_mid": "residual stream between attention and MLP",
    "pre": "MLP gate (input of the activation)",
    "pre_linear": "linear part of a gated MLP",
    "post": "neuron activations, what the MLP's output matrix reads",
    "router": "a logit for each expert of a mixture, before the choice",
    "expert_out": "what each expert writes, times its routing weight",
    "mlp_out": "what the MLP adds to the stream",
    "resid_post": "residual stream after the layer",
}


def _show() -> None:
    opening.intro(
        "Setup",
        does="It loads a model and a set of prompt pairs, shown token by token, and measures "
        "whether the model shows the behaviour at all. Prompts of your own go in here.",
        when="Before Patching and Circuits, and for a set of pairs on the other pages.",
        lacks="Which parts of the model carry the behaviour: that is what the other pages measure.",
    )
    with st.sidebar:
        _choose(current())
    chosen = current()
    if chosen.model is None:
        _welcome()
        own_prompts()
        return
    open_ = cache.opened()
    name = f"{open_.task.name} on {offered.without_paths(open_.model.name)}"
    st.header(widgets.plain(name), anchor=False)
    st.caption(widgets.plain(open_.task.description))
    words = "Running clean and corrupted prompts, to see whether the model shows the behaviour …"
    if (report := jobs.later(cache.report(open_), words)) is not None:
        _baselines(report, open_.task.metric.unit)
        _next(report)
    _prompts(open_)
    export.python(
        f"{frame.load_call(open_.model)}\ntask = {open_.task.source}\n\nprint(task.check(model))",
        name=f"{open_.task.name}-check",
        words="Python that measures the behaviour",
    )
    slices_panel(open_)
    own_prompts()
    st.subheader("Model", anchor=False)
    _model(open_, chosen)
    st.subheader("Pictures", anchor=False)
    widgets.choose_picture("picture-setup")


def _choose(chosen: Selection) -> None:
    """The form in the sidebar; nothing is loaded before its button."""
    known = offered.offered()
    model = widgets.choose_model(list(known), chosen.model)
    st.caption(widgets.plain(known.get(model, "from the Hugging Face hub, or a local directory")))
    dtype = st.selectbox("Precision", CHOICES["dtype"], CHOICES["dtype"].index(chosen.dtype))
    tasks = [model] if model in TOYS else list(interp.tasks.TASKS)
    tasks += [chosen.task] if is_saved_name(chosen.task) else []
    task = st.selectbox("Task", tasks, tasks.index(chosen.task) if chosen.task in tasks else 0)
    if task in interp.tasks.TASKS:
        st.caption(widgets.plain(interp.tasks.TASKS[task].description))
    corruption = chosen.corruption
    if task == "ioi":
        corruption = st.segmented_control(
            "Corruption",
            CHOICES["corruption"],
            default=chosen.corruption,
            required=True,
            help="swap: the second subject becomes the other name. random: a third name. "
            "abc: all three names are replaced.",
        )
    left, right = st.columns(2)
    n = left.number_input("Prompt pairs", 1, MOST_PROMPTS, chosen.n)
    seed = right.number_input("Seed", 0, LARGEST, chosen.seed)
    st.button(
        "Load",
        type="primary",
        width="stretch",
        icon=":material/play_arrow:",
        on_click=select,
        kwargs={
            "model": model,
            "dtype": dtype,
            "task": task,
            "n": n,
            "seed": seed,
            "corruption": corruption,
        },
    )


def _welcome() -> None:
    st.markdown(
        "Choose a model and a task on the left and press **Load**, or type prompts of your own "
        "below. Then, on **Patching**, put each component's activation from one run into the "
        "other, and click a cell to look inside. The address bar is always a link to what you see."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Try a toy",
            icon=":material/toys:",
            on_click=select,
            kwargs={"model": "toy-induction", "task": "toy-induction"},
        )
        st.caption("Its circuit was planted by hand, so you know the answer. It loads in seconds.")


def _baselines(report: TaskReport, unit: str) -> None:
    """Accuracy and metric with intervals, and a warning where there is nothing to explain."""
    unit = f", {unit}" if unit else ""
    entries: list[tuple[str, Estimate | None, str]] = [
        ("Top-1 accuracy", report.accuracy, "The most likely continuation is an answer."),
        ("Metric above 0", report.preferred, "Share of clean prompts with a positive metric."),
        (f"{report.metric}, clean{unit}", report.clean, "Mean over the clean prompts."),
        (f"{report.metric}, corrupted{unit}", report.corrupted, "Mean over the corrupted prompts."),
    ]
    for column, (label, value, words) in zip(st.columns(4), entries, strict=True):
        if value is not None:
            column.metric(
                label,
                widgets.number(value.mean),
                f"95 %: {widgets.span(value.low, value.high)} · n = {value.n}",
                delta_color="off",
                delta_arrow="off",
                help=words,
                border=True,
            )
    if report.clean.n == 1:
        st.info(
            "One pair has no interval and no null: what it shows may hold for it alone. Add pairs.",
            icon=":material/looks_one:",
        )
    elif report.clean.low <= 0 <= report.clean.high:
        st.warning(
            f"The interval of the clean {report.metric} includes 0: {report.clean.n} prompts do "
            "not show that this model has the behaviour. Take more, or another task.",
            icon=":material/warning:",
        )
    elif report.accuracy.low < 0.5:
        st.warning(
            f"Top-1 accuracy may be as low as {report.accuracy.low:z.2f}: the model often says "
            "something else. Effects on the metric may not be effects on the answer.",
            icon=":material/warning:",
        )


def _next(report: TaskReport) -> None:
    """What the numbers are good for, and the page that comes next."""
    st.caption(
        f"Effects are read against the gap between the {report.metric} of clean and corrupted "
        "prompts: it should be far larger than its interval. **How many pairs?** 16 are a start "
        "and 32 the default; an interval shrinks with the root of their number."
    )
    st.page_link(
        VIEWS / "patching.py",
        label="Next: which components carry it? Patching",
        icon=":material/east:",
    )


def _prompts(open_: cache.Opened) -> None:
    """One pair, token by token, and the list of all pairs."""
    encoded, pairs = open_.encoded, open_.task.pairs
    st.subheader("Prompts", anchor=False)
    number, answer = st.columns([1, 5], vertical_alignment="bottom")
    most = len(pairs) - 1
    i = widgets.picker(
        number.number_input, f"Pair, 0 to {most}", "prompt", min_value=0, max_value=most
    )
    right, wrong = (_words(words) for words in (pairs[i].answers, pairs[i].wrong))
    answer.markdown(
        f"answer :green[**{right}**]" + (f" · wrong :red[**{wrong}**]" if wrong else "")
    )
    corrupted = None if encoded.corrupted is None else open_.model.strings(encoded.corrupted[i])
    here = encoded.marks[i]
    marks = {name: resolve(name, encoded.prompts[i], here, f"pair {i}") for name in (*here, "last")}
    widgets.token_strip(encoded.prompts[i].strings, corrupted, marks)
    st.caption(
        "␣ is a space. Coloured names mark positions; shaded tokens differ between the two prompts."
    )
    edited(open_, i)
    with st.expander(f"All pairs ({len(pairs)})"):
        st.dataframe(
            [
                {
                    "pair": number,
                    "clean": str(pair.clean),
                    "corrupted": str(pair.corrupted or ""),
                    "answer": ", ".join(map(str, pair.answers)),
                    "wrong": ", ".join(map(str, pair.wrong)),
                    "tokens": len(encoded.clean[number]),
                }
                for number, pair in enumerate(pairs)
            ],
            hide_index=True,
        )

    if not is_saved_name(open_.task.name):
        with st.container(horizontal=True, vertical_alignment="center"):
            caption = "The pairs as a file that the command line and Task.from_jsonl read."
            files = {"JSONL": (open_.task.to_jsonl, "jsonl")}
            widgets.downloads(files, name=open_.task.name, caption=caption)


def _words(answers: tuple[str | int, ...]) -> str:
    """The first few answers, escaped."""
    shown = ", ".join(widgets.plain(widgets.visible(str(answer))) for answer in answers[:6])
    return shown + (f" and {len(answers) - 6} more" if len(answers) > 6 else "")


def _model(open_: cache.Opened, chosen: Selection) -> None:
    """Facts, and what can be measured."""
    model = open_.model
    shared = "" if model.n_kv_heads == model.n_heads else f" over {model.n_kv_heads} key/value"
    widgets.facts(
        {
            "model": offered.without_paths(model.name),
            "hash": model.hash[:12],
            "family": model.family,
            "layers": model.n_layers,
            "heads per layer": f"{model.n_heads}{shared}",
            "width": model.d_model,
            "neurons per layer": f"{model.d_mlp}{' gated' if model.gated else ''}",
            "blocks": ("parallel" if model.parallel else "sequential")
            + (", post-norms" if model.post_norms else ""),
            "vocabulary": model.d_vocab,
            "precision": chosen.dtype,
            "engine": "hooks" if model.engine_reason else "fast",
        }
    )
    if model.engine_reason:
        st.caption(widgets.plain(f"No fast engine: {model.engine_reason}"))
    st.markdown("**What can be read and patched.** Every site was checked by replacing its values.")
    widgets.table(
        [
            {
                "site": site,
                "what it is": MEANING[site],
                "components per layer": (
                    f"{model.size(axis)} {widgets.COMPONENTS[axis]}s"
                    if axis and model.size(axis)
                    else "–"
                ),
                "offered": f"no: {model.sites[site]}" if model.sites[site] else "✓",
            }
            for site, axis in SITES.items()
        ],
        key="capabilities",
        widths={"site": 90, "what it is": 330, "components per layer": 140, "offered": 270},
        most=len(SITES),
    )
    if model.card:
        with st.expander("Model card"):
            st.markdown(model.card.replace("\n# ", "\n#### ").replace("# ", "#### ", 1))


if __name__ == "__main__":
    _show()
