"""Read directions of the residual stream as tokens, with the unembedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.statistics import widened
from interp.engine.architecture import Decoder
from interp.models.language_model import LanguageModel
from interp.plots.style import visible
from interp.plots.tables import Listing

BLOCK = 2**23
"""Number of logits in memory at once."""

NeuronMetric = Literal["zscore", "cosine", "dot"]


class Token(NamedTuple):
    """A token of the vocabulary, with a probability or a logit."""

    token: int
    text: str
    value: float

    @property
    def label(self) -> str:
        """The text with visible spaces."""
        return visible(self.text)


def likeliest(model: LanguageModel, logits: Tensor, k: int) -> Listing[Token]:
    """The k likeliest tokens of logits (d_vocab,), with their probabilities."""
    top = widened(logits).softmax(-1).topk(min(k, len(logits)))
    ids = top.indices.tolist()
    found = zip(ids, model.strings(ids), top.values.tolist(), strict=True)
    return Listing([Token(*each) for each in found], "probability")


@dataclass(frozen=True, kw_only=True)
class Unembedded:
    """The tokens whose logits a direction raises most and lowers most, strongest first."""

    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]

    def __str__(self) -> str:
        raises, lowers = (
            " ".join(token.label for token in some[:5]) for some in (self.promoted, self.suppressed)
        )
        return f"raises {raises}; lowers {lowers}"


@torch.no_grad()
@reads_arguments
def unembed(
    model: LanguageModel, vectors: Tensor, *, k: int = 10, norm: bool = False
) -> list[Unembedded]:
    """The tokens whose logits directions of the residual stream raise and lower most.

        logits(v) = W_U v,   or with `norm`   W_U (weight_final * v)

    With `norm`, a LayerNorm also centres v first. The norm's scale and the soft cap are not
    applied: they belong to a whole residual stream, not to a single direction.

    `vectors` are (n, d_model), or (d_model,) for one direction. k tokens of each sign are given.

    Raises:
        InterpError: the engine cannot run the model, the vectors have another width or are not
            finite, or k is out of range.
    """
    decoder = model.require_decoder("unembedding")
    check_k(k, decoder)
    vectors = torch.atleast_2d(torch.as_tensor(vectors))
    if vectors.dim() != 2 or vectors.shape[-1] != decoder.d_model:
        raise InterpError(
            f"unembedding shape {tuple(vectors.shape)}",
            f"{model.name} has d_model {decoder.d_model}",
            "give (n, d_model) vectors",
        )
    if not bool(torch.isfinite(vectors).all()):
        raise InterpError("unembedding", "values that are not finite", "check the vectors")
    found: list[Unembedded] = []
    for block in vectors.split(max(1, BLOCK // decoder.d_vocab)):
        block = block.to(decoder.unembed)
        if norm:
            if decoder.ln_final.centred:
                block = block - block.mean(-1, keepdim=True)
            block = (block * decoder.ln_final.weight).to(decoder.unembed)
        logits = widened(block @ decoder.unembed.T)
        found += strongest_tokens(model, logits, k)
    return found


def logit_direction(model: LanguageModel, tokens: Sequence[int], wrong: Sequence[int]) -> Tensor:
    """(d_model,) the direction of the stream that raises some logits over others, learnt from none.

        u = weight_final * (mean W_U[tokens] - mean W_U[wrong])

    centred if the final norm centres. Added to the last layer's stream it changes the difference of
    the mean logits in proportion to |u|^2, so it moves an answer without any knowledge of what
    decides it. It is the control of a learnt direction that changes the same answer.

    Raises:
        InterpError: the engine cannot run the model, or no tokens on one side.
    """
    decoder = model.require_decoder("the direction of two answers")
    if not len(tokens) or not len(wrong):
        found = f"{len(tokens)} tokens against {len(wrong)}"
        raise InterpError("the direction of two answers", found, "give tokens of both")
    rows = widened(decoder.unembed)
    u = (rows[list(tokens)].mean(0) - rows[list(wrong)].mean(0)) * widened(decoder.ln_final.weight)
    return u - u.mean() if decoder.ln_final.centred else u


def strongest_tokens(model: LanguageModel, values: Tensor, k: int) -> list[Unembedded]:
    """The k tokens with the largest and with the smallest values, of each row of (n, d_vocab)."""
    check_k(k, model.require_decoder("ranking tokens"))
    text = cache(lambda token: model.strings([token])[0])

    def strongest(sign: int) -> Iterator[tuple[Token, ...]]:
        top = (sign * values).topk(k, dim=-1)
        for ids, row in zip(top.indices.tolist(), (sign * top.values).tolist(), strict=True):
            yield tuple(Token(i, text(i), v) for i, v in zip(ids, row, strict=True))

    rows = zip(strongest(1), strongest(-1), strict=True)
    return [Unembedded(promoted=high, suppressed=low) for high, low in rows]


def written_vectors(decoder: Decoder, layer: int) -> Tensor:
    """(neuron, d_model) output weights of each neuron, with the weights of the norms applied."""
    block = decoder.blocks[layer]
    values = widened(block.neurons.down.weight)
    for norm in (block.ln2_post, decoder.ln_final):
        if norm is not None:
            values = values - values.mean(-1, keepdim=True) if norm.centred else values
            values = values * widened(norm.weight)
    return values


def check_k(k: int, decoder: Decoder) -> None:
    """Refuse a number of tokens that the vocabulary does not have."""
    if not 1 <= k <= decoder.d_vocab:
        raise InterpError(
            f"the top {k} tokens",
            f"the vocabulary has {decoder.d_vocab} tokens",
            "choose a smaller k, from 1",
        )
