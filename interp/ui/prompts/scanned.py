"""The scan of a typed prompt: a job that keeps what the page shows of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir, json_text
from interp.core.positions import Prompt
from interp.core.records import read_sealed, write_sealed
from interp.models.language_model import LanguageModel
from interp.results.keys import result_key
from interp.ui.shared import cache, jobs, offered, widgets
from interp.ui.shared.prompts import AskedPrompt, aligned
from interp.ui.shared.state import current

KIND, VERSION = "scan of a prompt", 2


def scanned(model: LanguageModel, asked: AskedPrompt) -> dict[str, Any] | None:
    """The kept scan of a prompt; None: its job runs, or what starts the job is drawn.

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

    return jobs.result(key, lambda key: cache.kept(key, "scan", _stored), ready)


def _scan_and_keep(
    key: str,
    model: LanguageModel,
    *,
    prompt: Prompt,
    foil: Prompt | None,
    typed: str | None,
    progress: jobs.Reporter,
    **options: Any,
) -> None:
    """In the process of a job; `options` are answer and wrong, and cancelled.

    typed: the hash of the prompt as it was typed, with which a page finds it again.
    """

    def counted(done: int, total: int) -> None:
        progress.say("")
        progress(done, total)

    progress.say("ranking every head and MLP by one gradient …")
    found = interp.scan(model, prompt, foil, progress=counted, **options)
    name = model.name
    kept = {
        "sentences": found.sentences,
        "rows": found.to_dataframe().to_dict("records"),
        "found": found.to_dict(),
        "typed": typed,
    }
    kept = json.loads(json_text(kept).replace(name, offered.without_paths(name)))
    write_sealed(_path(key), KIND, VERSION, kept, key=key)


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
