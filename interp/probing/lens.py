"""The logit lens: the residual stream of any layer read as next-token probabilities."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from interp.core.arguments import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.statistics import Estimate, mean_estimate, widened
from interp.engine.architecture import Decoder
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK, Token, check_k
from interp.runs.capture import run_with_cache
from interp.runs.changed_runs import ChangedRuns
from interp.runs.stored_runs import StoredRuns

if TYPE_CHECKING:
    from pandas import DataFrame

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""The sites that a lens reads: states of the residual stream, not what is added to it."""


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Next-token probabilities read from the residual stream, averaged over samples.

    Attributes:
        sites, layers, groups: the labels of the axes.
        n: number of samples of each group.
        group_of: (sample,) the group of each sample.
        tokens: (sample,) the token id at the position that was read.
        top_tokens, top_mean, top_stderr: (site, layer, group, k) the tokens of highest mean
            probability, that mean, and its standard error (infinite for a single sample).
        words: the watched tokens.
        word_probability, word_rank: (site, layer, sample, word) the probability and the rank of
            each watched token; rank 1 is the most likely token of the sample.
        strings: the text of every top token.
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

    def __repr__(self) -> str:
        return (
            f"Lens({', '.join(self.sites)} of layers {self.layers[0]} to {self.layers[-1]}, "
            f"{sum(self.n)} prompts, groups {', '.join(self.groups)}; read .top(layer) or "
            ".to_dataframe())"
        )

    def top(self, layer: int, *, site: str | None = None, group: str | None = None) -> list[Token]:
        """The tokens of highest mean probability at a layer, highest first.

        Raises:
            InterpError: a layer, site or group that was not read.
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
        """One row per site, layer, group and top token; `place` is its place in the order."""
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
        """One row per site, layer, group and watched word, with 95 % intervals."""
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
                raise InterpError("the lens of all samples", found, "name one group")
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
    runs: StoredRuns | ChangedRuns | None = None,
    **run: Unpack[RunKeywords],
) -> Lens:
    """The next-token distribution when the final norm and unembedding are applied to a layer.

        p_l = softmax(W_U norm_final(h_l)),   reported: the mean of p_l over samples

    h_l is the residual stream at one position of each prompt. Biases and a soft cap of the final
    logits are applied as in the model, so p at resid_post of the last layer is the model's own
    next-token distribution. Inside `intervene` the lens reads the changed run. Samples are
    unembedded in blocks, so memory does not grow with their number.

    Args:
        model: a model with a known architecture.
        prompts: texts, token tuples or a task (its clean prompts).
        positions: one token of each prompt, see `interp.core.arguments.Positions`.
        sites: any of resid_pre, resid_mid and resid_post.
        layers: the layers read; all by default.
        k: number of top tokens of each mean distribution.
        words: tokens to watch, each a text of exactly one token (with its leading space, if any)
            or a token id. Different spellings are different words.
        groups: one label per prompt, such as valid and invalid. Means are taken within groups.
        runs: stored runs of the prompts to read from, as in `run_with_cache`.
        run: budget_gb, the memory for the captured residual streams, 2 by default; progress,
            called with (cells read, cells in total), each a site of one layer; cancelled.

    Raises:
        InterpError: an unknown architecture, a site that is not a state of the stream, a prompt
            that lacks a position, a word of several tokens, or k or groups out of range.

    Sources: nostalgebraist 2020, "interpreting GPT: the logit lens"; the mean of probabilities as
        in Lee et al. 2025 (arXiv 2504.14379).
    """
    decoder = model.require_decoder("a logit lens")
    texts, sites, words = texts_of(prompts), listed(sites), listed(words)
    if not sites or (wrong := [site for site in sites if site not in STREAM]):
        found = ", ".join(map(str, wrong)) if sites else "no sites"
        raise InterpError("a logit lens", found, f"read states of the stream: {', '.join(STREAM)}")
    check_k(k, decoder)
    sites = tuple(dict.fromkeys(sites))
    chosen = within(layers, model.n_layers, "layer", model.name)
    ids = [model.single_token(word) for word in words]
    member, names = _members(groups, len(texts))
    rows = [model.tokenize(text) for text in texts]
    at = places_of(positions, rows, marks_of(prompts))
    options = RunOptions(**{"budget_gb": 2.0, **run})
    with torch.no_grad(), stoppable(options.cancelled):
        seen = run_with_cache(
            model,
            texts,
            sites=sites,
            layers=chosen,
            positions=at,
            budget_gb=options.budget_gb,
            runs=runs,
        )
        cells = []
        for site, layer in product(sites, chosen):
            cells.append(_read(decoder, seen[layer, site], member, k=k, ids=ids))
            if options.progress is not None:
                options.progress(len(cells), len(sites) * len(chosen))
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
        tokens=tuple(row.tokens[index] for row, index in zip(rows, at, strict=True)),
        top_tokens=tokens,
        top_mean=mean,
        top_stderr=stderr,
        words=tuple(words),
        word_probability=probability,
        word_rank=rank,
        strings=dict(zip(shown, model.strings(shown), strict=True)),
    )


def _read(
    decoder: Decoder, hidden: Tensor, member: Tensor, *, k: int, ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Read one site of one layer: top tokens, their mean and its error, and the watched words."""
    counts = member.bincount().double()[:, None]
    weight = one_hot(member, len(counts)).T.double()
    total = torch.zeros(len(counts), decoder.d_vocab, dtype=torch.float64)
    squared = torch.zeros_like(total)
    probability = torch.zeros(len(member), len(ids), dtype=torch.float64)
    rank = torch.zeros_like(probability)
    step = max(1, BLOCK // decoder.d_vocab)
    for start in range(0, len(member), step):
        stop_if_asked()
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
    """The group number of each sample, and the groups' names in order of appearance."""
    if groups is None:
        return torch.zeros(n, dtype=torch.long), ("all",)
    labels = [str(label) for label in listed(groups)]
    if len(labels) != n:
        raise InterpError(
            "groups of a lens", f"{len(labels)} labels, {n} prompts", "give one label per prompt"
        )
    names = tuple(dict.fromkeys(labels))
    return torch.tensor([names.index(label) for label in labels], dtype=torch.long), names
