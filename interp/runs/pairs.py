"""Clean and corrupted runs of a task side by side."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from interp.core.errors import InterpError, unknown
from interp.core.metrics import Targets
from interp.core.positions import first_difference
from interp.core.prompts import EncodedTask, Task
from interp.models.language_model import LanguageModel

PatchDirection = Literal["denoise", "noise"]


class NegativeGap(UserWarning):
    """The warning of a `negative_gap`."""


@dataclass(frozen=True, kw_only=True)
class PairedRuns:
    """The tokens of both runs of every pair: `base` is patched with values of `other`.

    If answers have several tokens, they lie behind the prompts (`interp.core.branches`).
    """

    base: list[tuple[int, ...]]
    other: list[tuple[int, ...]]
    differ: np.ndarray
    targets: Targets
    encoded: EncodedTask
    paired: bool = True

    @property
    def pairing(self) -> dict[str, bool]:
        """A fact for results: that the prompts have no corrupted ones; nothing if they have."""
        return {} if self.paired else {"paired": False}

    def texts(self, model: LanguageModel) -> list[str]:
        """The token at each position, clean/corrupted if they differ; "" if pairs differ in it."""
        columns: list[set[str]] = [set() for _ in min(self.encoded.clean, key=len)]
        for clean, other in zip(self.encoded.clean, self.encoded.corrupted or (), strict=True):
            pairs = zip(columns, model.strings(clean), model.strings(other), strict=False)
            for column, one, two in pairs:
                column.add(one if one == two else f"{one}/{two}")
        return [column.pop() if len(column) == 1 else "" for column in columns]


def paired_runs(
    model: LanguageModel,
    task: Task,
    direction: str,
    *,
    unpaired: bool = False,
    strings: bool = False,
) -> PairedRuns:
    """Both runs of every pair, as tokens, with the targets of the metric.

    With `unpaired`, the clean run stands for the other run if a prompt lacks a corrupted one. With
    `strings`, answers may have several tokens.

    Raises:
        InterpError: an unknown direction, or a task without corrupted prompts.
    """
    if direction not in ("denoise", "noise"):
        raise unknown("direction", direction, ("denoise", "noise"))
    encoded = task.encode(model, strings=strings)
    paired = encoded.corrupted is not None
    if not paired and unpaired:
        encoded = replace(encoded, corrupted=encoded.clean)
    if encoded.corrupted is None:
        raise InterpError(
            f"patching on {task.name}",
            "it has prompts without a corrupted counterpart",
            "give every pair a corrupted prompt, or ablate: activation_patching(source='zero', "
            "direction='noise', unit='metric')",
        )
    targets = encoded.targets
    if task.metric.needs_reference:
        reference = model.last_logits(encoded.clean).log_softmax(-1).cpu()
        targets = replace(targets, reference=reference)
    clean, corrupted = targets.rows(encoded.clean), targets.rows(encoded.corrupted)
    differ = np.array([first_difference(a, b) for a, b in zip(clean, corrupted, strict=True)])
    denoise = direction == "denoise"
    return PairedRuns(
        base=corrupted if denoise else clean,
        other=clean if denoise else corrupted,
        differ=differ,
        targets=targets,
        encoded=encoded,
        paired=paired,
    )


def refuse_equal(runs: PairedRuns, task: Task) -> None:
    """Refuse, by an `InterpError`, pairs whose two prompts have the same tokens."""
    lengths = np.array([len(prompt) for prompt in runs.base])
    same = np.flatnonzero(runs.differ == lengths)
    if len(same):
        raise InterpError(
            f"the pairs of {task.name}",
            f"clean and corrupted prompt are equal in {len(same)} of {len(lengths)}, "
            f"first in pair {same[0]}",
            "give every pair a corrupted prompt that differs, or leave it out",
        )


def check_gap(clean: np.ndarray, corrupted: np.ndarray) -> None:
    """Refuse two plain runs whose metrics do not differ; warn of a `negative_gap`.

    Raises:
        InterpError: the mean gap is zero or below its standard error, or every gap is rounding.
    """
    if (found := _no_gap(clean, corrupted)) is not None:
        raise InterpError(
            "an effect as a fraction of the clean-corrupted gap",
            found,
            "the model does not distinguish the prompts: check the task, use more prompts, or ask "
            "for effects in the metric's own unit (unit='metric')",
        )
    _warn_negative(clean, corrupted)


def warn_gap(clean: np.ndarray, corrupted: np.ndarray) -> None:
    """Warn of what `check_gap` refuses: effects in the metric's own unit exist without a gap."""
    if (found := _no_gap(clean, corrupted)) is not None:
        warnings.warn(f"the model does not distinguish the prompts: {found}", stacklevel=3)
    else:
        _warn_negative(clean, corrupted)


def negative_gap(clean: np.ndarray, corrupted: np.ndarray) -> str | None:
    """What a metric that is lower on the clean prompts means for its effects; None if it is not.

    A fraction of a negative gap is positive where patching lowers the metric.
    """
    gap = float((clean - corrupted).mean())
    if gap >= 0 or _no_gap(clean, corrupted) is not None:
        return None
    return (
        f"the metric is lower on the clean prompts than on the corrupted ones (gap {gap:z.3f}), so "
        "that a positive fraction of the gap works against the answers; check the task's answers, "
        "or whether clean and corrupted are exchanged"
    )


def _warn_negative(clean: np.ndarray, corrupted: np.ndarray) -> None:
    if (words := negative_gap(clean, corrupted)) is not None:
        warnings.warn(words, NegativeGap, stacklevel=4)


def _no_gap(clean: np.ndarray, corrupted: np.ndarray) -> str | None:
    """The gap in words if it is zero, below its standard error or rounding; otherwise None."""
    gaps = clean - corrupted
    rounding = 1e-5 * max(np.abs(clean).max(), np.abs(corrupted).max())
    error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    if abs(gaps.mean()) <= max(error, 1e-9) or np.abs(gaps).max() <= rounding:
        return f"gap {abs(gaps.mean()):z.4f} ± {error:z.4f} over {len(gaps)} prompts"
    return None
