"""`OutputSignature`: what the output distributions alone tell, the grey-box baseline of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, texts_of
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Count, checked
from interp.core.statistics import widened
from interp.engine.memory import says_too_little
from interp.models.batches import Batch
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    from pandas import DataFrame

LEAST = 1e-30
"""Probabilities below this count as this, so that their logarithm is finite."""


@dataclass(frozen=True, kw_only=True)
class OutputSignature(Tabled):
    """The output distribution after every token of n prompts, without which tokens are likely.

    Attributes:
        model: the model's name.
        top: (n, positions, k) the k largest probabilities of the next token, in descending order.
        written: (n, positions) probability of the token that comes next in the prompt.
        rank: (n, positions) 2 (0.5 - r / V) of that token, r = 0 for the likeliest of V tokens: 1
            for the likeliest, -1 for the least likely.
        lengths: (n,) tokens of each prompt. Positions from there on are 0, as are `written` and
            `rank` at the last token, after which nothing comes.
    """

    model: str
    top: Tensor
    written: Tensor
    rank: Tensor
    lengths: Tensor

    def __repr__(self) -> str:
        n, _, k = self.top.shape
        return f"OutputSignature({self.model}, {n} prompts, {k} probabilities a token)"

    def vectors(self) -> Tensor:
        """(n, 2 k + 2) features of a prompt for a probe: nothing else of the model is read.

        The logarithms of `top` after the last token; their means over the tokens; and the means
        over the written tokens of log P(written) and of `rank` (0 for prompts of one token).
        """
        logs = self.top.clamp(min=LEAST).log()
        steps = torch.arange(logs.shape[1])
        real = (steps < self.lengths[:, None]).double()
        before = (steps < self.lengths[:, None] - 1).double()
        rows = torch.arange(len(logs))
        each = before.sum(1).clamp(min=1)
        parts = (
            logs[rows, self.lengths - 1],
            (logs * real[..., None]).sum(1) / real.sum(1, keepdim=True),
            ((self.written.clamp(min=LEAST).log() * before).sum(1) / each)[:, None],
            ((self.rank * before).sum(1) / each)[:, None],
        )
        return torch.cat(parts, 1)

    def to_dataframe(self) -> DataFrame:
        """One row per token of a prompt, with its probability, its rank and the likeliest one's."""
        from pandas import DataFrame

        rows = [
            {
                "prompt": i,
                "position": at,
                "likeliest": float(self.top[i, at, 0]),
                "written": float(self.written[i, at]) if at + 1 < length else None,
                "rank": float(self.rank[i, at]) if at + 1 < length else None,
            }
            for i, length in enumerate(self.lengths.tolist())
            for at in range(length)
        ]
        return DataFrame(rows)


@reads_arguments
@says_too_little
def output_signature(
    model: LanguageModel, prompts: Task | Prompt | Sequence[Prompt], *, k: int = 50
) -> OutputSignature:
    """What the output distributions of a model tell about its prompts, for a grey-box baseline.

    A probe of activations shows something internal only if it beats a probe of
    `OutputSignature.vectors()` on the same held-out rows (`HeldOutProbes.minus`): what the outputs
    already tell needs no access to the inside. Which tokens are likely is not read, so that the
    baseline is no probe of the last layer. Inside `interp.intervene` the signature is that of the
    changed model.

    Args:
        model: a loaded model.
        prompts: texts, token tuples, or a task (its clean prompts).
        k: number of probabilities kept for each token; at most the size of the vocabulary.

    Raises:
        InterpError: no prompts, k out of range, or logits that are not finite.

    Departs from the source, which feeds all tokens to a transformer: here they are averaged, and
    the last one is kept, so that a probe of a few hundred prompts can be fitted.
    Source: LLM Output Signatures, arXiv 2503.14043.
    """
    return states_and_signature(model, prompts, layers=(), k=k)[1]


def states_and_signature(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    *,
    layers: Sequence[int],
    k: int,
    every: bool = False,
) -> tuple[Tensor, OutputSignature]:
    """One run: (layer, n, d_model) resid_post at the last token, and the signature.

    With `every`, the states are those of all tokens, (layer, n, positions, d_model), 0 behind a
    prompt's last one.

    Raises:
        InterpError: as in `output_signature`, or no such layer.
    """
    k, texts = checked(Count, k, "the probabilities of a signature"), texts_of(prompts)
    if not texts or k > model.d_vocab:
        found = f"{len(texts)} prompts, k={k}, a vocabulary of {model.d_vocab}"
        raise InterpError("an output signature", found, "give prompts, and k of at most that size")
    chosen = within(layers, model.n_layers, "layer", model.name) if layers else []
    rows = [model.tokenize(text).tokens for text in texts]
    n, longest = len(rows), max(map(len, rows))
    states = torch.zeros(len(chosen), n, *([longest] if every else []), model.d_model)
    top = torch.zeros(n, longest, k, dtype=torch.float64)
    written, rank = torch.zeros(2, n, longest, dtype=torch.float64)

    def keeper(at: int):
        def keep(value: Tensor, batch: Batch) -> Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                length = int(batch.lengths[row])
                last = batch.column(row, length - 1)
                if every:
                    seen = value[row, last + 1 - length : last + 1]
                    states[at, prompt, :length] = seen.detach().float().cpu()
                else:
                    states[at, prompt] = value[row, last].detach().float().cpu()
            return value

        return keep

    hooks = {(layer, "resid_post"): [keeper(at)] for at, layer in enumerate(chosen)}
    with torch.no_grad():
        for batch, logits in model.run(rows, hooks=hooks):
            for row, prompt in enumerate(batch.prompts.tolist()):
                start, length = int(batch.first[row]), int(batch.lengths[row])
                likely = widened(logits[row, start : start + length]).softmax(-1)
                if not likely.isfinite().all():
                    found = "logits that are not finite"
                    raise InterpError(f"an output signature of {model.name}", found, "check it")
                top[prompt, :length] = likely.topk(k).values.double().cpu()
                after = batch.tokens[row, start + 1 : start + length]
                mine = likely[:-1].gather(1, after[:, None])
                above = (likely[:-1] > mine).sum(-1)
                written[prompt, : length - 1] = mine[:, 0].double().cpu()
                rank[prompt, : length - 1] = 1 - 2 * above.double().cpu() / likely.shape[-1]
    lengths = torch.from_numpy(np.array([len(row) for row in rows]))
    return states, OutputSignature(
        model=model.name, top=top, written=written, rank=rank, lengths=lengths
    )
