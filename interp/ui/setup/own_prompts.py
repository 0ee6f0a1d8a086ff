"""Prompts of the user's own: typed or uploaded, shown token by token, and kept as a task."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import streamlit as st

from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.positions import mark_of, resolve
from interp.core.prompts import PromptPair, Task
from interp.models.language_model import LanguageModel
from interp.tasks.chat_pairs import in_chat_template
from interp.tasks.own_prompts import scored_whole
from interp.tasks.saved import (
    MOST_BYTES,
    MOST_PAIRS,
    is_saved_name,
    load_saved,
    save_task,
    saved_path,
)
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.prompts import aligned
from interp.ui.shared.state import current, ignored, select

TYPED = {
    "Clean prompt": "The capital of France is",
    "Corrupted prompt": "The capital of Italy is",
    "Answer": " Paris",
    "Wrong answer": " Rome",
}
"""The example that the form holds."""

HELP = (
    "The prompt, or one of as many tokens with another answer. It ends before the answer.",
    "The next token or tokens, with the space that belongs to them.",
)
SOURCES = ("Type a pair", "Upload a file")
COLUMNS = (
    "The columns of a CSV, or the fields of a JSON object a line: **clean**, **corrupted**, "
    "**answers**, **wrong**, and for named positions **positions.NAME** (a part of the clean "
    "prompt). Several answers are separated by |. A word that follows a space is written with it."
)
MOST_CHIPS = 80
"""Tokens that are shown as chips; with more, a token is chosen by its number."""


def own_prompts() -> None:
    """Pairs that are typed or uploaded; they are checked in the model's tokens, then kept."""
    st.subheader("Your own prompts", anchor=False)
    how = st.segmented_control("Where they come from", SOURCES, key="own-source")
    try:
        if how == SOURCES[0]:
            _typed(_model())
        elif how == SOURCES[1]:
            _uploaded(_model())
    except InterpError as error:
        widgets.show_error(error)
    st.caption(
        "They become a task of every page, of the command line and of notebooks. They are kept "
        "under a hash: a link holds their name and the hash, and no list shows them to others."
    )


def _model() -> LanguageModel:
    """The loaded model, or the default one."""
    return cache.load_model(current().model or next(iter(offered.offered())), current().dtype)


def _typed(model: LanguageModel) -> None:
    """One pair, aligned as it is typed, and the buttons that keep it."""
    columns = (*st.columns(2), *st.columns(3))
    texts = {
        label: (column.text_area if at < 2 else column.text_input)(
            label, text, key=f"own-{label}", help=HELP[at // 2]
        )
        for at, (column, (label, text)) in enumerate(zip(columns, TYPED.items(), strict=False))
    }
    clean, corrupted, answer, wrong = texts.values()
    mine = current().task if is_saved_name(current().task) else None
    name = columns[4].text_input("Name of a new set", "own", key="own-name", help="a-z, 0-9, -")
    if not clean or not answer:
        st.info("Write a clean prompt and its answer.", icon=":material/edit:")
        return
    pair = PromptPair(
        clean=clean, corrupted=corrupted or None, answers=(answer,), wrong=(wrong,) if wrong else ()
    )
    task = _shown(model, _task((pair,)))
    (pair,) = task.pairs
    if not corrupted:
        st.caption("Without a corrupted prompt a pair can be read, but nothing can be patched.")
    with st.container(horizontal=True):
        if widgets.start_button("Start a new set with it"):
            keep_pairs((pair,), name)
        if mine is not None and st.button(f"Add it to {mine}", icon=":material/add:"):
            keep_pairs((*load_saved(mine).pairs, pair), mine)


def _uploaded(model: LanguageModel) -> None:
    """A file's pairs, checked, and the button that keeps them."""
    st.markdown(COLUMNS)
    file = st.file_uploader(
        f"CSV or JSONL, UTF-8, at most {MOST_PAIRS} pairs", ["csv", "jsonl"], max_upload_size=1
    )
    if file is None:
        return
    task = _shown(model, read_upload(file.name, file.getvalue()))
    stem = re.sub(r"[^a-z0-9]+", "-", Path(file.name).stem.lower()).strip("-")[:40]
    if widgets.start_button(f"Use these {len(task)} pairs"):
        keep_pairs(task.pairs, stem if stem[:1].isalpha() else "own")


def _shown(model: LanguageModel, task: Task) -> Task:
    """The task, in the model's chat template if that is switched on; its first pair token by token.

    Raises:
        InterpError: the task does not fit the model or its template.
    """
    if getattr(model.tokenizer, "chat_template", None) and st.toggle(
        "Chat template",
        key="own-chat",
        help="Put every prompt into the model's chat template, as the user's turn. The answer is "
        "then the first token of the reply.",
    ):
        task = in_chat_template(model, task)
        st.caption(
            "In the model's chat template, and kept so. The answer begins the reply: mostly a "
            "token without a leading space."
        )
    aligned(model, task.pairs[0].clean, task.pairs[0].corrupted)
    whole = scored_whole(task, model)
    whole.encode(model, strings=True)
    if whole is not task:
        st.caption(
            "An answer has several tokens, so the metric reads whole answers: "
            f"{whole.metric.name}, in {whole.metric.unit}. Patching and circuits take them; "
            "circuits by token, and heads measured on the whole set, do not."
        )
    return task


def read_upload(name: str, content: bytes) -> Task:
    """The task of an uploaded file.

    Raises:
        InterpError: too large, another suffix, or as in `Task.from_csv`.
    """
    name = Path(name).name
    suffix = Path(name).suffix.lower()
    if len(content) > MOST_BYTES or suffix not in (".csv", ".jsonl"):
        found = f"{len(content)} bytes, suffix {suffix or 'none'}"
        do = f"give a .csv or .jsonl file of at most {MOST_BYTES} bytes"
        raise InterpError(f"the file {name!r:.80}", found, do)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix}"
        path.write_bytes(content)
        try:
            return Task.from_csv(path) if suffix == ".csv" else Task.from_jsonl(path)
        except InterpError as error:
            asked = error.asked.replace(str(path), name)
            raise InterpError(asked, error.found, error.do) from error


def _task(pairs: Sequence[PromptPair]) -> Task:
    metric = METRICS["logit_diff" if pairs[0].wrong else "log_odds"]
    return Task(name="own", pairs=tuple(pairs), metric=metric)


def keep_pairs(pairs: Sequence[PromptPair], name: str) -> None:
    """Save the pairs as a task, and show it."""
    _take(pairs, name)
    st.rerun()


def _take(pairs: Sequence[PromptPair], name: str, prompt: int = 0) -> None:
    name = name.rpartition("-")[0] if is_saved_name(name) else name
    kept = save_task(_task(pairs), name)
    model = current().model or next(iter(offered.offered()))
    select(model=model, task=kept.name, n=len(kept), seed=0)
    select(prompt=prompt)


def edited(open_: cache.Opened, i: int) -> None:
    """How a set of the user's own is named and kept, and its positions, set by clicking tokens."""
    name = open_.task.name
    if not is_saved_name(name):
        return
    _positions(open_, i)
    n = len(open_.task)
    st.code(
        f"interp patch --task {name} --n {n}\n"
        f"task = interp.load_task({name!r}, model, n={n})  # in Python",
        language="bash",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(
            {"JSONL": (load_saved(name).to_jsonl, "jsonl")},
            name=name,
            caption=f"Kept as {offered.without_paths(str(saved_path(name).absolute()))}. A change "
            "makes another set under another hash; this one stays.",
        )
        st.button(
            f"Remove pair {i}",
            icon=":material/delete:",
            disabled=n < 2,
            on_click=_remove,
            args=(i,),
        )


def _remove(i: int) -> None:
    pairs = load_saved(current().task).pairs
    _take((*pairs[:i], *pairs[i + 1 :]), current().task)


def _positions(open_: cache.Opened, i: int) -> None:
    """A name and the token it marks, in this pair or at the same place of all."""
    encoded = open_.encoded
    named, every = st.columns([3, 2], vertical_alignment="bottom")
    name = named.text_input(
        "Named position",
        next(iter(encoded.marks[i]), ""),
        key="own-position",
        placeholder="a new name, such as subject, or one that the prompts have",
        help="Write a name, then click its token. Names become positions of the sweeps.",
    )
    same = every.toggle("In every pair of as many tokens", True, key="own-every")
    if not name:
        return
    prompt = encoded.prompts[i]
    key = f"mark-{open_.task.name}-{i}-{name}"
    options = {at: f"{at} {widgets.visible(text)}" for at, text in enumerate(prompt.strings)}
    marks = encoded.marks[i]
    at = resolve(name, prompt, marks, f"pair {i}") if name in marks else None

    def changed() -> None:
        chosen = st.session_state[key]
        length = len(prompt.tokens)
        pairs = list(load_saved(open_.task.name).pairs)
        for number, pair in enumerate(pairs):
            tokens = open_.model.tokenize(pair.clean)
            if number == i or (same and len(tokens.tokens) == length):
                new = {other: mark for other, mark in pair.positions.items() if other != name}
                new |= {} if chosen is None else {name: mark_of(tokens, chosen)}
                try:
                    pairs[number] = replace(pair, positions=new)
                except InterpError as error:
                    ignored().append(f"{error.asked}: {error.found}; {error.do}")
                    return
        _take(pairs, open_.task.name, prompt=i)

    label = f"Token of {widgets.plain(name)}"
    if len(options) <= MOST_CHIPS:
        st.pills(
            label, list(options), default=at, format_func=options.__getitem__, key=key,
            on_change=changed,
        )  # fmt: skip
    else:
        st.number_input(label, 0, len(options) - 1, at, key=key, on_change=changed)
    there = sum(name in marks for marks in encoded.marks)
    if 0 < there < len(encoded.marks):
        st.caption(
            f"Set in {there} of {len(encoded.marks)} pairs; a sweep offers positions that all have."
        )
