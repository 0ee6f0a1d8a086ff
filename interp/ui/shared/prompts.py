"""The prompt that a visitor typed: kept by its hash, which links name, and the form that asks."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import streamlit as st

from interp.core.continuations import answer_token, answer_tokens
from interp.core.errors import InterpError
from interp.core.files import cache_dir, canonical_json, write_atomically
from interp.core.positions import Prompt
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel
from interp.overview.findings import is_one_token
from interp.plots.style import visible
from interp.ui.shared import cache, offered, widgets
from interp.ui.shared.state import current, fit, ignored, select

EXAMPLE = "The Eiffel Tower is in the city of"
FOIL_HELP = "Optional: a prompt of as many tokens with another answer, or a wrong token."
MOST_CHARACTERS = 50_000
"""Characters of a prompt with its answers and foil."""
MOST_KEPT = 4_000
"""Prompts that are kept; those not opened for the longest time are removed."""


@dataclass(frozen=True)
class AskedPrompt:
    """What was typed: the prompt, the tokens and the foil it is compared with, and their form.

    chat: whether prompt and foil are put into the model's chat template.
    """

    prompt: str
    answer: str | int | None = None
    wrong: str | int | None = None
    foil: str | None = None
    chat: bool = False

    @property
    def hash(self) -> str:
        """128 bits that stand for this text in a link; the text cannot be read from them."""
        text = canonical_json(asdict(self)).encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).hexdigest()[:32]

    def given(self, model: LanguageModel, text: str | None = None) -> Prompt:
        """The prompt, or another text such as the foil, as the model gets it.

        Raises:
            InterpError: the text is to be put into a chat template and the model has none.
        """
        text = self.prompt if text is None else text
        return chat_prompts(model, text).rows[0] if self.chat and text else text

    def given_foil(self, model: LanguageModel) -> Prompt | None:
        """The foil as the model gets it; None without one."""
        return self.given(model, self.foil) if self.foil else None

    def understood(self, model: LanguageModel) -> AskedPrompt:
        """The same question; a foil of one token that can follow the prompt is the wrong answer."""
        if self.wrong or not self.foil or not is_one_token(model, self.given(model), self.foil):
            return self
        return replace(self, wrong=self.foil, foil=None)

    def by_first_tokens(self, model: LanguageModel) -> AskedPrompt:
        """The same question of single tokens: the first ones of longer answers.

        Without anything to compare with, if both answers begin with the same token.
        """
        texts, given = (self.answer, self.wrong), self.given(model)
        answer, wrong = (text and _first_token(model, given, text) for text in texts)
        if (answer, wrong) == texts:
            return self
        return replace(self, answer=answer, wrong=None if wrong == answer else wrong)

    def is_summed(self, model: LanguageModel) -> bool:
        """Whether the answer is several tokens, and the other one as many or left to the model."""
        if self.answer is None:
            return False
        given, texts = self.given(model), (self.answer, self.wrong)
        lengths = {len(_tokens(model, given, text)) for text in texts if text is not None}
        return len(lengths) == 1 and max(lengths) > 1

    def python(self, text: str | None = None) -> str:
        """The Python expression of `given`."""
        text = self.prompt if text is None else text
        return f"interp.models.chat_prompts(model, {text!r}).rows[0]" if self.chat else repr(text)


def token_text(model: LanguageModel, prompt: Prompt, token: int) -> str | int:
    """The text that is read as this token after a prompt; the token, if there is none."""
    (text,) = model.strings([token])
    try:
        return text if answer_token(model, prompt, text, "an answer") == token else token
    except InterpError:
        return token


def _tokens(model: LanguageModel, prompt: Prompt, text: str | int) -> tuple[int, ...]:
    """The tokens of an answer; none if no tokens write it, which is refused later."""
    try:
        return answer_tokens(model, prompt, text, "an answer")
    except InterpError:
        return ()


def _first_token(model: LanguageModel, prompt: Prompt, text: str | int) -> str | int:
    """The first token of an answer."""
    tokens = _tokens(model, prompt, text)
    return text if len(tokens) < 2 else token_text(model, prompt, tokens[0])


def by_first_tokens(model: LanguageModel, asked: AskedPrompt) -> AskedPrompt:
    """The question of single tokens, where a page takes no others; the page says so."""
    first = asked.by_first_tokens(model)
    for whole, token in ((asked.answer, first.answer), (asked.wrong, first.wrong)):
        if whole is not None and whole != token:
            read = f"{_shown(token)} is read" if token is not None else _ALIKE
            st.info(
                f"{_shown(whole)} is several tokens. Here {read}. *Scan* on Look measures whole "
                "answers, and so does Patching on pairs.",
                icon=":material/short_text:",
            )
    return first


def by_sums(model: LanguageModel, asked: AskedPrompt) -> AskedPrompt:
    """The question as direct contributions answer it; the page says how.

    They are summed over the tokens of a longer answer if the other one has as many. If not, the
    first tokens are read.
    """
    if asked.answer is None or not asked.is_summed(model):
        return by_first_tokens(model, asked)
    n = len(_tokens(model, asked.given(model), asked.answer))
    other = "the likeliest other token, at each"
    if asked.wrong is not None:
        other = f"{_shown(asked.wrong)}, token by token"
    st.info(
        f"{_shown(asked.answer)} is {n} tokens, compared with {other}. What a part adds is summed "
        "over them, each read behind the answer's tokens before it. Next tokens and the lens read "
        "the first.",
        icon=":material/short_text:",
    )
    return asked


_ALIKE = "it is left out, because both begin alike"


def _shown(text: str | int) -> str:
    return f"**{widgets.plain(visible(str(text)))}**"


def keep(asked: AskedPrompt) -> None:
    """Keep a prompt, so that a link with its hash finds it.

    Raises:
        InterpError: it is too long, or the cache folder cannot be written.
    """
    size = sum(len(text) for text in asdict(asked).values() if isinstance(text, str))
    if size > MOST_CHARACTERS:
        raise InterpError(
            "a typed prompt", f"{size} characters", f"write at most {MOST_CHARACTERS}"
        )
    path = _path(asked.hash)
    text = canonical_json(asdict(asked)).encode("utf-8", "surrogatepass")
    write_atomically(path, lambda part: part.write_bytes(text))
    kept = sorted(path.parent.glob("*.json"), key=_last_used)
    for old in kept[:-MOST_KEPT]:
        old.unlink(missing_ok=True)


def found(key: str) -> AskedPrompt | None:
    """The kept prompt with a hash; None if there is none."""
    if not re.fullmatch("[0-9a-f]{32}", key):
        return None
    with suppress(OSError, ValueError, TypeError):
        asked = AskedPrompt(**json.loads(_path(key).read_bytes()))
        with suppress(OSError):
            os.utime(_path(key))
        return asked if asked.hash == key else None
    return None


def _path(key: str) -> Path:
    return cache_dir() / "prompts" / f"{key}.json"


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another visitor's page removed it


def asked() -> AskedPrompt | None:
    """The prompt that the selection names; None before one is typed.

    Raises:
        InterpError: a link names a prompt that is not kept here.
    """
    key = current().asked
    mine = st.session_state.get("asked-prompt")
    if key is None or (mine is not None and mine.hash == key):
        return None if key is None else mine
    if (kept := found(key)) is None:
        raise InterpError(
            f"the prompt {key[:40]} that this link names",
            f"it is not kept on this server, which keeps the last {MOST_KEPT} prompts typed here",
            "ask the sender for its text, or type a prompt",
        )
    st.session_state["asked-prompt"] = kept
    return kept


def opened(button: str, icon: str) -> tuple[LanguageModel, AskedPrompt] | None:
    """The model and the prompt of a page, below the form that asks for them; None before a click.

    The form holds the example until something is typed, so one click runs it. What else the
    selection names is brought into the model's range.

    Raises:
        InterpError: the link's prompt is not kept here, or the model cannot be loaded.
    """
    error, mine = None, None
    try:
        mine = asked()
    except InterpError as unknown:
        error = unknown
    template = _form(mine or AskedPrompt(EXAMPLE), button, icon)
    if error is not None:
        raise error
    if mine is None or current().model is None:
        words = f"Press **{button}**: the example runs on the default model."
        st.info(words, icon=":material/east:")
        return None
    model = cache.load_model(str(current().model), current().dtype)
    if mine.chat or getattr(model.tokenizer, "chat_template", None):
        template(mine.chat)
    fit(layer=range(model.n_layers))
    if mine.chat:
        text = model.tokenizer.decode(mine.given(model), clean_up_tokenization_spaces=False)
        st.caption("The prompt in the model's chat template")
        st.code(text, language=None, wrap_lines=True)
    return model, mine.understood(model)


def aligned(
    model: LanguageModel,
    clean: Prompt,
    other: Prompt | None,
    names: tuple[str, str] = ("clean prompt", "corrupted prompt"),
) -> bool:
    """Both prompts, token by token; where they differ in length, what stands for what.

    Returns:
        Whether they have as many tokens.
    """
    first = list(model.tokenize(clean).strings)
    if other is None:
        widgets.token_strip(first, None, {})
        return True
    second = list(model.tokenize(other).strings)
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    rows: tuple[list[str], list[str]] = [], []
    unequal = []
    for _, a, b, c, d in blocks if len(first) != len(second) else [("", 0, None, 0, None)]:
        parts = first[a:b], second[c:d]
        for row, part in zip(rows, parts, strict=True):
            row += part + [""] * (max(map(len, parts)) - len(part))
        if len(parts[0]) != len(parts[1]):
            here, there = (widgets.plain(widgets.visible("|".join(part)) or "–") for part in parts)
            unequal.append(
                f"**{here}** ({len(parts[0])}) stands against **{there}** ({len(parts[1])})"
            )
    if unequal:
        st.warning(
            f"The {names[0]} has {len(first)} tokens, the {names[1]} {len(second)}: "
            f"{', '.join(unequal)}. Choose words of as many tokens, so that the prompts can be "
            "patched token by token.",
            icon=":material/straighten:",
        )
    widgets.token_strip(*rows, {}, names)
    return len(first) == len(second)


def _form(shown: AskedPrompt, button: str, icon: str) -> Callable[[bool], Any]:
    """The form; nothing runs before its button. Returns what adds the switch of the template.

    The keys of its fields change with the prompt: a browser keeps what a field of a key holds.
    """
    key = f"ask-{shown.hash}-{current().model}-".__add__
    with st.form("ask", border=True):
        st.text_area("Prompt", shown.prompt, key=key("prompt"), height=70)
        answer, wrong, foil = st.columns([1, 1, 3])
        answer.text_input(
            "Answer",
            shown.answer or "",
            key=key("answer"),
            placeholder="the likeliest token",
            help="What is explained, a token or a longer answer, with its leading space.",
        )
        wrong.text_input(
            "Compared with",
            shown.wrong or "",
            key=key("wrong"),
            placeholder="the runner-up",
            help="The token, or longer text, that the answer is compared with.",
        )
        foil.text_input(
            "Foil", shown.foil or "", key=key("foil"), help=FOIL_HELP, placeholder=FOIL_HELP
        )
        model, template, submit = st.columns([3, 1, 1], vertical_alignment="bottom")
        widgets.choose_model(list(offered.offered()), current().model, into=model, key=key("model"))
        submit.form_submit_button(
            button, type="primary", icon=icon, width="stretch", on_click=_take, args=(key,)
        )
    return lambda on: template.toggle(
        "Chat template",
        on,
        key=key("chat"),
        help="Put the prompt into the model's chat template, as the user's turn.",
    )


def _take(key: Callable[[str], str]) -> None:
    """Read the form, and keep what it says."""
    texts = (st.session_state[key(name)] or None for name in ("answer", "wrong", "foil"))
    chat = bool(st.session_state.get(key("chat"), False))
    mine, model = (
        AskedPrompt(st.session_state[key("prompt")], *texts, chat=chat),
        st.session_state[key("model")],
    )
    take(mine)
    other = {} if model == current().model else {"neuron": None}
    select(model=model, asked=mine.hash, token=None, target=None, **other)


def take(asked: AskedPrompt) -> None:
    """Keep a prompt, and make it the one that the pages read once the selection names it."""
    try:
        keep(asked)
    except InterpError as error:
        ignored().append(f"This prompt has no link. {error.asked}: {error.found}; {error.do}")
    st.session_state["asked-prompt"] = asked
