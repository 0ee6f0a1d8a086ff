"""A measurement made for a few prompts at a time by several processes, and kept part by part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from interp.core.arguments import Columns, as_positions
from interp.core.prompts import Task
from interp.core.run_options import RunOptions
from interp.engine.resume import Chunks
from interp.models.language_model import LanguageModel
from interp.results.keys import result_key
from interp.results.store import chunks_of, drop
from interp.runs.workers import each_with_model

FORM = 1

PART = 4
"""Prompts of a part. It does not depend on the number of processes, so that results do not."""


TaskPart = tuple[Task, Columns]
"""Some pairs of a task, and the positions asked for in them."""

PartWork = Callable[[LanguageModel, TaskPart], np.ndarray]
"""(prompts, numbers) measured on a part."""


def by_parts(
    work: PartWork,
    model: LanguageModel,
    task: Task,
    *,
    positions: Columns = "all",
    workers: int,
    options: RunOptions,
    chunks: Chunks | None = None,
) -> Iterator[np.ndarray]:
    """`work` on every part of a task, in order. Finished parts are kept as they are done.

    The same call goes on from the parts that a stopped one kept.

    Args:
        work: a function of the package, or a `partial` of one; its arguments are in the key.
        model: a model that `load_model` finds by its name.
        task: prompt pairs.
        positions: positions asked for in each pair.
        workers: number of processes.
        options: progress, called with parts, and cancelled, asked after every part.
        chunks: where parts are kept; by default under a key of these arguments, until all are done.

    Raises:
        InterpError: see `interp.runs.workers.spread`.
    """
    rows = np.array_split(np.arange(len(task)), range(PART, len(task), PART))
    do = partial(
        each_with_model,
        work,
        model,
        workers=workers,
        progress=options.progress,
        cancelled=options.cancelled,
    )
    own = chunks is None
    key = result_key("parts", FORM, model, task, work=work, positions=positions) if own else None
    with nullcontext(chunks) if chunks is not None else chunks_of(key) as kept:
        yield from in_order(
            rows, lambda left: do([_of(task, positions, one.tolist()) for one in left]), chunks=kept
        )
        if own:
            drop(kept)


def in_order(
    parts: Sequence[np.ndarray],
    do: Callable[[list[np.ndarray]], Iterator[tuple[int, np.ndarray]]],
    *,
    chunks: Chunks,
) -> Iterator[np.ndarray]:
    """The values of every part, in order; read if they are kept, else computed and kept.

    Args:
        parts: an array that identifies each part.
        do: computes some of the parts: (number among these, values), as they are done.
        chunks: where values are kept, under the number and the array of their part.
    """
    ready = {
        number: kept
        for number, part in enumerate(parts)
        if (kept := chunks.kept(number, len(part), of=part)) is not None
    }
    left = [number for number in range(len(parts)) if number not in ready]
    made = do([parts[number] for number in left])
    for number in range(len(parts)):
        while number not in ready:
            i, values = next(made)
            part = parts[left[i]]
            ready[left[i]] = chunks.once(left[i], len(part), lambda v=values: v, of=part)
        yield ready.pop(number)
    deque(made, maxlen=0)  # the last report of progress


def _of(task: Task, positions: Columns, rows: list[int]) -> TaskPart:
    """A part; of a list with a number for each pair, those of its pairs."""
    pairs = tuple(task.pairs[row] for row in rows)
    given = as_positions(positions)
    if isinstance(given, list) and not isinstance(given[0], str):
        given = [given[row] for row in rows]
    return replace(task, pairs=pairs), given
