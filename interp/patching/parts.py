"""A measurement made for a few prompts at a time by several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from interp.core.arguments import Columns, as_positions
from interp.core.prompts import Task
from interp.core.run_options import RunOptions
from interp.engine.resume import Chunks
from interp.models.language_model import LanguageModel
from interp.runs.workers import each_with_model

PART = 4
"""Prompts of a part. It does not depend on the number of processes, so that results do not."""


TaskPart = tuple[Task, Columns]
"""Some pairs of a task, and the positions asked for in them."""


def in_parts(
    work: Callable[[LanguageModel, TaskPart], np.ndarray],
    model: LanguageModel,
    task: Task,
    width: int,
    *,
    positions: Columns,
    workers: int,
    options: RunOptions,
    chunks: Chunks,
) -> np.ndarray:
    """(prompts, width) numbers: `work` on parts of a task, kept as they are done.

    Raises:
        InterpError: see `interp.runs.workers.spread`.
    """
    rows = np.array_split(np.arange(len(task)), range(PART, len(task), PART))
    found = np.zeros((len(task), width))
    left = []
    for number, part in enumerate(rows):
        kept = chunks.kept(number, len(part), of=part)
        if kept is None:
            left.append(number)
        else:
            found[part] = kept
    units = [_of(task, positions, rows[number].tolist()) for number in left]
    for i, values in each_with_model(
        work,
        model,
        units,
        workers=workers,
        progress=options.progress,
        cancelled=options.cancelled,
    ):
        number = left[i]
        part = rows[number]
        found[part] = chunks.once(number, len(part), lambda v=values: v, of=part)
    return found


def _of(task: Task, positions: Columns, rows: list[int]) -> TaskPart:
    """A part; of a list with a number for each pair, those of its pairs."""
    pairs = tuple(task.pairs[row] for row in rows)
    given = as_positions(positions)
    if isinstance(given, list) and not isinstance(given[0], str):
        given = [given[row] for row in rows]
    return replace(task, pairs=pairs), given
