"""Texts as a chat model reads them, with what a vector read from them must be used with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np
from jinja2.exceptions import TemplateError

from interp.errors import InterpError
from interp.files import content_key
from interp.inputs import listed, texts_of
from interp.models.language_model import LanguageModel
from interp.prompts import Prompt, Task


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


Prompts = ChatPrompts | Task | Prompt | Sequence[Prompt]
"""Prompts with their format; texts and tokens alone have none (`PLAIN`)."""


def chat_prompts(
    model: LanguageModel,
    texts: str | Sequence[str],
    *,
    system: str | None = None,
    generation_prompt: bool = True,
) -> ChatPrompts:
    """The user's texts inside the model's own chat template.

    Raises:
        InterpError: no chat template, one that refuses the turns (many have no system prompt), or
            a text that changes the tokens of the template after it.
    """
    template = getattr(model.tokenizer, "chat_template", None)
    if not template:
        raise InterpError(
            f"chat prompts for {model.name}",
            "it has no chat template",
            "take an instruction-tuned model, or plain_prompts()",
        )

    texts = listed(texts)

    def tokens(text: str) -> tuple[int, ...]:
        turns = [] if system is None else [{"role": "system", "content": system}]
        try:
            whole = model.tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except TemplateError as error:
            raise InterpError(
                f"chat prompts for {model.name}" + ("" if system is None else ", a system prompt"),
                f"its chat template refuses them: {error}",
                "leave the system prompt out" if system is not None else "correct the template",
            ) from error
        ids = model.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return model.tokenize(tuple(ids)).tokens

    # What single words of the texts have in common at the end is the template's.
    words = sorted({word for text in texts for word in text.split()})[:16]
    tail = _common_end([tokens(word) for word in ("a", *words)])
    rows = tuple(tokens(text) for text in texts)
    for number, row in enumerate(rows):
        if row[len(row) - len(tail) :] != tail:
            shown = "|".join(model.strings(row[-len(tail) - 2 :]))
            raise InterpError(
                f"chat prompt {number}",
                f"its end, {shown!r}, is not the template's, {model.strings(tail)}",
                "end the text in a word or a full stop",
            )
    key = content_key([template if isinstance(template, str) else dict(template), system])
    return ChatPrompts(
        rows=rows,
        format=ChatFormat(key, generation_prompt),
        tail=tail,
        ids=tuple(map(content_key, texts)),
    )


def plain_prompts(model: LanguageModel, prompts: Prompts) -> ChatPrompts:
    """Prompts as they are, in tokens; `ChatPrompts` pass unchanged."""
    if isinstance(prompts, ChatPrompts):
        return prompts
    rows = tuple(model.tokenize(prompt).tokens for prompt in texts_of(prompts))
    return ChatPrompts(rows=rows, format=PLAIN, tail=_common_end(rows))


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
