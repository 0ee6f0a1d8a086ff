"""The way out of the app: the Python that gives a number again, on the page and as a notebook."""

from __future__ import annotations

import re

import streamlit as st

from interp.core.errors import InterpError
from interp.core.files import json_text
from interp.tasks.saved import NAME, load_saved

SAVED = re.compile(
    rf"interp\.load_task\('(?P<name>{NAME.pattern})'(?P<model>, model)?, n=(?P<n>\d+)\)"
)
MOST_LINES = 24


def python(code: str, *, name: str, words: str = "Python that reproduces this") -> None:
    """Show code that measures again what the page shows, and offer it as a notebook.

    `name` is the file's name without suffix. Prompts of the user's own are written out, so that
    the code also runs where they were not saved.
    """
    code = SAVED.sub(_spelled, code)
    title, button = st.columns([4, 1], vertical_alignment="center")
    title.markdown(words)
    button.download_button(
        "Notebook",
        lambda: notebook(code, words),
        file_name=f"{name}.ipynb".replace("/", "-"),
        mime="application/x-ipynb+json",
        icon=":material/download:",
        on_click="ignore",
        key=f"{name}-notebook",
        width="stretch",
    )
    long = code.count("\n") > MOST_LINES
    height = 400 if long else "content"
    st.code(code, language="python", wrap_lines=True, height=height)


def notebook(code: str, title: str) -> str:
    """A Jupyter notebook (nbformat 4.5) under a title: a cell for each paragraph of the code."""
    cells = [{"cell_type": "markdown", "source": f"# {title}"}]
    cells += [
        {"cell_type": "code", "source": part, "execution_count": None, "outputs": []}
        for part in re.split(r"\n{2,}", code.strip())
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "cells": [cell | {"id": f"cell-{i}", "metadata": {}} for i, cell in enumerate(cells)],
    }
    return json_text(whole, indent=1)


def _spelled(call: re.Match[str]) -> str:
    """A saved task as code that holds its prompts; the call as it is, if it is no longer saved."""
    try:
        task = load_saved(call["name"]).first(int(call["n"]))
    except InterpError:
        return call[0]
    pairs = "".join(f"        interp.{pair!r},\n" for pair in task.pairs)
    metric = f"    metric={task.metric.name!r},\n"
    made = f"interp.Task(\n    name={task.name!r},\n    pairs=(\n{pairs}    ),\n{metric})"
    return f"interp.tasks.scored_whole({made}, model)" if call["model"] else made
