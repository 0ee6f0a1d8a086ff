"""What a change of weights does to a behaviour, to fluency, and to the heads that carried it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, rows_of
from interp.core.corpus import Corpus, shipped_passages, texts_in
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta
from interp.patching.joint import JointEffect, joint_patching
from interp.runs.losses import text_losses

PerPrompt = Callable[[LanguageModel], np.ndarray]
"""A number for each of some prompts, higher for more of the behaviour."""


_Measured = tuple[np.ndarray, JointEffect | InterpError | None, list[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Survival(Brief):
    """A behaviour before and after a change of weights.

    Attributes:
        name: the change.
        task: the task's name.
        before, after: mean of the metric on the clean prompts.
        change: mean of after minus before, paired by prompt.
        heads_before, heads_after: what the given heads carry of the gap between clean and
            corrupted prompts in the base and in the changed model, beside random heads of the same
            layers; None without heads. None after the change also if the changed model no longer
            tells clean from corrupted prompts: `no_gap` then says so.
        no_gap: why the heads of the changed model were not measured, or "".
        loss_before, loss_after: next-token loss of texts in nats per token; its exponential is the
            perplexity. None without texts.
        loss_change: after minus before, paired by text.
        divergence: Jensen-Shannon divergence of the two models' next-token distributions, in nats
            (0 to 0.693): a mean over the tokens of each text, then over texts.
    """

    name: str
    task: str
    before: Estimate
    after: Estimate
    change: Estimate
    heads_before: JointEffect | None = None
    heads_after: JointEffect | None = None
    no_gap: str = ""
    loss_before: Estimate | None = None
    loss_after: Estimate | None = None
    loss_change: Estimate | None = None
    divergence: Estimate | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.task} under {self.name}",
            f"  metric  {self.before} before, {self.after} after, change {self.change}",
        ]
        if self.heads_before is not None:
            lines += [f"  heads before  {self.heads_before}"]
            lines += [f"  heads after   {self.heads_after or self.no_gap}"]
        if self.loss_before is not None:
            lines += [f"  loss    {self.loss_before} before, change {self.loss_change}"]
            lines += [f"  Jensen-Shannon divergence {self.divergence}"]
        return "\n".join(lines)


@reads_arguments
def survival(
    model: LanguageModel,
    delta: WeightDelta,
    behaviour: Task | PerPrompt,
    *,
    heads: Sequence[str] = (),
    texts: Corpus | None = (),
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Survival:
    """Measure a behaviour, its heads and fluency in a model and in the changed model.

    Nothing is selected here: choose the heads on other prompts. A behaviour survives if its metric
    does. Its heads survive if, patched together, they still carry the share of the gap that they
    carried, and random heads do not. Positive supports the behaviour.

    Args:
        model: the base of the delta.
        delta: the change.
        behaviour: a task, whose metric is read on the clean prompts; or a function that gives a
            number for each prompt when it is called with the model.
        heads: labels such as L9H6, for `joint_patching`; needs a task with corrupted prompts.
        texts: for the loss; none by default, None for the shipped passages.
        draws: random sets of heads.
        seed: of the random sets.
        progress: called with (patched runs of the heads done, in total), both models together.

    Raises:
        InterpError: heads without a task, another base, or a gap in the base below its error.

    Source: after arXiv 2409.11233 (task metric, perplexity and Jensen-Shannon divergence of
    compressed models). The heads are our addition.
    """
    task = behaviour if isinstance(behaviour, Task) else None
    if heads and task is None:
        raise InterpError(
            "the heads of a behaviour", "it is a function", "give a task with corrupted prompts"
        )
    read = list(shipped_passages() if texts is None else texts_in(texts))

    half = (1 + draws) * len(task) if task else 0

    def measured(begun: int) -> _Measured:
        values = _metric(model, task) if task else np.asarray(behaviour(model), dtype=np.float64)  # type: ignore[operator]
        carried: JointEffect | InterpError | None = None
        if heads and task is not None:
            try:
                carried = joint_patching(
                    model, task, heads, draws=draws, seed=seed,
                    progress=lambda done, _: progress and progress(begun + done, 2 * half),
                )  # fmt: skip
            except InterpError as error:
                carried = error
        spread = _log_probabilities(model, read) if read else []
        return values, carried, spread, text_losses(model, read) if read else torch.empty(0)

    values, carried, spread, losses = measured(0)
    if isinstance(carried, InterpError):
        raise carried
    with delta.applied(model):
        new, still, other, later = measured(half)
    if values.shape != new.shape or values.ndim != 1:
        found = f"{values.shape} numbers before and {new.shape} after"
        raise InterpError(f"a behaviour under {delta.name}", found, "give a number for each prompt")
    facts = {}
    if read:
        facts = {
            "loss_before": mean_estimate(losses),
            "loss_after": mean_estimate(later),
            "loss_change": mean_estimate(later - losses),
            "divergence": mean_estimate(_divergences(spread, other)),
        }
    return Survival(
        name=delta.name,
        task=task.name if task else getattr(behaviour, "__name__", "behaviour"),
        before=mean_estimate(values),
        after=mean_estimate(new),
        change=mean_estimate(new - values),
        heads_before=carried,
        heads_after=None if isinstance(still, InterpError) else still,
        no_gap=str(still) if isinstance(still, InterpError) else "",
        **facts,
    )


def _metric(model: LanguageModel, task: Task) -> np.ndarray:
    """(n,) the task's metric on its clean prompts."""
    encoded = task.encode(model, strings=True)
    logits = model.tail_logits(encoded.targets.rows(encoded.clean))
    return task.metric(Logits(logits), encoded.targets).double().cpu().numpy()


@torch.no_grad()
def _log_probabilities(model: LanguageModel, texts: Sequence[object]) -> list[Tensor]:
    """(tokens, d_vocab) of each text, in float32."""
    rows, found = rows_of(model, texts), {}  # type: ignore[arg-type]
    for batch, logits in model.run(rows):
        for row, text in enumerate(batch.prompts.tolist()):
            begin, length = int(batch.first[row]), int(batch.lengths[row])
            found[text] = logits[row, begin : begin + length].float().log_softmax(-1)
    return [found[text] for text in range(len(rows))]


def _divergences(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """(texts,) the mean Jensen-Shannon divergence over the tokens of each text, in nats."""
    found = []
    for one, other in zip(left, right, strict=True):
        middle = torch.logaddexp(one, other) - np.log(2)
        first, second = ((x.exp() * (x - middle)).sum(-1) for x in (one, other))
        found.append((first + second).mean() / 2)
    return torch.stack(found).double()
