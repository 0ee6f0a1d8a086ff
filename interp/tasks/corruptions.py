"""Corrupted prompts made from clean ones, with their tokens aligned: what differs, and where."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from interp.core.arguments import Tokenizing, listed, reads_arguments
from interp.core.continuations import GivenAnswer
from interp.core.errors import InterpError, unknown
from interp.core.prompts import PromptPair
from interp.core.schema import Seed, Text, checked
from interp.tasks.language import word_lists

CorruptionKind = Literal["entity", "number", "negation", "role", "paraphrase"]

_NUMBER = re.compile(r"\d+")
_VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|should|must|does|do|did)\b")
_NOT = re.compile(r" not\b")
FILLERS = (" also", " now", " still", " really", " often")
"""Words that stand where "not" stands, so that both prompts have as many tokens."""


@dataclass(frozen=True, kw_only=True)
class CorruptedPrompt:
    """A clean prompt and its corrupted counterpart of as many tokens.

    Attributes:
        kind: how it was corrupted.
        clean, corrupted: the two texts. Only "negation" may change the clean one, by a filler.
        tokens, others: the text of every token of both.
    """

    kind: CorruptionKind
    clean: str
    corrupted: str
    tokens: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def differ(self) -> tuple[int, ...]:
        """The positions at which the tokens differ."""
        both = zip(self.tokens, self.others, strict=True)
        return tuple(i for i, (one, other) in enumerate(both) if one != other)

    def __repr__(self) -> str:
        shown = ", ".join(f"{i}: {self.tokens[i]!r}/{self.others[i]!r}" for i in self.differ[:6])
        return (
            f"CorruptedPrompt({self.kind}, {len(self.differ)} of {len(self.tokens)} tokens differ; "
            f"{shown})"
        )

    def pair(
        self,
        answers: GivenAnswer | Sequence[GivenAnswer],
        wrong: GivenAnswer | Sequence[GivenAnswer] = (),
    ) -> PromptPair:
        """The two prompts as a pair. Position: changed (the last token that differs)."""
        return PromptPair(
            clean=self.clean,
            corrupted=self.corrupted,
            answers=tuple(listed(answers)),
            wrong=tuple(listed(wrong)),
            positions={"changed": self.differ[-1]},
        )


@reads_arguments
def corrupt(
    model: Tokenizing,
    prompt: str,
    kind: CorruptionKind,
    *,
    target: str = "",
    words: str | Sequence[str] = (),
    seed: int = 0,
) -> CorruptedPrompt:
    """Corrupt a prompt in one of five ways, so that both have the same number of tokens.

    "entity": every `target` becomes one of `words`. "number": a number (`target`, or the last one)
    becomes another with as many digits. "negation": "not" becomes a filler such as "also"; without
    "not" in the prompt, the corrupted prompt has "not" behind `target` (the first auxiliary verb by
    default), and the clean one the filler. "role": `target` and the one word in `words` change
    places. "paraphrase": words become synonyms, `target` alone if it is given; the meaning stays,
    so it is a control, after which a behaviour should be the same.

    Candidates are tried in an order given by `seed`; the first with as many tokens is taken.

    Raises:
        InterpError: an unknown kind, a target or words that are missing or not in the prompt,
            nothing to corrupt, or no candidate of as many tokens. The message shows the tokens.
    """
    if kind not in get_args(CorruptionKind):
        raise unknown("corruption", kind, get_args(CorruptionKind))
    prompt, seed = checked(Text, prompt, "a prompt"), checked(Seed, seed, "a seed")
    some = [checked(Text, word, "words of a corruption") for word in listed(words)]
    asked = f"the corruption {kind} of {prompt!r:.60}"
    if target and target not in prompt:
        raise InterpError(asked, f"no {target!r} in it", "give a part of the prompt as it is")
    needs = {"entity": (True, True), "role": (True, True)}.get(kind, (False, False))
    if needs != (False, False) and not (target and some):
        raise InterpError(asked, "no target or no words", "give target= and words=")
    if needs == (False, False) and some:
        raise InterpError(asked, f"words {some}, which it does not use", "leave words= out")
    made = {
        "entity": _entity,
        "number": _number,
        "negation": _negation,
        "role": _role,
        "paraphrase": _paraphrase,
    }[kind](prompt, target, some, asked)
    random.Random(f"{seed} {kind} {prompt}").shuffle(made)
    return _aligned(model, kind, made, asked)


def _entity(prompt: str, target: str, words: list[str], asked: str) -> list[tuple[str, str]]:
    part = _word(target)
    return [(prompt, part.sub(lambda _, w=word: w, prompt)) for word in words if word != target]


def _number(prompt: str, target: str, words: list[str], asked: str) -> list[tuple[str, str]]:
    found = [m for m in _NUMBER.finditer(prompt) if target in ("", m.group())]
    if not found:
        raise InterpError(asked, "no such number in it", "give a prompt with a number in digits")
    begin, end = found[-1].span()
    old, size = found[-1].group(), end - begin
    low = 0 if size == 1 else 10 ** (size - 1)
    new = [str(i) for i in range(low, min(10**size, low + 2000)) if str(i) != old]
    return [(prompt, prompt[:begin] + one + prompt[end:]) for one in new]


def _negation(prompt: str, target: str, words: list[str], asked: str) -> list[tuple[str, str]]:
    if (negated := _NOT.search(prompt)) is not None:
        begin, end = negated.span()
        return [(prompt, prompt[:begin] + filler + prompt[end:]) for filler in FILLERS]
    verb = _word(target).search(prompt) if target else _VERB.search(prompt)
    if verb is None:
        do = "give target=, the word behind which not belongs"
        raise InterpError(asked, "neither 'not' nor an auxiliary verb in it", do)
    before, after = prompt[: verb.end()], prompt[verb.end() :]
    return [(before + filler + after, f"{before} not{after}") for filler in FILLERS]


def _role(prompt: str, target: str, words: list[str], asked: str) -> list[tuple[str, str]]:
    if len(words) != 1 or words[0] == target or not _word(words[0]).search(prompt):
        found = f"words {words}"
        raise InterpError(asked, found, "give the one other word of the prompt that changes places")
    both = re.compile(f"{_word(target).pattern}|{_word(words[0]).pattern}")
    swapped = both.sub(lambda m: words[0] if m.group() == target else target, prompt)
    return [(prompt, swapped)]


def _paraphrase(prompt: str, target: str, words: list[str], asked: str) -> list[tuple[str, str]]:
    synonyms = {a: b for pair in word_lists()["synonyms"]["pairs"] for a, b in (pair, pair[::-1])}
    known = [w for w in synonyms if target in ("", w) and _word(w).search(prompt)]
    if not known:
        found = "no word of it has a synonym in the list"
        raise InterpError(asked, found, "use entity with target= and words= of your own")
    part = re.compile("|".join(_word(word).pattern for word in known))
    every = part.sub(lambda m: synonyms[m.group()], prompt)
    single = [_word(word).sub(synonyms[word], prompt) for word in known]
    return [(prompt, one) for one in dict.fromkeys([every, *single])]


def _word(text: str) -> re.Pattern[str]:
    """A text that is not a part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def _aligned(
    model: Tokenizing, kind: CorruptionKind, made: list[tuple[str, str]], asked: str
) -> CorruptedPrompt:
    """The first candidate whose two prompts differ and have as many tokens."""
    shown = "no other words"
    for clean, corrupted in made:
        one, other = model.tokenize(clean), model.tokenize(corrupted)
        if len(one.tokens) == len(other.tokens) and one.tokens != other.tokens:
            return CorruptedPrompt(
                kind=kind,
                clean=clean,
                corrupted=corrupted,
                tokens=one.strings,
                others=other.strings,
            )
        shown = (
            f"{len(one.tokens)} and {len(other.tokens)} tokens, different from token "
            f"{_first(one.tokens, other.tokens)} on:\n  {one.shown()}\n  {other.shown()}\n"
        )
    raise InterpError(asked, shown, "give words of as many tokens")


def _first(one: Sequence[int], other: Sequence[int]) -> int:
    both = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in both if a != b), min(len(one), len(other)))
