"""Neurons found by the tokens that they write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from torch.nn.functional import normalize

from interp.core.arguments import listed, reads_arguments
from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.statistics import widened
from interp.models.language_model import LanguageModel
from interp.models.unembedding import NeuronMetric, written_vectors


@dataclass(frozen=True, kw_only=True)
class FoundNeuron:
    """A neuron that promotes or suppresses some words.

    Attributes:
        layer: its layer.
        index: its number.
        score: its score.
        logits: the logit of each word minus the mean over the vocabulary.
        ranks: the rank of each word among all tokens; 1 is the most promoted token, with sign=-1
            the most suppressed.
    """

    layer: int
    index: int
    score: float
    logits: tuple[float, ...]
    ranks: tuple[int, ...]


@reads_arguments
def search_neurons(
    model: LanguageModel,
    words: str | int | Sequence[str | int],
    *,
    k: int = 20,
    sign: int = 1,
    layers: Iterable[int] | None = None,
    metric: NeuronMetric = "zscore",
) -> list[FoundNeuron]:
    """The k neurons that promote some words most or, with sign=-1, suppress them most.

        logit_t = U[t] . x_li,   x_li = w * v_li,   U = W_U minus its mean over the vocabulary

        zscore:  score = mean_t logit_t / root mean square of logit over the whole vocabulary
        cosine:  score = mean_t cos(x_li, U[t])
        dot:     score = mean_t logit_t

    Means are over the words' tokens t. v_li is the neuron's output weight vector, its row of the
    down projection. w is the final norm's weight, and a final LayerNorm centres v first: x_li is
    what the unembedding reads. A change that raises all tokens equally does not affect a score. The
    z-score says how far the words stand out among all tokens, in standard deviations. "cosine" and
    "dot" ignore other words: the top neurons may promote other words more.

    With a post-norm after the MLP, v is also multiplied by this norm's weight. This is what the
    neuron adds to the stream, up to a positive factor that depends on the prompt. Z-scores, cosines
    and ranks do not depend on the factor; "dot" and `logits` omit it.

    Args:
        model: a model with a known architecture.
        words: words of one token each, or token ids.
        k: number of neurons.
        sign: 1 for neurons that promote the words, -1 for neurons that suppress them.
        layers: layers searched; all by default.
        metric: "zscore", "cosine" or "dot".

    Raises:
        InterpError: an unknown architecture, no words or a word of several tokens, k out of range,
            a sign other than 1 or -1, or an unknown metric.
    """
    decoder = model.require_decoder("searching neurons")
    chosen = within(layers, model.n_layers, "layer", model.name)
    ids = [model.single_token(word) for word in listed(words)]
    if not ids or sign not in (1, -1) or not 1 <= k <= len(chosen) * model.d_mlp:
        asked = f"searching {len(ids)} words, k={k}, sign={sign}"
        found = f"{len(chosen)} layers of {model.d_mlp} neurons"
        raise InterpError(asked, found, "give words, k up to their number, sign 1 or -1")
    if metric not in get_args(NeuronMetric):
        raise unknown("metric", metric, get_args(NeuronMetric))
    unembed = widened(decoder.unembed)
    centre = unembed.mean(0)
    rows = unembed[ids] - centre
    # The mean square of all logits of v is v C^T C v / d_vocab.
    gram = unembed.T @ unembed / len(unembed) - centre[:, None] * centre
    best: list[tuple[float, int, int]] = []
    for layer in chosen:
        values = written_vectors(decoder, layer)
        if metric == "cosine":
            scores = (normalize(values, dim=-1) @ normalize(rows, dim=-1).T).mean(-1)
        else:
            scores = (values @ rows.T).mean(-1)
        if metric == "zscore":
            spread = ((values @ gram) * values).sum(-1).clamp(min=1e-30).sqrt()
            scores = scores / spread
        top = (sign * scores).topk(min(k, len(scores)))
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        best = sorted([*best, *((-score, layer, index) for score, index in pairs)])[:k]
    entries = []
    for score, layer, index in best:
        logits = (unembed - centre) @ written_vectors(decoder, layer)[index]
        ranks = [1 + int((sign * logits > sign * logits[token]).sum()) for token in ids]
        entries.append(
            FoundNeuron(
                layer=layer,
                index=index,
                score=-sign * score,
                logits=tuple(logits[ids].tolist()),
                ranks=tuple(ranks),
            )
        )
    return entries
