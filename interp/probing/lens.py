"""The logit lens: the residual stream of any layer read as next-token probabilities."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.core.components import within
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.core.run_options import Progress, RunKeywords, RunOptions
from interp.core.statistics import Estimate, mean_estimate, widened
from interp.engine.architecture import Decoder
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK, Token, check_k
from interp.plots.tables import Listing, Tabled
from interp.runs.capture import run_with_cache
from interp.runs.changed_runs import ChangedRuns
from interp.runs.stored_runs import StoredRuns

if TYPE_CHECKING:
    from pandas import DataFrame

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""The sites that a lens reads: states of the residual stream, not what is added to it."""


@dataclass(frozen=True, kw_only=True)
class Lens(Tabled):
    """Next-token probabilities read from the residual stream, averaged over samples.

    Attributes:
        sites, layers, groups: the labels of the axes. If every token of one prompt was read, each
            is a sample and a group of its own, named "0", "1", ...
        n: number of samples of each group.
        group_of: (sample,) the group of each sample.
        tokens: (sample,) the token id at the position that was read.
        top_tokens, top_mean, top_stderr: (site, layer, group, k) the tokens of highest mean
            probability, that mean, and its standard error (infinite for a single sample).
        words: the watched tokens.
        word_probability, word_rank: (site, layer, sample, word) the probability and the rank of
            each watched token; rank 1 is the most likely token of the sample.
        strings: the text of every top token.
        prompt: the texts of the tokens of one prompt, if each was read; else ().
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
    prompt: tuple[str, ...] = ()

    def __repr__(self) -> str:
        groups = ", ".join(self.groups)
        of = f"{sum(self.n)} prompts, groups {groups}"
        of = f"{len(self.prompt)} tokens of one prompt" if self.prompt else of
        return (
            f"Lens({', '.join(self.sites)} of layers {self.layers[0]} to {self.layers[-1]}, {of}; "
            "read .top(layer), .to_dataframe() or .plot())"
        )

    def _shown(self) -> DataFrame:
        from pandas import DataFrame

        names = self._columns()
        rows = zip(self.layers, self.texts, strict=True)
        cells = [{"layer": layer} | dict(zip(names, row, strict=True)) for layer, row in rows]
        return DataFrame(cells[::-1])

    def _columns(self) -> list[str]:
        """The names of the groups in a table or figure: the token itself if each is one."""
        from interp.plots.style import visible

        if not self.prompt:
            return [*self.groups]
        return [f"{i} {visible(text)}" for i, text in enumerate(self.prompt)]

    @property
    def texts(self) -> list[list[str]]:
        """(layer, group) the token of highest mean probability, at the first site."""
        return [[self.strings[i] for i in row] for row in self.top_tokens[0, :, :, 0].tolist()]

    def plot(
        self,
        *,
        site: str | None = None,
        columns: slice = slice(None),
        selected: tuple[int, int] | None = None,
    ) -> Any:
        """Layers upwards, tokens (or groups) across; the likeliest token in every cell.

        The colour is its mean probability. `columns` are the tokens or groups shown, and `selected`
        the (row, column) of a cell to frame.

        Raises:
            InterpError: a site that was not read.
        """
        from interp.plots.tokens import token_table

        s = self._cell(self.layers[0], site, self.groups[0])[0]
        ids = self.top_tokens[s, :, columns, 0].tolist()
        return token_table(
            self.top_mean[s, :, columns, 0].numpy(),
            texts=[[self.strings[i] for i in row] for row in ids],
            x=self._columns()[columns],
            y=[str(layer) for layer in self.layers],
            x_title="token" if self.prompt else "group",
            selected=selected,
        )

    def top(
        self, layer: int, *, site: str | None = None, group: str | None = None
    ) -> Listing[Token]:
        """The tokens of highest mean probability at a layer, highest first.

        Raises:
            InterpError: a layer, site or group that was not read.
        """
        cell = self._cell(layer, site, group)
        found = zip(self.top_tokens[cell].tolist(), self.top_mean[cell].tolist(), strict=True)
        return Listing([Token(i, self.strings[i], mean) for i, mean in found], "probability")

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
                where |= {"after": self.prompt[g]} if self.prompt else {}
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
            *others, group = self.groups
            if others and not self.prompt:
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
    positions: Positions | None = None,
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
        positions: one token of each prompt, see `interp.core.arguments.Positions`. By default every
            token of a single prompt, and the last one of several prompts.
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
    [found] = lenses_through(
        model,
        prompts,
        positions,
        sites=sites,
        layers=layers,
        k=k,
        words=words,
        groups=groups,
        runs=runs,
        maps=[lambda layer, states: states],
        options=RunOptions(**{"budget_gb": 2.0, **run}),
    )
    return found


def lenses_through(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions | None,
    *,
    sites: str | Sequence[str],
    layers: Sequence[int] | None,
    k: int,
    words: str | int | Sequence[str | int],
    groups: Sequence[Hashable] | None,
    runs: StoredRuns | ChangedRuns | None,
    maps: Sequence[StateMap],
    options: RunOptions,
) -> list[Lens]:
    """`logit_lens` through several maps of the states, which are captured once.

    Raises:
        InterpError: see `logit_lens`.
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
    rows = [model.tokenize(text) for text in texts]
    each = len(rows) == 1 and positions is None and groups is None and runs is None
    at = places_of("last" if positions is None else positions, rows, marks_of(prompts))
    member, names = _members(groups, len(texts))
    with torch.no_grad(), stoppable(options.cancelled):
        seen = run_with_cache(
            model,
            texts,
            sites=sites,
            layers=chosen,
            positions="all" if each else at,
            budget_gb=options.budget_gb,
            runs=runs,
        )
        axes = {
            "sites": sites,
            "layers": tuple(chosen),
            "words": dict(zip(words, ids, strict=True)),
        }
        step = len(sites) * len(chosen)

        def read(number: int, mapped: StateMap) -> Lens:
            def progress(done: int, of: int) -> None:
                if options.progress is not None:
                    options.progress(number * step + done, len(maps) * step)

            cells = product(sites, chosen)
            states = (mapped(layer, seen[layer, site]) for site, layer in cells)
            if each:
                states = (state[0] for state in states)
                return lens_of_tokens(model, rows[0], states, **axes, k=k, progress=progress)
            return _lens(
                model,
                (_read(decoder, state, member, k, ids) for state in states),
                **axes,
                progress=progress,
                groups=names,
                group_of=member,
                tokens=tuple(row.tokens[index] for row, index in zip(rows, at, strict=True)),
            )

        return [read(number, mapped) for number, mapped in enumerate(maps)]


def lens_of_tokens(
    model: LanguageModel,
    prompt: TokenizedPrompt,
    states: Iterable[Tensor],
    *,
    sites: tuple[str, ...] = ("resid_post",),
    layers: tuple[int, ...],
    words: Mapping[str | int, int],
    k: int = 10,
    progress: Progress | None = None,
) -> Lens:
    """The logit lens at every token of one prompt, from its states (token, d_model).

    `states` are those of the layers of each site in turn, and `words` the watched words with their
    ids. See `logit_lens`.
    """
    decoder, n = model.require_decoder("a logit lens"), len(prompt.tokens)
    ids = [*words.values()]
    return _lens(
        model,
        (_read_each(decoder, state, k, ids) for state in states),
        sites=sites,
        layers=layers,
        words=words,
        progress=progress,
        groups=tuple(map(str, range(n))),
        group_of=torch.arange(n),
        tokens=prompt.tokens,
        prompt=prompt.strings,
    )


StateMap = Callable[[int, Tensor], Tensor]
"""(layer, states (..., d_model)) -> the states that the final norm reads."""

Cell = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Top tokens, their mean and its error; probability and rank of the watched words."""


def _lens(
    model: LanguageModel,
    read: Iterable[Cell],
    *,
    sites: tuple[str, ...],
    layers: tuple[int, ...],
    words: Mapping[str | int, int],
    progress: Progress | None,
    group_of: Tensor,
    **facts: Any,
) -> Lens:
    cells, grid = [], (len(sites), len(layers))
    with torch.no_grad():
        for cell in read:
            cells.append(cell)
            if progress is not None:
                progress(len(cells), grid[0] * grid[1])
    tokens, mean, stderr, probability, rank = (
        torch.stack(parts).unflatten(0, grid) for parts in zip(*cells, strict=True)
    )
    shown = tokens.unique().tolist()
    return Lens(
        sites=sites,
        layers=layers,
        n=tuple(group_of.bincount().tolist()),
        group_of=group_of,
        top_tokens=tokens,
        top_mean=mean,
        top_stderr=stderr,
        words=tuple(words),
        word_probability=probability,
        word_rank=rank,
        strings=dict(zip(shown, model.strings(shown), strict=True)),
        **facts,
    )


def _blocks(
    decoder: Decoder, hidden: Tensor, ids: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some states at a time: probabilities, and the watched words' probabilities and ranks."""
    for rows in hidden.split(max(1, BLOCK // decoder.d_vocab)):
        stop_if_asked()
        logits = widened(decoder.logits(decoder.ln_final(rows.to(decoder.unembed))))
        ranks = [1.0 + (logits > logits[:, token, None]).sum(-1).double() for token in ids]
        p = logits.softmax(-1)
        rank = torch.stack(ranks, 1) if ids else p.new_zeros(len(p), 0)
        yield p, p[:, list(ids)].cpu().double(), rank.cpu().double()


def _read(decoder: Decoder, hidden: Tensor, member: Tensor, k: int, ids: Sequence[int]) -> Cell:
    """Means within groups of samples."""
    counts, done, watched = member.bincount().double()[:, None], 0, []
    total = torch.zeros(len(counts), decoder.d_vocab, dtype=torch.float64)
    squared = torch.zeros_like(total)
    for p, *words in _blocks(decoder, hidden, ids):
        wide, groups = p.cpu().double(), member[done : done + len(p)]
        total.index_add_(0, groups, wide)
        squared.index_add_(0, groups, wide.square_())
        watched.append(words)
        done += len(p)
    top = (total / counts).topk(k, dim=-1)
    spread = (squared / counts).gather(1, top.indices) - top.values.square()
    stderr = (spread.clamp(min=0) / (counts - 1)).sqrt()
    stderr = torch.where(counts > 1, stderr, torch.inf)
    probability, rank = map(torch.cat, zip(*watched, strict=True))
    return top.indices, top.values, stderr, probability, rank


def _read_each(decoder: Decoder, hidden: Tensor, k: int, ids: Sequence[int]) -> Cell:
    """Every sample by itself: one sample has no error."""
    cells = []
    for p, *words in _blocks(decoder, hidden, ids):
        mean, tokens = p.topk(k)
        mean = mean.cpu().double()
        cells.append((tokens.cpu(), mean, torch.full_like(mean, torch.inf), *words))
    tokens, mean, stderr, probability, rank = map(torch.cat, zip(*cells, strict=True))
    return tokens, mean, stderr, probability, rank


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
