"""The residual stream and directions in it read as tokens; neurons found by tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from interp.ablated_runs import AblatedRuns
from interp.capture import run_with_cache
from interp.components import within
from interp.errors import InterpError, unknown
from interp.inputs import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.kept_runs import KeptRuns
from interp.metrics import Estimate, mean_estimate, widened
from interp.models.architecture import Decoder
from interp.models.language_model import LanguageModel
from interp.prompts import Prompt, Task

if TYPE_CHECKING:
    from pandas import DataFrame

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""The sites a lens can be held to: states of the residual stream, not what is added to it."""

BLOCK = 2**23
"""Logits held at once."""


Metric = Literal["zscore", "cosine", "dot"]


class Token(NamedTuple):
    """A token of the vocabulary with a probability or a logit."""

    token: int
    text: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Next-token probabilities read from the residual stream, averaged over samples.

    sites, layers, groups: the labels of the axes. n: samples of each group. group_of: (sample,)
    the group of each. tokens: (sample,) the token id at the position that was read.
    top_tokens, top_mean, top_stderr: (site, layer, group, k), the tokens of highest mean
    probability, that mean and its standard error (infinite for a single sample).
    words: the watched tokens. word_probability, word_rank: (site, layer, sample, word); rank 1
    is the most likely token of the sample.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    groups: tuple[str, ...]
    n: tuple[int, ...]
    group_of: Tensor
    tokens: tuple[int, ...]
    top_tokens: Tensor
    top_mean: Tensor
    top_stderr: Tensor
    words: tuple[str | int, ...]
    word_probability: Tensor
    word_rank: Tensor
    strings: Mapping[int, str]

    def top(self, layer: int, *, site: str | None = None, group: str | None = None) -> list[Token]:
        """The tokens of highest mean probability at a layer, the highest first.

        Raises:
            InterpError: a layer, site or group the lens was not held to.
        """
        cell = self._cell(layer, site, group)
        ids, means = self.top_tokens[cell].tolist(), self.top_mean[cell].tolist()
        return [Token(i, self.strings[i], mean) for i, mean in zip(ids, means, strict=True)]

    def probability(
        self, word: str | int, layer: int, *, site: str | None = None, group: str | None = None
    ) -> Estimate:
        """Mean probability of a watched word over a group's samples, with Student's t interval."""
        return self._estimate(self.word_probability, word, layer, site, group)

    def rank(
        self, word: str | int, layer: int, *, site: str | None = None, group: str | None = None
    ) -> Estimate:
        """Mean rank of a watched word over a group's samples, with Student's t interval."""
        return self._estimate(self.word_rank, word, layer, site, group)

    def to_dataframe(self) -> DataFrame:
        """One row for each site, layer, group and place among the top tokens."""
        from pandas import DataFrame

        rows = []
        for site, layer, (g, group) in product(self.sites, self.layers, enumerate(self.groups)):
            errors = self.top_stderr[self._cell(layer, site, group)].tolist()
            top = self.top(layer, site=site, group=group)
            for place, (token, stderr) in enumerate(zip(top, errors, strict=True)):
                where = {"site": site, "layer": layer, "group": group, "n": self.n[g]}
                what = {"place": place + 1, "token": token.token, "text": token.text}
                rows.append({**where, **what, "probability": token.value, "stderr": stderr})
        return DataFrame(rows)

    def words_to_dataframe(self) -> DataFrame:
        """One row for each site, layer, group and watched word, with 95 % intervals."""
        from pandas import DataFrame

        rows = []
        for site, layer, group, word in product(self.sites, self.layers, self.groups, self.words):
            row = {"site": site, "layer": layer, "group": group, "word": word}
            for name, measured in (("probability", self.probability), ("rank", self.rank)):
                e = measured(word, layer, site=site, group=group)
                row |= {"n": e.n, name: e.mean, f"{name}_low": e.low, f"{name}_high": e.high}
            rows.append(row)
        return DataFrame(rows)

    def _cell(self, layer: int, site: str | None, group: str | None) -> tuple[int, int, int]:
        site = self.sites[0] if site is None else site
        if group is None:
            group, *others = self.groups
            if others:
                found = f"groups {', '.join(self.groups)}"
                raise InterpError("the lens of all samples", found, "name one of them")
        for kind, name, known in (
            ("lens site", site, self.sites),
            ("lens layer", str(layer), [str(layer) for layer in self.layers]),
            ("lens group", group, self.groups),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        return self.sites.index(site), self.layers.index(layer), self.groups.index(group)

    def _estimate(
        self, values: Tensor, word: str | int, layer: int, site: str | None, group: str | None
    ) -> Estimate:
        s, j, g = self._cell(layer, site, group)
        if word not in self.words:
            raise unknown("watched word", str(word), [str(known) for known in self.words])
        return mean_estimate(values[s, j, self.group_of == g, self.words.index(word)])


@reads_arguments
def logit_lens(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions = "last",
    *,
    sites: str | Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    k: int = 10,
    words: str | int | Sequence[str | int] = (),
    groups: Sequence[Hashable] | None = None,
    budget_gb: float = 2.0,
    runs: KeptRuns | AblatedRuns | None = None,
) -> Lens:
    """What the model would say next if it stopped at a layer, averaged over prompts.

        p_l = softmax(W_U norm_final(h_l)),   reported: mean over samples of p_l, not p of the mean

    h_l is the residual stream at one position of each prompt. Biases and a soft cap of the final
    logits are the model's own, so at resid_post of the last layer p is its next-token
    distribution. Inside `intervene` the lens is that of the changed run. Samples go through the
    unembedding in blocks, so that memory does not grow with their number.

    Args:
        model: a model whose parts are known.
        prompts: texts, token tuples or a task (its clean prompts).
        positions: one token of each prompt: see `interp.inputs.Positions`.
        sites: of resid_pre, resid_mid, resid_post.
        layers: all by default.
        k: top tokens kept of each mean distribution.
        words: tokens to follow, as text of exactly one token (with its leading space, if it has
            one) or as an id; each spelling is a word of its own.
        groups: one label per prompt, such as valid and invalid: means are within groups.
        budget_gb: the most the captured residuals may take.
        runs: read them in these runs of the prompts, as in `run_with_cache`.

    Raises:
        InterpError: unknown parts (the reason is given), a site that is not a state of the
            stream, a position a prompt lacks, a word of several tokens, k or groups out of size.

    Sources: nostalgebraist 2020, "interpreting GPT: the logit lens"; the mean of probabilities as
        in Lee et al. 2025 (arXiv 2504.14379).
    """
    decoder = model.require_decoder("a logit lens")
    texts, sites, words = texts_of(prompts), listed(sites), listed(words)
    if not sites or (wrong := [site for site in sites if site not in STREAM]):
        found = ", ".join(map(str, wrong)) if sites else "no sites"
        raise InterpError("a logit lens", found, f"read states of the stream: {', '.join(STREAM)}")
    _check_k(k, decoder)
    sites = tuple(dict.fromkeys(sites))
    chosen = within(layers, model.n_layers, "layer", model.name)
    ids = [model.single_token(word) for word in words]
    member, names = _members(groups, len(texts))
    rows = [model.tokenize(text) for text in texts]
    at = places_of(positions, rows, marks_of(prompts))
    seen = run_with_cache(
        model,
        texts,
        sites=sites,
        layers=chosen,
        positions=at,
        budget_gb=budget_gb,
        runs=runs,
    )
    with torch.no_grad():
        cells = [
            _read(decoder, seen[layer, site], member, k=k, ids=ids)
            for site in sites
            for layer in chosen
        ]
    grid = (len(sites), len(chosen))
    tokens, mean, stderr, probability, rank = (
        torch.stack(parts).unflatten(0, grid) for parts in zip(*cells, strict=True)
    )
    shown = tokens.unique().tolist()
    return Lens(
        sites=sites,
        layers=tuple(chosen),
        groups=names,
        n=tuple(member.bincount().tolist()),
        group_of=member,
        tokens=tuple(row.tokens[place] for row, place in zip(rows, at, strict=True)),
        top_tokens=tokens,
        top_mean=mean,
        top_stderr=stderr,
        words=tuple(words),
        word_probability=probability,
        word_rank=rank,
        strings=dict(zip(shown, model.strings(shown), strict=True)),
    )


@dataclass(frozen=True, kw_only=True)
class Unembedded:
    """The tokens a direction adds most to, largest first, and takes most from, lowest first."""

    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]


@reads_arguments
def unembed(
    model: LanguageModel, vectors: Tensor, *, k: int = 10, norm: bool = False
) -> list[Unembedded]:
    """Directions of the residual stream read as tokens, both signs.

        logits(v) = W_U v,   or with `norm`   W_U (weight_final * v)

    With `norm`, a LayerNorm also centres v first. The norm's scale, the unembedding's bias and
    any soft cap are left out: they belong to a state, and a direction is none.

    Args:
        model: a model whose parts are known.
        vectors: (n, d_model), or one (d_model,).
        k: tokens of each sign.
        norm: apply the final norm's weight.

    Raises:
        InterpError: unknown parts, a wrong width, values that are not finite, or k out of range.
    """
    decoder = model.require_decoder("unembedding")
    _check_k(k, decoder)
    vectors = torch.atleast_2d(torch.as_tensor(vectors))
    if vectors.dim() != 2 or vectors.shape[-1] != decoder.d_model:
        raise InterpError(
            f"unembedding shape {tuple(vectors.shape)}",
            f"{model.name} has d_model {decoder.d_model}",
            "give (n, d_model) vectors",
        )
    if not bool(torch.isfinite(vectors).all()):
        raise InterpError("unembedding", "values that are not finite", "check the vectors")
    best: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], -1: []}
    with torch.no_grad():
        for block in vectors.split(max(1, BLOCK // decoder.d_vocab)):
            block = block.to(decoder.unembed)
            if norm:
                if decoder.ln_final.centred:
                    block = block - block.mean(-1, keepdim=True)
                block = (block * decoder.ln_final.weight).to(decoder.unembed)
            logits = widened(block @ decoder.unembed.T)
            for sign, kept in best.items():
                top = (sign * logits).topk(k, dim=-1)
                kept.append((top.indices.cpu(), sign * top.values.cpu()))
    ids = {sign: torch.cat([i for i, _ in kept]) for sign, kept in best.items() if kept}
    if not ids:
        return []
    shown = torch.cat(list(ids.values())).unique().tolist()
    strings = dict(zip(shown, model.strings(shown), strict=True))
    listed: dict[int, list[tuple[Token, ...]]] = {}
    for sign, kept in best.items():
        values = torch.cat([v for _, v in kept]).tolist()
        listed[sign] = [
            tuple(Token(i, strings[i], v) for i, v in zip(row, value, strict=True))
            for row, value in zip(ids[sign].tolist(), values, strict=True)
        ]
    pairs = zip(listed[1], listed[-1], strict=True)
    return [Unembedded(promoted=high, suppressed=low) for high, low in pairs]


@dataclass(frozen=True, kw_only=True)
class FoundNeuron:
    """A neuron that writes some words.

    logits: of each word, less the mean over the vocabulary. ranks: of each word among all tokens; 1
    is the most promoted, with sign=-1 the most suppressed.
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
    metric: Metric = "zscore",
) -> list[FoundNeuron]:
    """The neurons of any layer that write some words most or, with sign=-1, most against them.

        logit_t = U[t] . x_li,   x_li = w * v_li,   U = W_U less its mean over the vocabulary

        zscore:  score = mean_t logit_t / root mean square of logit over the whole vocabulary
        cosine:  score = mean_t cos(x_li, U[t])
        dot:     score = mean_t logit_t

    over the words' tokens t. v_li is what the neuron writes, its row of the down projection, gated
    or not; w is the final norm's weight, and a LayerNorm centres v first: x_li is what the
    unembedding reads. What raises all tokens
    alike is no part of a score. The z-score says how far the words stand out among all tokens, in
    standard deviations. "cosine" and "dot" do not look at other words: a word may be far from the
    top of what their first neurons write.

    Behind a post-norm after the MLP, v is multiplied by its weight as well: what the neuron adds
    to the stream, up to a positive factor that depends on the prompt. Z-scores, cosines and ranks
    are free of it; "dot" and `logits` are without it.

    Raises:
        InterpError: unknown parts, no words or one of several tokens, k out of size, sign other
            than 1 or -1, or an unknown metric.
    """
    decoder = model.require_decoder("searching neurons")
    chosen = within(layers, model.n_layers, "layer", model.name)
    ids = [model.single_token(word) for word in listed(words)]
    if not ids or sign not in (1, -1) or not 1 <= k <= len(chosen) * model.d_mlp:
        asked = f"searching {len(ids)} words, k={k}, sign={sign}"
        found = f"{len(chosen)} layers of {model.d_mlp} neurons"
        raise InterpError(asked, found, "give words, k within the neurons, sign 1 or -1")
    if metric not in get_args(Metric):
        raise unknown("metric", metric, get_args(Metric))
    unembed = widened(decoder.unembed)
    centre = unembed.mean(0)
    rows = unembed[ids] - centre
    # The mean square of all logits of v is v C^T C v / d_vocab.
    gram = unembed.T @ unembed / len(unembed) - centre[:, None] * centre
    best: list[tuple[float, int, int]] = []
    for layer in chosen:
        values = _written(decoder, layer)
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
        logits = (unembed - centre) @ _written(decoder, layer)[index]
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


def _written(decoder: Decoder, layer: int) -> Tensor:
    """(neuron, d_model) what each neuron writes, as the unembedding reads it."""
    block = decoder.blocks[layer]
    values = widened(block.mlp.down.weight)
    for norm in (block.ln2_post, decoder.ln_final):
        if norm is not None:
            values = values - values.mean(-1, keepdim=True) if norm.centred else values
            values = values * widened(norm.weight)
    return values


def _read(
    decoder: Decoder, hidden: Tensor, member: Tensor, *, k: int, ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One site of one layer: top tokens, their mean and its error; the words of each sample."""
    counts = member.bincount().double()[:, None]
    weight = one_hot(member, len(counts)).T.double()
    total = torch.zeros(len(counts), decoder.d_vocab, dtype=torch.float64)
    squared = torch.zeros_like(total)
    probability = torch.zeros(len(member), len(ids), dtype=torch.float64)
    rank = torch.zeros_like(probability)
    step = max(1, BLOCK // decoder.d_vocab)
    for start in range(0, len(member), step):
        rows = slice(start, start + step)
        logits = widened(decoder.logits(decoder.ln_final(hidden[rows].to(decoder.unembed))))
        p = logits.softmax(-1).cpu().double()
        total += weight[:, rows] @ p
        probability[rows] = p[:, list(ids)]
        squared += weight[:, rows] @ p.square_()
        for column, token in enumerate(ids):
            rank[rows, column] = 1.0 + (logits > logits[:, token, None]).sum(-1).cpu()
    top = (total / counts).topk(k, dim=-1)
    spread = (squared / counts).gather(1, top.indices) - top.values.square()
    stderr = (spread.clamp(min=0) / (counts - 1)).sqrt()
    stderr = torch.where(counts > 1, stderr, torch.inf)
    return top.indices, top.values, stderr, probability, rank


def _members(groups: Sequence[Hashable] | None, n: int) -> tuple[Tensor, tuple[str, ...]]:
    """Each sample's group number, and the groups' names in the order they come."""
    if groups is None:
        return torch.zeros(n, dtype=torch.long), ("all",)
    labels = [str(label) for label in listed(groups)]
    if len(labels) != n:
        raise InterpError("groups of a lens", f"{len(labels)} labels, {n} prompts", "give one each")
    names = tuple(dict.fromkeys(labels))
    return torch.tensor([names.index(label) for label in labels], dtype=torch.long), names


def _check_k(k: int, decoder: Decoder) -> None:
    if not 1 <= k <= decoder.d_vocab:
        raise InterpError(
            f"the top {k} tokens", f"the vocabulary has {decoder.d_vocab}", "choose k within it"
        )
