"""Prompts as a chat template lays them out: before the user's words, the words, and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np

from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.core.positions import Prompt
from interp.core.prompts import Task


@dataclass(frozen=True)
class ChatFormat:
    """How texts became prompts: the hash of the chat template, and whether the reply is opened.

    A system prompt of one's own is part of the hash. An empty template stands for texts and tokens
    taken as they are.
    """

    template: str = ""
    generation_prompt: bool = False

    def __str__(self) -> str:
        if not self.template:
            return "no chat template"
        return f"template {self.template}, generation prompt {self.generation_prompt}"

    def require(self, other: ChatFormat, what: str) -> None:
        """Refuse prompts of another format than the one a vector was read with.

        Raises:
            InterpError: they differ.
        """
        if self != other:
            raise InterpError(what, f"made with {self}, used with {other}", "use one format")


PLAIN = ChatFormat()


@dataclass(frozen=True, kw_only=True)
class ChatPrompts:
    """Prompts of one format. `tail` holds the tokens every one of them ends in.

    With a chat template these are the post-instruction tokens: what the template puts after the
    user's text. `ids` names each prompt without its text; `chat_prompts` gives hashes of the
    user's texts.
    """

    rows: tuple[tuple[int, ...], ...]
    format: ChatFormat
    tail: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def hashes(self) -> tuple[str, ...]:
        """What each prompt is known by: its id, or the hash of its tokens where it has none."""
        return self.ids or tuple(content_key(list(row)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Sequence[int] | slice) -> ChatPrompts:
        places = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        rows = tuple(self.rows[i] for i in places)
        ids = tuple(self.ids[i] for i in places) if self.ids else ()
        return ChatPrompts(rows=rows, format=self.format, tail=self.tail, ids=ids)


PromptsLike = ChatPrompts | Task | Prompt | Sequence[Prompt]
"""Prompts with their format; texts and tokens alone have none (`PLAIN`)."""


def mixed(
    first: ChatPrompts, second: ChatPrompts, *, seed: int = 0
) -> tuple[ChatPrompts, ChatPrompts]:
    """Two sets of the same sizes with their labels shuffled: the null of any difference."""
    first.format.require(second.format, "prompts to mix")
    rows = [*first.rows, *second.rows]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    tail = _common_end([first.tail, second.tail])
    ids = first.hashes + second.hashes
    both = ChatPrompts(rows=tuple(rows), format=first.format, tail=tail, ids=ids)
    return both[order[: len(first)]], both[order[len(first) :]]


def _common_end(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(commonprefix([row[::-1] for row in rows]))[::-1] if rows else ()
