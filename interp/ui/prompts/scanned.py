"""The scan of a typed prompt: its ranking in a thread, and a job that keeps what it confirms."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir, json_text
from interp.core.records import read_sealed, write_sealed
from interp.models.language_model import LanguageModel
from interp.overview.findings import Scan
from interp.results.keys import result_key
from interp.ui.shared import cache, jobs, offered, widgets
from interp.ui.shared.prompts import AskedPrompt, aligned
from interp.ui.shared.state import current

KIND, VERSION = "scan of a prompt", 3
EVERY = 0.5
"""Seconds between two looks at what a running scan has confirmed."""


def scanned(
    model: LanguageModel, asked: AskedPrompt, draw: Callable[[dict[str, Any]], None]
) -> dict[str, Any] | None:
    """The kept scan of a prompt; None: its job runs, or what starts the job is drawn.

    Before that, `draw` shows the ranking by the gradient, and then each effect as it is confirmed.
    A foil text is shown below the prompt, token by token; without as many tokens nothing starts.

    Returns:
        sentences: of `interp.overview.Scan`; rows: its table; found: all of it, as its `to_dict`;
        typed: the hash of the prompt as it was typed.

    Raises:
        InterpError: the prompt is to be put into a chat template and the model has none.
    """
    given = {
        "prompt": asked.given(model),
        "foil": asked.given_foil(model),
        "answer": asked.answer,
        "wrong": asked.wrong,
    }
    foil = given["foil"]
    fits = foil is None or aligned(model, given["prompt"], foil, ("prompt", "foil"))
    key = str(result_key(KIND, VERSION, model, **given))

    def ready() -> None:
        work = partial(_scan_and_keep, key, model, typed=current().asked, **given)
        widgets.start_button("Scan", jobs.start, key, work, "runs", disabled=not fits)

    found = jobs.result(key, lambda key: cache.kept(key, "scan", _stored), ready)
    if found is None and fits:
        ranking = jobs.later(_ranking(model, **given), "Ranking by one gradient …")
        if ranking is not None:
            _so_far(key, ranking, draw)
    return found


def _so_far(key: str, ranking: dict[str, Any], draw: Callable[[dict[str, Any]], None]) -> None:
    job = jobs.find(key)
    running = job is not None and job.state == "running"

    @st.fragment(run_every=EVERY if running else None)
    def panel() -> None:
        part = None if job is None else job.part
        draw(part or ranking)

    panel()


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=cache.HASHES)
def _ranking(model: LanguageModel, **given: Any) -> Future[dict[str, Any]]:
    """The first step of the scan, in a thread."""
    return jobs.THREADS.submit(_ranked, model, **given)


def _ranked(model: LanguageModel, **given: Any) -> dict[str, Any]:
    return _plain(model, next(interp.overview.scan_steps(model, **given)))


def _scan_and_keep(
    key: str,
    model: LanguageModel,
    *,
    typed: str | None,
    progress: jobs.Reporter,
    **options: Any,
) -> None:
    """In the process of a job; `options` are prompt, foil, answer, wrong and cancelled.

    typed: the hash of the prompt as it was typed, with which a page finds it again.
    """

    def counted(done: int, total: int) -> None:
        progress.say("")
        progress(done, total)

    progress.say("ranking heads, MLPs and tokens by one gradient …")
    for found in interp.overview.scan_steps(model, progress=counted, **options):
        kept = _plain(model, found)
        progress.show(kept)
    write_sealed(_path(key), KIND, VERSION, kept | {"typed": typed}, key=key)


def _plain(model: LanguageModel, found: Scan) -> dict[str, Any]:
    """A scan as plain numbers and texts, without the folder its model lies in."""
    rows = found.to_dataframe().to_dict("records")
    kept = {
        "sentences": found.sentences,
        "rows": [{k: None if v != v else v for k, v in row.items()} for row in rows],
        "found": found.to_dict(),
    }
    name = model.name
    return json.loads(json_text(kept).replace(name, offered.without_paths(name)))


def read_scan(path: Path) -> dict[str, Any]:
    """A kept scan, by its file.

    Raises:
        InterpError: no such file, or a damaged one.
    """
    return read_sealed(path, KIND, VERSION)[0]


def _stored(key: str) -> dict[str, Any] | None:
    try:
        return read_sealed(_path(key), KIND, VERSION, key=key)[0]
    except InterpError:
        return None


def _path(key: str) -> Path:
    return cache_dir() / "scans" / f"{key}.json"
