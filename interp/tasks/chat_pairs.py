"""Prompt pairs put into a model's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from interp.core.errors import InterpError
from interp.core.positions import Mark, Prompt, occurrences
from interp.core.prompts import Task
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel


def in_chat_template(model: LanguageModel, task: Task) -> Task:
    """The same pairs with every prompt as the user's turn in the model's own chat template.

    The answers are then the first token of the reply. A prompt stays a text where the model reads
    that text as the same tokens, and is token ids otherwise. A named position stays at its part of
    the user's text.

    Raises:
        InterpError: the model has no chat template or the template refuses a text, a prompt is
            token ids, or a position is a token's number, which the template would move.
    """
    texts = [text for pair in task.pairs for text in (pair.clean, pair.corrupted) if text]
    for text in texts:
        if not isinstance(text, str):
            found = f"the prompt {text!r:.60} is token ids"
            raise InterpError(f"task {task.name!r} in a chat template", found, "give texts")
    whole = dict(zip(texts, map(_text, [model] * len(texts), _rows(model, texts)), strict=True))
    pairs = tuple(
        replace(
            pair,
            clean=whole[pair.clean],
            corrupted=whole[pair.corrupted] if pair.corrupted else pair.corrupted,
            positions=_moved(pair.positions, str(pair.clean), whole[pair.clean], task.label(i)),
        )
        for i, pair in enumerate(task.pairs)
    )
    source = f"interp.tasks.in_chat_template(model, {task.source})" if task.source else ""
    return replace(task, pairs=pairs, source=source)


def _rows(model: LanguageModel, texts: list[Prompt]) -> tuple[tuple[int, ...], ...]:
    return chat_prompts(model, [str(text) for text in texts]).rows


def _text(model: LanguageModel, row: tuple[int, ...]) -> Prompt:
    """The text that the model reads as these tokens; the tokens, if there is none."""
    text = model.tokenizer.decode(row, clean_up_tokenization_spaces=False)
    return text if model.tokenize(text).tokens == row else row


def _moved(marks: Mapping[str, Mark], text: str, whole: Prompt, label: str) -> dict[str, Mark]:
    """The marks of a text as marks of the same text inside its template."""
    found: dict[str, Mark] = {}
    inner = text.strip()  # what templates keep of it
    start = whole.find(inner) if isinstance(whole, str) and whole.count(inner) == 1 else -1
    for name, mark in marks.items():
        by_text = ("", 0) if isinstance(mark, int) else mark
        part, number = (by_text, 0) if isinstance(by_text, str) else by_text
        begins = occurrences(part, inner)
        if start < 0 or not -len(begins) <= number < len(begins):
            raise InterpError(
                f"position {name!r} of {label} in a chat template",
                f"{mark!r:.60} is not a part of a text that the template has once, as it is",
                "mark a part of the prompt's text, or set the position after the template is added",
            )
        assert isinstance(whole, str)
        found[name] = (part, occurrences(part, whole).index(start + begins[number]))
    return found
