"""Several continuations after one prompt: how they lie behind it, and how probable each is.

The rows of a prompt and its continuations are laid out as a tree. The prompt comes first, then the
tokens of every continuation, without its last one, which is read and never run. A continuation sees
the prompt and itself, and its positions go on from the prompt's. So the prompt is run once for all
of them. What is read is the tail of a row: the prompt's last token and every token behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.statistics import widened

Strings = tuple[tuple[int, ...], ...]
"""The continuations of one prompt, each as token ids."""


class Branched(tuple[int, ...]):
    """The tokens of a prompt and behind it those of its continuations, as they are run.

    `sizes` holds the number of tokens that each continuation adds; those that add none are left
    out.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, prompt: Sequence[int], strings: Strings) -> Branched:
        """A prompt and its continuations."""
        parts = [string[:-1] for string in strings if len(string) > 1]
        row = cls([*prompt, *(token for part in parts for token in part)])
        row.sizes = tuple(len(part) for part in parts)
        return row


def sizes_of(row: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a row's branches; () for a plain prompt."""
    return row.sizes if isinstance(row, Branched) else ()


def tail_of(sizes: tuple[int, ...]) -> int:
    """Number of tokens that are read: the prompt's last one and those of the branches."""
    return 1 + sum(sizes)


@lru_cache(maxsize=4096)
def places(length: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(length,) position of every token of a row, and its branch: 0 in the prompt, then 1, ..."""
    prompt = length - sum(sizes)
    position = np.concatenate([np.arange(prompt), *(prompt + np.arange(size) for size in sizes)])
    return position, np.repeat(np.arange(len(sizes) + 1), [prompt, *sizes])


@dataclass(frozen=True, kw_only=True)
class Unfolded:
    """Rows with branches as plain prompts, one for each branch, for runs that know no branches.

    `owner[r]` is the number of the row that plain row r comes from, and `within[r]` says at which
    of the row's tokens each of its tokens lies. `counts[r]` is the number of tokens read at its
    end.
    """

    rows: list[tuple[int, ...]]
    owner: list[int]
    within: list[np.ndarray]
    counts: list[int]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Unfolded:
        """The plain rows of some rows, in order."""
        found = cls(rows=[], owner=[], within=[], counts=[])
        for number, row in enumerate(rows):
            sizes = sizes_of(row)
            _, branch = places(len(row), sizes)
            for one in range(1, len(sizes) + 1) if sizes else (0,):
                within = np.flatnonzero((branch == 0) | (branch == one))
                found.rows.append(tuple(row[i] for i in within.tolist()))
                found.owner.append(number)
                found.within.append(within)
                found.counts.append(1 + int((branch == one).sum()) if one else 1)
        return found

    def folded(self, tails: Sequence[Tensor]) -> Tensor:
        """Values at the tails of the rows, one row after the other, from those of plain rows."""
        kept, before = [], -1
        for owner, tail in zip(self.owner, tails, strict=True):
            kept.append(tail[int(owner == before) :])
            before = owner
        return torch.cat(kept)


@dataclass(frozen=True, kw_only=True)
class StringReadout:
    """A `Readout` of continuations: their log-probabilities, by their number.

        log P(string | prompt) = sum over its tokens of log P(token | prompt and the tokens before)

    `values` is (n, strings), with 0 where a prompt has fewer. `lengths` is the number of tokens.
    """

    values: Tensor
    lengths: Tensor

    def at(self, tokens: Tensor) -> Tensor:
        """(n, k) the log-probabilities of each row's own strings, given by their numbers."""
        return self.values.gather(1, tokens.to(self.values.device))

    def all(self) -> Tensor:
        """Refused: a metric of whole answers reads no vocabulary.

        Raises:
            InterpError: always.
        """
        raise InterpError(
            "a metric of answers of several tokens",
            "it asks for the logits of the whole vocabulary",
            "read the answers by at(), or use answers of one token",
        )

    @classmethod
    def of(cls, logits: Tensor, strings: Sequence[Strings]) -> StringReadout:
        """From the logits at every token of the tails of rows, one row after the other."""

        def log_probs(rows: Tensor, tokens: Tensor) -> Tensor:
            require_read(len(logits), rows)
            wide = widened(logits)
            return wide[rows, tokens] - wide.logsumexp(-1)[rows]

        return cls.summed(log_probs, strings)

    @classmethod
    def summed(
        cls, log_probs: Callable[[Tensor, Tensor], Tensor], strings: Sequence[Strings]
    ) -> StringReadout:
        """From a function of (numbers of tokens in the tails, ids): their log-probabilities."""
        rows, tokens, owner = reads(strings)
        width = max(map(len, strings))
        logs = log_probs(torch.tensor(rows), torch.tensor(tokens))
        flat = logs.new_zeros(len(strings) * width)
        where = torch.tensor([i * width + s for i, s in owner], device=logs.device)
        lengths = torch.ones(len(strings), width)
        for i, one in enumerate(strings):
            lengths[i, : len(one)] = torch.tensor([float(len(string)) for string in one])
        return cls(
            values=flat.index_add(0, where, logs).view(len(strings), width).cpu(),
            lengths=lengths,
        )


def require_read(found: int, rows: Tensor) -> None:
    """Fail unless as many tokens were read as the strings need: their numbers are `rows`."""
    if found != int(rows.max()) + 1:
        raise ValueError(f"{found} tokens read, {int(rows.max()) + 1} needed")


def greedy(logits: Tensor, strings: Sequence[Strings]) -> np.ndarray:
    """(n, strings) bool: whether greedy decoding after the prompt begins with the string.

    From the logits at the tails of rows, as in `StringReadout.of`.
    """
    rows, tokens, owner = reads(strings)
    top = logits.argmax(-1).cpu().numpy()
    found = np.zeros((len(strings), max(map(len, strings))), dtype=bool)
    for i, one in enumerate(strings):
        found[i, : len(one)] = True
    for row, token, (i, s) in zip(rows, tokens, owner, strict=True):
        found[i, s] &= top[row] == token
    return found


def reads(strings: Sequence[Strings]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """For every token of every string: where it is read, its id, and its (prompt, string).

    Tokens are read at the tails of rows, one row after the other.
    """
    rows, tokens, owner, first = [], [], [], 0
    for i, one in enumerate(strings):
        behind = first + 1
        for s, string in enumerate(one):
            rows += [first, *range(behind, behind + len(string) - 1)]
            tokens += string
            owner += [(i, s)] * len(string)
            behind += len(string) - 1
        first = behind
    return rows, tokens, owner
