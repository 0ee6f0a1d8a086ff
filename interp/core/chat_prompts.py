"""Prompts made with a chat template, and the tokens the template adds after the user's text."""

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
    """How texts became prompts: the hash of the chat template, and whether it opens the reply.

    The hash covers a system prompt given by the user. An empty `template` means that texts and
    tokens are used without a template.
    """

    template: str = ""
    generation_prompt: bool = False

    def __str__(self) -> str:
        if not self.template:
            return "no chat template"
        return f"template {self.template}, generation prompt {self.generation_prompt}"

    def require(self, other: ChatFormat, what: str) -> None:
        """Refuse prompts whose format differs from that of the prompts a vector was read from.

        Raises:
            InterpError: the formats differ.
        """
        if self != other:
            do = "use the same chat format for both"
            raise InterpError(what, f"made with {self}, used with {other}", do)


PLAIN = ChatFormat()


@dataclass(frozen=True, kw_only=True)
class ChatPrompts:
    """Prompts of one format, as token ids.

    `tail` holds the tokens that end every prompt. With a chat template they are the
    post-instruction tokens, which the template puts after the user's text. `ids` identifies each
    prompt without showing its text: `chat_prompts` fills it with hashes of the user's texts.
    """

    rows: tuple[tuple[int, ...], ...]
    format: ChatFormat
    tail: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def hashes(self) -> tuple[str, ...]:
        """The identifier of each prompt: its id, or the hash of its tokens if it has no id."""
        return self.ids or tuple(content_key(list(row)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Sequence[int] | slice) -> ChatPrompts:
        """The chosen prompts, as prompts of the same format.

        Raises:
            InterpError: one number is given; the tokens of one prompt are in `rows`.
        """
        if isinstance(chosen, int):
            found = "chat prompts are chosen by a slice or by several numbers"
            raise InterpError(f"chat prompts [{chosen}]", found, f"write .rows[{chosen}]")
        places = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        rows = tuple(self.rows[i] for i in places)
        ids = tuple(self.ids[i] for i in places) if self.ids else ()
        return ChatPrompts(rows=rows, format=self.format, tail=self.tail, ids=ids)


PromptsLike = ChatPrompts | Task | Prompt | Sequence[Prompt]
"""Prompts in any form. Only `ChatPrompts` carry a format; the others count as `PLAIN`."""


def mixed(
    first: ChatPrompts, second: ChatPrompts, *, seed: int = 0
) -> tuple[ChatPrompts, ChatPrompts]:
    """Shuffle the prompts of two sets into two new sets of the same sizes.

    A difference between the new sets is a null for the difference between the given ones.

    Raises:
        InterpError: the two sets have different formats.
    """
    first.format.require(second.format, "prompts to mix")
    rows = [*first.rows, *second.rows]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    tail = common_end([first.tail, second.tail])
    ids = first.hashes + second.hashes
    both = ChatPrompts(rows=tuple(rows), format=first.format, tail=tail, ids=ids)
    return both[order[: len(first)]], both[order[len(first) :]]


def common_end(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens with which all rows end."""
    return tuple(commonprefix([row[::-1] for row in rows]))[::-1] if rows else ()
