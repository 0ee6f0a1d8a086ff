"""Generators of short tasks of language and knowledge, with in-house word lists."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from interp.core.arguments import Tokenizing
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair
from interp.tasks.generators import CAPITAL_TEMPLATES
from interp.tasks.words import NOUNS, single_token, word_size

WORDS = Path(__file__).parent.parent / "data" / "language_tasks.json"

PRONOUN_TEMPLATES = (
    "So {name} is a really good friend, isn't",
    "The teacher thanked {name}, because",
    "I asked {name} to come along, but",
)
LANGUAGE_TEMPLATES = (
    "The main language spoken in {country} is",
    "Most people in {country} speak",
    "The official language of {country} is",
)
KIND_TEMPLATES = (
    "A sofa is a kind of furniture, and a {word} is a kind of",
    "A coat is a type of clothing, and a {word} is a type of",
)
ARE, IS = (" are", " were", " have"), (" is", " was", " has")


@cache
def word_lists() -> dict[str, Any]:
    """The word lists, by task."""
    return json.loads(WORDS.read_text(encoding="utf-8"))


def subject_verb_agreement(
    n: int, seed: int, model: Tokenizing | None = None
) -> tuple[PromptPair, ...]:
    """A verb agrees with its subject, not with the next noun: "The keys near the lake" -> are.

    The corrupted prompt has the subject in the other number, whose verbs are the wrong answers.
    Verbs: is, was, has; are, were, have. Position: subject.

    Raises:
        InterpError: too few nouns have one token in both numbers.
    """
    lists, rng = word_lists()["subject_verb_agreement"], random.Random(seed)
    nouns = _whole(lists["nouns"], model, 6)
    cells = [
        (noun, number, f" {preposition} the {place}")
        for noun in nouns
        for number in (0, 1)
        for preposition in lists["prepositions"]
        for place in lists["places"]
    ]
    return tuple(
        PromptPair(
            clean=f"I think that the {noun[number]}{rest}",
            corrupted=f"I think that the {noun[1 - number]}{rest}",
            answers=(IS, ARE)[number],
            wrong=(ARE, IS)[number],
            positions={"subject": f" {noun[number]}"},
        )
        for noun, number, rest in _drawn(cells, n, rng)
    )


def gender_pronouns(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """A pronoun agrees with a name (Mathwin et al. 2023): "So John is ..., isn't" -> he.

    The corrupted prompt has a name that takes the other pronoun, which is the wrong answer.
    Position: name.

    Raises:
        InterpError: too few names are single tokens.
    """
    lists, rng = word_lists()["gender_pronouns"], random.Random(seed)
    sides = [(one, single_token(lists[one], model, 4)) for one in ("he", "she")]
    cells = [
        (name, said, other, names, text)
        for (said, mine), (other, names) in (sides, sides[::-1])
        for name in mine
        for text in PRONOUN_TEMPLATES
    ]
    return tuple(
        PromptPair(
            clean=text.format(name=name),
            corrupted=text.format(name=rng.choice(names)),
            answers=(f" {said}",),
            wrong=(f" {other}",),
            positions={"name": name},
        )
        for name, said, other, names, text in _drawn(cells, n, rng)
    )


def country_language(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """The language of a country: "The main language spoken in France is" -> French.

    The corrupted prompt names a country of another language, which is the wrong answer. Position:
    country.

    Raises:
        InterpError: too few languages are single tokens.
    """
    pairs = word_lists()["country_language"]["languages"]
    return _facts(pairs, LANGUAGE_TEMPLATES, "country", n, seed, model)


def long_capitals(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """Capitals of several tokens, scored as a whole: "The capital of Argentina is" -> Buenos Aires.

    The corrupted prompt names another country with as many tokens, whose capital is the wrong
    answer. With a model, only capitals of several tokens are used. Position: country.

    Raises:
        InterpError: too few capitals have several tokens.
    """
    pairs = word_lists()["long_capitals"]["capitals"]
    kept = [pair for pair in pairs if model is None or word_size(pair[1], model) > 1]
    _require(len(kept), "capitals of several tokens", model)
    return _facts(kept, CAPITAL_TEMPLATES[:1], "country", n, seed, model, whole=True)


def hypernyms(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """The kind a thing is of, after an example: "... and a sparrow is a kind of" -> bird.

    The corrupted prompt names a thing of another kind, which is the wrong answer. Position: word.

    Raises:
        InterpError: too few kinds are single tokens.
    """
    kinds = word_lists()["hypernyms"]["kinds"]
    pairs = [(word, kind) for kind, words in kinds.items() for word in words]
    return _facts(pairs, KIND_TEMPLATES, "word", n, seed, model)


def successor(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """The next of a row (Gould et al. 2023): "Monday, Tuesday, Wednesday," -> Thursday.

    Rows: days, months, number words, ordinals, letters and Roman numerals. The corrupted prompt
    begins at another place of the row, and its next word is the wrong answer. Position: before (the
    last word but one).

    Raises:
        InterpError: too few words are single tokens.
    """
    rng, cells = random.Random(seed), []
    for row in word_lists()["successor"]["rows"]:
        runs = [row[i : i + 4] for i in range(len(row) - 3)]
        if model is not None:
            runs = [run for run in runs if all(word_size(word, model) == 1 for word in run)]
        cells += [(run, [o for o in runs if o[3] != run[3]]) for run in runs if len(runs) > 1]
    _require(len(cells), "runs of four words of one token", model)
    found = []
    for run, others in _drawn(cells, n, rng):
        other = rng.choice(others)
        clean, corrupted = (f"In order: {', '.join(words[:3])}," for words in (run, other))
        found.append(
            PromptPair(
                clean=clean,
                corrupted=corrupted,
                answers=(f" {run[3]}",),
                wrong=(f" {other[3]}",),
                positions={"before": f" {run[1]}"},
            )
        )
    return tuple(found)


def copy(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """A row of words, said again: "Original: river stone doctor ... Copy: river stone" -> doctor.

    The corrupted prompt has another word in its place, which is the wrong answer. Position: source
    (the word that is copied).

    Raises:
        InterpError: too few words are single tokens.
    """
    rng, words = random.Random(seed), single_token(NOUNS, model, 8)
    found = []
    for _ in range(n):
        *chosen, other = rng.sample(words, 6)
        at = rng.randrange(1, 5)
        changed = [*chosen[:at], other, *chosen[at + 1 :]]
        clean, corrupted = (
            f"Original: {' '.join(row)}\nCopy: {' '.join(chosen[:at])}" for row in (chosen, changed)
        )
        found.append(
            PromptPair(
                clean=clean,
                corrupted=corrupted,
                answers=(f" {chosen[at]}",),
                wrong=(f" {other}",),
                positions={"source": f" {chosen[at]}"},
            )
        )
    return tuple(found)


def docstring(n: int, seed: int, model: Tokenizing | None = None) -> tuple[PromptPair, ...]:
    """The next argument of a function in its docstring (Heimersheim and Janiak 2023).

    The signature has five arguments, and the docstring describes the first two or three. The
    corrupted prompt has another name for the next one, which is the wrong answer. Position:
    argument (the next one, in the signature).

    Raises:
        InterpError: too few names are single tokens.
    """
    lists, rng, found = word_lists()["docstring"], random.Random(seed), []
    names, words = (single_token(lists[name], model, 8) for name in ("arguments", "words"))
    for _ in range(n):
        *chosen, other = rng.sample(names, 6)
        at, said = rng.choice((2, 3)), rng.sample(words, 8)
        lines = [
            f"    :param {name}: {said[i]} {said[-1 - i]}" for i, name in enumerate(chosen[:at])
        ]
        body = f'    """{said[3]} {said[4]}\n\n' + "\n".join(lines) + "\n    :param"

        def written(row: Sequence[str], body: str = body) -> str:
            return f"def run(self, {', '.join(row)}):\n{body}"

        found.append(
            PromptPair(
                clean=written(chosen),
                corrupted=written([*chosen[:at], other, *chosen[at + 1 :]]),
                answers=(f" {chosen[at]}",),
                wrong=(f" {other}",),
                positions={"argument": f" {chosen[at]}"},
            )
        )
    return tuple(found)


def _facts(
    pairs: Sequence[Sequence[str]],
    templates: Sequence[str],
    place: str,
    n: int,
    seed: int,
    model: Tokenizing | None,
    *,
    whole: bool = False,
) -> tuple[PromptPair, ...]:
    """Prompts about a subject; the corrupted one names a subject of another answer and its size.

    Answers are single tokens, unless `whole`.
    """
    rng, answers = random.Random(seed), sorted({answer for _, answer in pairs})
    kept = {*answers} if whole else {*single_token(answers, model, 4)}
    known = {subject: answer for subject, answer in pairs if answer in kept}
    size = {one: 1 if model is None else word_size(one, model) for one in known}
    alike = {
        one: [o for o in known if known[o] != known[one] and size[o] == size[one]] for one in known
    }
    cells = [(one, text) for one in known if alike[one] for text in templates]
    found = []
    for subject, text in _drawn(cells, n, rng):
        other = rng.choice(alike[subject])
        found.append(
            PromptPair(
                clean=text.format(**{place: subject}),
                corrupted=text.format(**{place: other}),
                answers=(f" {known[subject]}",),
                wrong=(f" {known[other]}",),
                positions={place: subject},
            )
        )
    return tuple(found)


def _whole(
    pairs: Sequence[Sequence[str]], model: Tokenizing | None, least: int
) -> list[Sequence[str]]:
    """The pairs whose two words are single tokens."""
    kept = [p for p in pairs if model is None or all(word_size(word, model) == 1 for word in p)]
    _require(len(kept), f"pairs of words of one token, {least} needed", model, least)
    return kept


def _require(found: int, what: str, model: Tokenizing | None, least: int = 4) -> None:
    if found < least:
        name = "any model" if model is None else model.name
        do = "write the prompts for this vocabulary (Task.from_jsonl)"
        raise InterpError(f"{what} in {name}", f"{found}", do)


def _drawn(cells: Sequence[Any], n: int, rng: random.Random) -> Iterator[Any]:
    """N cells in random order; they repeat when all have been used."""
    order = list(cells)
    for i in range(n):
        if i % len(order) == 0:
            rng.shuffle(order)
        yield order[i % len(order)]


LANGUAGE_TASKS: dict[str, tuple[Callable[..., tuple[PromptPair, ...]], str]] = {
    "long_capitals": (long_capitals, "'The capital of Argentina is' -> Buenos Aires, in full"),
    "subject_verb_agreement": (
        subject_verb_agreement,
        "'I think that the keys near the lake' -> are",
    ),
    "gender_pronouns": (gender_pronouns, "'So John is a really good friend, isn't' -> he"),
    "country_language": (country_language, "'The main language spoken in France is' -> French"),
    "hypernyms": (hypernyms, "'A sofa is a kind of furniture, and a sparrow is a kind of' -> bird"),
    "successor": (successor, "'In order: Monday, Tuesday, Wednesday,' -> Thursday"),
    "copy": (copy, "'Original: river stone doctor Copy: river stone' -> doctor"),
    "docstring": (docstring, "The next argument of a function in its docstring"),
}
"""The generators and descriptions of the tasks, by name."""
