"""Measures of every head, over a set of prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.prompts import Task
from interp.core.records import read_sealed, write_sealed
from interp.core.run_options import Progress
from interp.core.statistics import ratio_of_means
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.overview.one_prompt import HEAD_METRICS, look
from interp.results.keys import result_key
from interp.results.provenance import provenance

DIRECT = "direct attribution"
KEPT = "numbers of prompts of "
KIND, VERSION = "head samples", 2


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSamples:
    """A measure of every head on the clean prompts of a task.

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

    def minus(self, other: HeadSamples) -> HeadSamples:
        """This measure minus the same one of another run of the same prompts, prompt by prompt.

        Both must be of one task: prompts are paired by their numbers.

        Raises:
            InterpError: models with other heads, or no prompt that both have.
        """
        both = sorted({*self.kept} & {*other.kept})
        shapes = [one.samples.shape[1:] for one in (self, other)]
        if shapes[0] != shapes[1] or not both:
            (layers, heads), (others, width) = shapes
            raise InterpError(
                "a difference of two measures of heads",
                f"{layers} x {heads} and {others} x {width} heads, {len(both)} prompts in common",
                "compare models of one shape on the same prompts",
            )
        mine, its = (one.samples[[one.kept.index(i) for i in both]] for one in (self, other))
        return HeadSamples(samples=mine - its, kept=tuple(both))


def head_samples(
    model: LanguageModel,
    task: Task,
    *,
    cache: bool = True,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, HeadSamples]:
    """Direct attribution and attention of every head, on each clean prompt of a task.

    "direct attribution" is what a head adds to the logit of the first answer minus that of the
    first wrong answer (by default the likeliest other token), in logits: see `direct_attribution`.
    The other measures are those of `Look.head_attention`. In place of "to chosen token" there is
    one for each named position: "to S2" is the weight from the last token to position S2.

    Args:
        model: a model with a fast engine.
        task: the prompts.
        cache: read a kept result, and keep a new one.
        progress: called with (prompts done, prompts in total).
        cancelled: asked in every layer; the work stops when it returns True.

    Returns:
        The measures by name; those that no prompt has are left out. Attention is a share from 0 to
        1, entropy in nats.

    Raises:
        InterpError: no fast engine, or prompts or answers that do not fit the model.
    """
    key = samples_key(model, task) if cache else None
    if key is not None and (kept := stored_samples(key)) is not None:
        return kept
    encoded = task.encode(model)
    names = {name: encoded.positions(name) for name in task.position_names}
    rows: dict[str, list[np.ndarray]] = {}
    numbers: dict[str, list[int]] = {}
    with stoppable(cancelled):
        for i, pair in enumerate(task.pairs):
            stop_if_asked()
            right, wrong = (
                None if not some else int(tokens[i, 0])
                for some, tokens in (
                    (pair.answers, encoded.targets.answers),
                    (pair.wrong, encoded.targets.wrong),
                )
            )
            seen = look(model, pair.clean, right, wrong)
            here = {DIRECT: seen.attribution().heads}
            here |= {f"to {name}": seen.head_attention(token=at[i]) for name, at in names.items()}
            for metric in HEAD_METRICS[1:]:
                if metric == "entropy" or seen.keys(metric).any():
                    here[metric] = seen.head_attention(metric)
            for metric, values in here.items():
                rows.setdefault(metric, []).append(values.astype(np.float32))
                numbers.setdefault(metric, []).append(i)
            if progress is not None:
                progress(i + 1, len(task))
    arrays = {metric: np.stack(some) for metric, some in rows.items()}
    if key is not None:
        kept_numbers = {f"{KEPT}{metric}": np.array(some) for metric, some in numbers.items()}
        try:
            origin = provenance(model, task, "found = interp.overview.head_samples(model, task)")
            facts = {"provenance": asdict(origin)}
            write_sealed(_path(key), KIND, VERSION, facts, arrays | kept_numbers, key=key)
        except InterpError as error:
            warnings.warn(f"the measures of heads are not kept: {error}", stacklevel=2)
    return {
        metric: HeadSamples(samples=samples.astype(float), kept=tuple(numbers[metric]))
        for metric, samples in arrays.items()
    }


def samples_key(model: LanguageModel, task: Task) -> str | None:
    """The key under which `head_samples` keeps its result; None if it cannot be kept."""
    return result_key(KIND, VERSION, model, task)


def stored_samples(key: str) -> dict[str, HeadSamples] | None:
    """The kept result of a key; None if there is none, or if its file is damaged."""
    try:
        _, arrays = read_sealed(_path(key), KIND, VERSION, key=key)
    except InterpError:
        return None
    return _read(arrays)


def load_samples(path: Path) -> dict[str, HeadSamples]:
    """A kept result of `head_samples`, by its file.

    Raises:
        InterpError: no such file, or a damaged one.
    """
    return _read(read_sealed(path, KIND, VERSION)[1])


def _read(arrays: Mapping[str, np.ndarray]) -> dict[str, HeadSamples]:
    return {
        metric: HeadSamples(
            samples=samples.astype(float), kept=tuple(arrays[f"{KEPT}{metric}"].tolist())
        )
        for metric, samples in arrays.items()
        if not metric.startswith(KEPT)
    }


def _path(key: str) -> Path:
    return cache_dir() / "heads" / f"{key}.safetensors"
