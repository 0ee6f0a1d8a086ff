"""Measures of every head's attention, over a set of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.statistics import ratio_of_means
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.overview.one_prompt import HEAD_METRICS, look


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSamples:
    """A measure of every head's attention on the clean prompts of a task.

    Attributes:
        samples: (n, layer, head) its value on each prompt that has one.
        kept: (n,) the numbers of those prompts. The others have no such key, e.g. because none of
            their tokens occurs twice.
    """

    samples: np.ndarray
    kept: tuple[int, ...]

    def __repr__(self) -> str:
        _, layers, heads = self.samples.shape
        return f"HeadSamples({layers} layers x {heads} heads, n={len(self.kept)})"

    @property
    def values(self) -> np.ndarray:
        """(layer, head) mean over the prompts."""
        return self.samples.mean(0)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of `values` (`ratio_of_means`): (low, high), infinite for one prompt."""
        found = ratio_of_means(self.samples)
        return found.low, found.high


def head_samples(
    model: LanguageModel,
    task: Task,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, HeadSamples]:
    """Every measure of `Look.head_attention`, on each clean prompt of a task.

    In place of "to chosen token" there is a measure for each named position of the task: "to S2" is
    the attention weight from the last token to position S2.

    Args:
        model: a model with a fast engine.
        task: the prompts.
        progress: called with (prompts done, prompts in total).
        cancelled: asked in every layer; the work stops when it returns True.

    Returns:
        The measures by name; those that no prompt has are left out. Attention is a share from 0 to
        1, entropy in nats.

    Raises:
        InterpError: no fast engine, or prompts that do not fit the model.
    """
    encoded = task.encode(model)
    keys = {name: encoded.positions(name) for name in task.position_names}
    found: dict[str, list[np.ndarray]] = {}
    kept: dict[str, list[int]] = {}
    with stoppable(cancelled):
        for i, tokens in enumerate(encoded.clean):
            stop_if_asked()
            seen = look(model, tokens)
            here = {f"to {name}": seen.head_attention(token=at[i]) for name, at in keys.items()}
            for metric in HEAD_METRICS[1:]:
                if metric == "entropy" or seen.keys(metric).any():
                    here[metric] = seen.head_attention(metric)
            for metric, values in here.items():
                found.setdefault(metric, []).append(values.astype(float))
                kept.setdefault(metric, []).append(i)
            if progress is not None:
                progress(i + 1, len(task))
    return {
        metric: HeadSamples(samples=np.stack(rows), kept=tuple(kept[metric]))
        for metric, rows in found.items()
    }
