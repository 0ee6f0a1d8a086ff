"""Prompts made with a model's chat template."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2.exceptions import TemplateError

from interp.core.arguments import listed, texts_of
from interp.core.chat_prompts import PLAIN, ChatFormat, ChatPrompts, PromptsLike, common_end
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.models.language_model import LanguageModel


def chat_prompts(
    model: LanguageModel,
    texts: str | Sequence[str],
    *,
    system: str | None = None,
    generation_prompt: bool = True,
) -> ChatPrompts:
    """The user's texts in the model's own chat template; each text is the user's turn of a prompt.

    `system` is the text of the system prompt; None uses the template's default. With
    `generation_prompt`, prompts end with the tokens that open the model's reply.

    Raises:
        InterpError: the model has no chat template, the template refuses the turns (many accept no
            system prompt), or a text changes the tokens of the template after it.
    """
    template = getattr(model.tokenizer, "chat_template", None)
    if not template:
        raise InterpError(
            f"chat prompts for {model.name}",
            "it has no chat template",
            "use an instruction-tuned model, or plain_prompts()",
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
                "omit the system prompt" if system is not None else "correct the template",
            ) from error
        ids = model.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return model.tokenize(tuple(ids)).tokens

    # The common end of prompts made from single words comes from the template.
    words = sorted({word for text in texts for word in text.split()})[:16]
    tail = common_end([tokens(word) for word in ("a", *words)])
    rows = tuple(tokens(text) for text in texts)
    for number, row in enumerate(rows):
        if row[len(row) - len(tail) :] != tail:
            shown = "|".join(model.strings(row[-len(tail) - 2 :]))
            raise InterpError(
                f"chat prompt {number}",
                f"its end {shown!r} is not the end of the template, {model.strings(tail)}",
                "end the text with a word or a full stop",
            )
    key = content_key([template if isinstance(template, str) else dict(template), system])
    return ChatPrompts(
        rows=rows,
        format=ChatFormat(key, generation_prompt),
        tail=tail,
        ids=tuple(map(content_key, texts)),
    )


def plain_prompts(model: LanguageModel, prompts: PromptsLike) -> ChatPrompts:
    """Prompts as token ids without a template. `ChatPrompts` are returned unchanged."""
    if isinstance(prompts, ChatPrompts):
        return prompts
    rows = tuple(model.tokenize(prompt).tokens for prompt in texts_of(prompts))
    return ChatPrompts(rows=rows, format=PLAIN, tail=common_end(rows))
