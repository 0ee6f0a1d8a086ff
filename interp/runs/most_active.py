"""The tokens of a corpus at which one head or neuron is most active, streamed and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import Component
from interp.core.corpus import Corpus, texts_in
from interp.core.errors import InterpError
from interp.core.schema import Count, Whole, checked
from interp.core.statistics import widened
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.batches import Batch
from interp.models.language_model import Address, Hook, LanguageModel
from interp.plots.style import visible
from interp.plots.tables import Tabled
from interp.results.keys import result_key
from interp.results.store import chunks_of

VERSION, CHUNK = 1, 32
"""CHUNK: texts that are run and kept together."""

FACTS = 5
"""Columns of a row before its context: value, text, position, key, attention. See `_best`."""


@dataclass(frozen=True, kw_only=True)
class ActiveToken:
    """The activation of a neuron or feature at one token of one prompt."""

    prompt: int
    position: int
    text: str
    value: float

    @property
    def label(self) -> str:
        """The token and its place."""
        return f"{visible(self.text)} at {self.position} of prompt {self.prompt}"


@dataclass(frozen=True, kw_only=True)
class StrongPosition:
    """A token at which a component is very active.

    Attributes:
        value: the activation of a neuron; of a head the length of what it writes.
        text: number of the text.
        position: number of the token in its text.
        token: the token.
        before, after: the text around it.
        key: of a head, the token that it attends to most from there; "" for a neuron.
        attention: how much it attends to `key`; nan for a neuron.
    """

    value: float
    text: int
    position: int
    token: str
    before: str
    after: str
    key: str
    attention: float


@dataclass(frozen=True, kw_only=True)
class StrongestPositions(Tabled):
    """The tokens of a corpus at which a component is most active, the strongest first.

    Attributes:
        component: the head or neuron.
        positions: the tokens.
        mean, sd: mean and standard deviation of the value over all tokens of the corpus.
        n_tokens, n_texts: what was run.
    """

    component: Component
    positions: tuple[StrongPosition, ...]
    mean: float
    sd: float
    n_tokens: int
    n_texts: int

    def __repr__(self) -> str:
        first = self.positions[0]
        return (
            f"StrongestPositions({self.component}: {first.value:z.3f} at "
            f"{visible(first.token)}, mean {self.mean:z.3f}, sd {self.sd:z.3f} over "
            f"{self.n_tokens} tokens of {self.n_texts} texts)"
        )

    def to_dataframe(self) -> Any:
        """One row per token."""
        from pandas import DataFrame

        return DataFrame([vars(one) for one in self.positions])


@reads_arguments
def strongest_positions(
    model: LanguageModel,
    component: str,
    texts: Corpus,
    *,
    k: int = 10,
    context: int = 8,
    negative: bool = False,
    cache: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> StrongestPositions:
    """The k tokens of a corpus at which a head or a neuron is most active.

        neuron: its activation (site post),    head: |z W_O|, the length of what it writes

    The mean and standard deviation over all tokens are given beside the largest values. Texts are
    read and run 32 at a time, and only the strongest tokens of these are kept, so the corpus may be
    larger than the memory. They are kept in the cache too: an interrupted call continues, and after
    an addition to the end of a file only the new texts are run.

    Args:
        model: a loaded model; for a head one with a known architecture.
        component: a head such as L5H3 or a neuron such as L5N10.
        texts: a list of texts or token ids, any iterator of these, or a file: see `Corpus`.
        k: how many tokens.
        context: how many tokens before and after are shown.
        negative: the most negative activations of a neuron instead.
        cache: read and keep finished parts. Inside `intervene` nothing is read or kept.
        cancelled: asked in every pass; the work stops when it returns True.

    Raises:
        InterpError: no such component, negative values of a head, no texts, or a text that does not
            fit the model.
    """
    part = Component.parse(component)
    site = "post" if part.site == "post" else "z"
    (part,) = model.require_parts(component, site)
    if negative and site == "z":
        raise InterpError(f"negative values of {part}", "a length has none", "leave it out")
    k = checked(Count, k, "the strongest tokens")
    context = checked(Whole, context, "tokens of context")
    asked: dict[str, Any] = {"component": str(part), "k": k, "context": context}
    key = None
    if cache and not model.active:
        key = result_key("strongest positions", VERSION, model, negative=negative, **asked)
    best, sums, n_texts = np.empty((0, FACTS + 2 * context + 1)), np.zeros(3), 0
    with stoppable(cancelled), chunks_of(key) as chunks:
        for number, some in enumerate(_in_chunks(texts_in(texts))):
            rows = [model.tokenize(text).tokens for text in some]
            lengths = [len(row) for row in rows]

            def found(rows: list[tuple[int, ...]] = rows) -> np.ndarray:
                return _best(model, part, rows, k, context, -1 if negative else 1)

            of = np.array([*lengths, *(token for row in rows for token in row)])
            seen = chunks.once(number, k + 1, found, of=of)
            sums += seen[0, :3]
            seen = seen[1:][~np.isnan(seen[1:, 0])]
            seen[:, 1] += n_texts
            together = np.concatenate([best, seen])
            order = np.argsort(-together[:, 0] * (-1 if negative else 1), kind="stable")
            best, n_texts = together[order[:k]], n_texts + len(rows)
    if not n_texts:
        raise InterpError(f"where {part} is most active", "no texts", "give at least one")
    count, total, squares = sums
    mean = total / count
    return StrongestPositions(
        component=part,
        positions=tuple(_position(model, row, context) for row in best),
        mean=float(mean),
        sd=math.sqrt(max(squares / count - mean**2, 0.0)),
        n_tokens=int(count),
        n_texts=n_texts,
    )


def _in_chunks(texts: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of `CHUNK` texts."""
    source = iter(texts)
    while some := list(islice(source, CHUNK)):
        yield some


def _best(
    model: LanguageModel,
    part: Component,
    rows: list[tuple[int, ...]],
    k: int,
    context: int,
    sign: int,
) -> np.ndarray:
    """(k + 1, FACTS + 2 * context + 1) number, sum and sum of squares; then the strongest tokens.

    A token is its value, text, position, key token and attention, and the token ids around it. Rows
    that are not used are nan, tokens that are not there -1.
    """
    width = FACTS + 2 * context + 1
    made = np.full((k + 1, width), np.nan)
    measured = _measured(model, part, rows)
    values = np.concatenate([one[0] for one in measured])
    made[0, :3] = len(values), values.sum(), np.square(values).sum()
    ends = np.cumsum([len(row) for row in rows])
    order = np.argsort(-sign * values, kind="stable")[:k]
    for place, at in enumerate(order.tolist(), 1):
        text = int(np.searchsorted(ends, at, side="right"))
        row = rows[text]
        position = at - int(ends[text]) + len(row)
        _, keys, weights = measured[text]
        around = range(position - context, position + context + 1)
        ids = [row[i] if 0 <= i < len(row) else -1 for i in around]
        key = row[keys[position]] if keys is not None else -1
        weight = math.nan if weights is None else weights[position]
        made[place] = [values[at], text, position, key, weight, *ids]
    return made


_Measured = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""The value at every token of a text, and of a head the key it attends to most, and how much."""


def _measured(
    model: LanguageModel, part: Component, rows: list[tuple[int, ...]]
) -> list[_Measured]:
    """The values of a component at every token of some texts."""
    values: list[np.ndarray] = [np.empty(0)] * len(rows)
    keys: list[np.ndarray | None] = [None] * len(rows)
    weights: list[np.ndarray | None] = [None] * len(rows)
    square = None
    if part.site == "z":
        block = model.require_decoder("the length of what a head writes").blocks[part.layer]
        out = widened(block.attn.W_O[part.index]).double()
        square = out @ out.T

    def each(value: Tensor, batch: Batch) -> Iterator[tuple[int, slice, Tensor]]:
        stop_if_asked()
        for row, prompt in enumerate(batch.prompts.tolist()):
            first = int(batch.first[row])
            yield prompt, slice(first, first + int(batch.lengths[row])), value[row].detach()

    def read_values(value: Tensor, batch: Batch) -> Tensor:
        for prompt, span, mine in each(value, batch):
            seen = mine[span, part.index].double()
            if square is not None:
                seen = torch.einsum("td,de,te->t", seen, square, seen).clamp_min(0).sqrt()
            values[prompt] = seen.cpu().numpy()
        return value

    def read_keys(value: Tensor, batch: Batch) -> Tensor:
        for prompt, span, mine in each(value, batch):
            weight, at = mine[part.index, span, span].double().max(-1)
            keys[prompt], weights[prompt] = at.cpu().numpy(), weight.cpu().numpy()
        return value

    hooks: dict[Address, list[Hook]] = {(part.layer, part.site): [read_values]}
    if square is not None:
        hooks[part.layer, "pattern"] = [read_keys]
    with torch.no_grad():
        for _ in model.run(rows, hooks=hooks):
            pass
    return list(zip(values, keys, weights, strict=True))


def _position(model: LanguageModel, row: np.ndarray, context: int) -> StrongPosition:
    """A row of `_best` in words."""

    def text(ids: np.ndarray) -> str:
        return "".join(model.strings([int(token) for token in ids if token >= 0]))

    ids = row[FACTS:]
    return StrongPosition(
        value=float(row[0]),
        text=int(row[1]),
        position=int(row[2]),
        token=text(ids[context : context + 1]),
        before=text(ids[:context]),
        after=text(ids[context + 1 :]),
        key=text(row[3:4]),
        attention=float(row[4]),
    )
