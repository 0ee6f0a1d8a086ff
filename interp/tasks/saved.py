"""A user's own tasks, kept in the cache folder under a name that ends in a hash of their pairs."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from interp.core.errors import InterpError
from interp.core.files import cache_dir, write_atomically
from interp.core.prompts import Task

NAME = re.compile(r"([a-z][a-z0-9-]{0,39})-([0-9a-f]{16})")
"""A name and a hash."""

MOST_PAIRS = 512
MOST_BYTES = 1_000_000
MOST_KEPT = 2_000
"""Tasks that are kept; those not loaded for the longest time are removed."""


def save_task(task: Task, name: str = "own") -> Task:
    """Keep the pairs of a task, so that `interp.load_task` and the command line load them by name.

    The file is `tasks/NAME-HASH.jsonl` in the cache folder, in the format of `Task.from_jsonl`. The
    hash is that of its content: other pairs have another name, and only who knows the pairs or the
    name finds the file.

    Args:
        task: prompt pairs. Their metric is not kept: it is logit_diff with wrong answers, else
            log_odds; if `load_task` gets a model in which an answer has several tokens, it is
            log_prob_diff or log_prob.
        name: lower-case letters, digits and hyphens, at most 40.

    Returns:
        The task as `load_task` loads it, under its name with the hash.

    Raises:
        InterpError: the name has other characters, there are too many pairs or too much text,
            texts and token ids are mixed, or the cache folder cannot be written.
    """
    content = task.to_jsonl().encode()
    whole = f"{name}-{_hash(content)}"
    if NAME.fullmatch(whole) is None:
        do = "start with a letter; use at most 40 lower-case letters, digits and hyphens"
        raise InterpError(f"a task named {name!r:.60}", "not a name for a file and a link", do)
    if len(task) > MOST_PAIRS or len(content) > MOST_BYTES:
        found = f"{len(task)} pairs, {len(content)} bytes"
        do = f"keep at most {MOST_PAIRS} pairs and {MOST_BYTES} bytes, or use a file of your own"
        raise InterpError(f"saving task {name!r}", found, do)
    path = saved_path(whole)
    write_atomically(path, lambda part: part.write_bytes(content))
    for old in sorted(path.parent.glob("*.jsonl"), key=_last_used)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)
    return load_saved(whole)


def load_saved(name: str) -> Task:
    """The task that was saved under a name.

    Raises:
        InterpError: there is none here, or its file was changed.
    """
    path = saved_path(name)
    if not path.is_file() or not name.endswith(_hash(path.read_bytes())):
        found = "its file was changed" if path.is_file() else "not saved in this cache folder"
        do = "save its prompts again, or read a copy of the file by interp.Task.from_jsonl"
        raise InterpError(f"task {name!r}", found, do)
    with suppress(OSError):
        os.utime(path)
    return Task.from_jsonl(path)


def saved_path(name: str) -> Path:
    """The file of a saved task."""
    return cache_dir() / "tasks" / f"{name}.jsonl"


def is_saved_name(name: str) -> bool:
    """Whether this is the form of a saved task's name, which no other task has."""
    return NAME.fullmatch(name) is not None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another process removed it
