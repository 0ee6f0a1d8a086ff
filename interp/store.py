"""Finished results by the hash of what was asked, shared by notebook, command line and app."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

from interp.errors import InterpError
from interp.files import cache_dir
from interp.scores import Scores


def result_path(key: str) -> Path:
    """Where the result of a key is kept."""
    return cache_dir() / "results" / f"{key}.safetensors"


def partial_dir(key: str) -> Path:
    """Where an unfinished sweep keeps its chunks."""
    return cache_dir() / "partial" / key


def stored(key: str) -> Scores | None:
    """The result of a key, or None. A damaged file counts as none: it is computed again."""
    try:
        return Scores.load(result_path(key))
    except InterpError:
        return None


def keep(key: str, scores: Scores, *, chunks: str | None = None) -> None:
    """Save a finished result and drop its chunks; where saving fails, say so and drop nothing."""
    try:
        scores.save(result_path(key))
    except InterpError as error:
        warnings.warn(f"the result is not kept: {error}", stacklevel=2)
        return
    if chunks is not None:
        shutil.rmtree(partial_dir(chunks), ignore_errors=True)


@cache
def commit() -> str | None:
    """The git commit of the source tree, "+" if it was changed; None for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None
