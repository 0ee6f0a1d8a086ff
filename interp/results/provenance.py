"""The origin of a result: model, task, call, versions and commit."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from interp.core.errors import InterpError
from interp.core.files import json_text, versions
from interp.core.metrics import is_shipped
from interp.core.prompts import OWN, Task
from interp.core.records import Provenance
from interp.models.language_model import LanguageModel


def provenance(model: LanguageModel, task: Task, call: str) -> Provenance:
    """The origin of a measurement. `call` is Python code that repeats it.

    Objects that code cannot express, such as a user's own metric, are named in a comment (`OWN`).
    """
    dtype = str(model.dtype).removeprefix("torch.")
    extra = "" if dtype == "float32" else f", dtype={dtype!r}"
    source = task.source or "own_task"
    if not is_shipped(task.metric) and "own_metric" not in source:
        source += ".with_metric(own_metric)"
    lines = [f"model = interp.load_model({model.name!r}{extra})", call]
    if re.search(r"\btask\b", call):
        lines.insert(1, f"task = {source}")
    code = "\n".join(lines)
    notes = [
        f"# `{name}` is {what} of your own: define it first.\n"
        for name, what in OWN.items()
        if name in code
    ]
    return Provenance(
        model=model.name,
        model_hash=model.hash,
        dtype=dtype,
        task=task.name,
        task_hash=task.hash,
        seed=task.seed,
        versions=versions(),
        commit=commit(),
        call="".join(["import interp\n\n", *notes, code]),
    )


def resumed(path: Path | None, **settings: Any) -> dict[str, Any]:
    """What a script that saves after every stage has kept in a JSON file, with its settings.

    Raises:
        InterpError: the file was made with other settings, or does not tell them.
    """
    made = {"settings": json.loads(json_text(settings))}
    kept = json.loads(path.read_text()) if path is not None and path.exists() else made
    if kept.get("settings") != made["settings"]:
        raise InterpError(
            f"going on with {path}",
            f"its settings are {kept.get('settings', 'unknown')}, not {made['settings']}",
            "give another file, or remove this one",
        )
    return kept


@cache
def commit() -> str | None:
    """The git commit of the source, with "+" if it was changed; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(dirty) or None
