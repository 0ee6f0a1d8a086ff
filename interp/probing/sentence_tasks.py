"""Sentences for probes, made by a grammar so that every label is exact by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.schema import Count, checked
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    from pandas import DataFrame

NOUNS = (
    "dog cat bird horse cow pig duck goat bear lion tiger monkey rabbit frog snake spider doctor "
    "teacher farmer lawyer sailor singer dancer writer painter baker banker driver soldier student "
    "king queen girl boy brother sister cousin neighbor guest pilot judge nurse tailor robot ghost "
    "giant clown poet chef prince"
).split()
TARGETS = "river garden window bridge letter island".split()
"""The words that "word_content" looks for, in training and test sentences alike."""

VERBS = (
    "see:saw hear:heard find:found know:knew meet:met forget:forgot draw:drew lead:led "
    "fight:fought leave:left feed:fed hold:held hide:hid choose:chose forgive:forgave shake:shook "
    "bite:bit follow:followed help:helped call:called visit:visited greet:greeted admire:admired "
    "answer:answered trust:trusted blame:blamed thank:thanked warn:warned chase:chased love:loved "
    "lift:lifted pull:pulled invite:invited hire:hired fear:feared paint:painted need:needed "
    "join:joined praise:praised surprise:surprised"
).split()
ADJECTIVES = (
    "old young happy sad small big clever lazy quiet loud brave gentle angry hungry tired proud "
    "friendly polite rich poor tall short strong weak"
).split()
PREPOSITIONS = ("near", "behind", "beside")
DETERMINERS = (("the", "my"), ("our", "some"))
OPENERS = (("in fact", "of course"), ("at last", "after all"))
"""Of training and of test sentences."""

BINS = ("05-07", "08-10", "11-13", "14-16")


@dataclass(frozen=True, kw_only=True)
class ProbeSentence:
    """A sentence, the class of it, whether it is held out, and its template.

    `template` is the sentence with every noun, verb and adjective replaced by N, V and A.
    """

    text: str
    label: str
    test: bool
    template: str


@dataclass(frozen=True, kw_only=True)
class SentenceTask(Tabled):
    """The labelled sentences of one probing task: the classes are equally frequent."""

    name: str
    sentences: tuple[ProbeSentence, ...]

    def __repr__(self) -> str:
        held = sum(one.test for one in self.sentences)
        kinds = len({one.label for one in self.sentences})
        return (
            f"SentenceTask({self.name}, n={len(self.sentences)}, {held} held out, {kinds} classes)"
        )

    def to_dataframe(self) -> DataFrame:
        """One row per sentence."""
        from pandas import DataFrame

        return DataFrame([vars(one) for one in self.sentences])


class _Writer:
    """Writes sentences with the words of one side of the split."""

    def __init__(self, seed: int, name: str, test: bool) -> None:
        halves = np.random.default_rng(seed)
        nouns, verbs, adjectives = (
            halves.permutation(words).tolist() for words in (NOUNS, VERBS, ADJECTIVES)
        )
        self.nouns, self.verbs, self.adjectives = (
            words[test::2] for words in (nouns, verbs, adjectives)
        )
        self.random = np.random.default_rng([seed, sorted(TASKS).index(name), test])
        self.test, self.parts = test, []

    def start(self) -> None:
        self.parts: list[tuple[str, str]] = []
        self.left = [*self.random.permutation(self.nouns)]
        self.verbs_left = [*self.random.permutation(self.verbs)]
        self.first = True

    def pick(self, words: Sequence[str]) -> str:
        return words[int(self.random.integers(len(words)))]

    def word(self, text: str, kind: str = "") -> None:
        self.parts.append((text, kind or text))

    def noun(self, plural: bool = False, word: str | None = None) -> None:
        """A determiner, perhaps an adjective (always in the first of a test sentence), a noun."""
        self.word(self.pick(DETERMINERS[self.test]))
        if self.test if self.first else self.random.random() < 0.3:
            self.word(self.pick(self.adjectives), "A")
        self.first = False
        self.word((word or self.left.pop()) + "s" * plural, "N")

    def verb(self, past: bool = True) -> None:
        base, before = self.verbs_left.pop().split(":")
        self.word(before if past else base + "s", "V")

    def near(self, plural: bool = False, word: str | None = None) -> None:
        self.word(self.pick(PREPOSITIONS))
        self.noun(plural, word)

    def relative(self, past: bool = True) -> None:
        self.word("that")
        self.verb(past)
        self.noun()

    def opener(self) -> None:
        for word in self.pick(OPENERS[self.test]).split():
            self.word(word)

    def clause(self, plurals: Sequence[bool], words: Sequence[str | None] = (None,) * 3) -> None:
        """Subject, verb, object and a phrase with a preposition at one of three places."""
        subject, other, extra = zip(plurals, words, strict=True)
        place = int(self.random.integers(3))
        if place == 0:
            self.near(*extra)
        self.noun(*subject)
        if place == 1:
            self.near(*extra)
        self.verb()
        self.noun(*other)
        if place == 2:
            self.near(*extra)


def _length(writer: _Writer, label: str) -> None:
    low, high = map(int, label.split("-"))
    while True:
        writer.start()
        relatives = writer.random.integers(0, 2, size=2)
        phrases, verbs = writer.random.integers(0, 2), writer.random.integers(0, 3)
        writer.noun()
        for _ in range(relatives[0]):
            writer.relative()
        writer.verb()
        writer.noun()
        for _ in range(relatives[1]):
            writer.relative()
        for _ in range(phrases):
            writer.near()
        for _ in range(verbs):
            writer.word("and")
            writer.verb()
            writer.noun()
        if low <= len(writer.parts) <= high:
            return


def _content(writer: _Writer, label: str) -> None:
    words: list[str | None] = [None, None, None]
    words[int(writer.random.integers(3))] = label
    writer.clause((False, False, False), words)


def _depth(writer: _Writer, label: str) -> None:
    """Three relative clauses on three nouns: each modifies the last noun before it."""
    chains = {"1": (1, 1, 1), "2": (2, 1, 0), "3": (3, 0, 0)}[label]
    chains = writer.random.permutation(chains)
    fronted = bool(writer.random.integers(2))
    steps: list[Callable[[], None]] = [writer.noun, writer.noun, writer.near]
    order = (2, 0, 1) if fronted else (0, 1, 2)
    for at in order:
        if at == 1:
            writer.verb()
        steps[at]()
        for _ in range(chains[at]):
            writer.relative()


def _tense(writer: _Writer, label: str) -> None:
    """A main verb of one tense and a relative clause of the other, on the subject or the object."""
    past, on_subject = label == "past", bool(writer.random.integers(2))
    writer.noun()
    if on_subject:
        writer.relative(not past)
    writer.verb(past)
    writer.noun()
    if not on_subject:
        writer.relative(not past)


def _number(writer: _Writer, label: str, *, role: int) -> None:
    """The number of plurals among three nouns, 1 or 2, does not depend on the label."""
    plural = label == "plural"
    others = int(writer.random.integers(1, 3)) - plural
    flags = list(writer.random.permutation([True] * others + [False] * (2 - others)))
    flags.insert(role, plural)
    writer.clause([bool(flag) for flag in flags])


def _shift(writer: _Writer, label: str) -> None:
    writer.clause((False, False, False))
    if label == "shifted":
        at = int(writer.random.integers(1, len(writer.parts) - 2))
        writer.parts[at : at + 2] = writer.parts[at : at + 2][::-1]


def _inversion(writer: _Writer, label: str) -> None:
    """A pronoun in the second clause stands for the subject of the first."""
    plural = bool(writer.random.integers(2))
    writer.noun(plural)
    writer.verb()
    writer.noun()
    named, writer.parts = writer.parts, []
    writer.word("they" if plural else "it")
    writer.verb()
    writer.noun()
    pronoun, writer.parts = writer.parts, []
    writer.opener()
    first, second = (pronoun, named) if label == "inverted" else (named, pronoun)
    writer.parts += [*first, ("and", "and"), *second]


TASKS: dict[str, tuple[tuple[str, ...], Callable[[_Writer, str], None]]] = {
    "sentence_length": (BINS, _length),
    "word_content": (tuple(TARGETS), _content),
    "tree_depth": (("1", "2", "3"), _depth),
    "tense": (("past", "present"), _tense),
    "subject_number": (("plural", "singular"), partial(_number, role=0)),
    "object_number": (("plural", "singular"), partial(_number, role=1)),
    "bigram_shift": (("intact", "shifted"), _shift),
    "coordination_inversion": (("intact", "inverted"), _inversion),
}


@reads_arguments
def probe_sentences(
    task: str, *, n: int = 1000, test_share: float = 0.3, seed: int = 0
) -> SentenceTask:
    """The labelled sentences of one probing task, in lower case, each with a full stop.

    - `sentence_length`: number of words, in four bins from 5 to 16.
    - `word_content`: which of six words occurs.
    - `tree_depth`: the longest chain of relative clauses, each on the noun of the one before. Every
      sentence has three such clauses, so that function words do not tell the depth.
    - `tense`: of the main verb. A relative clause has the other tense.
    - `subject_number`, `object_number`: verbs are in the past and do not agree. How many of the
      three nouns are plural does not depend on the label.
    - `bigram_shift`: two adjacent words are exchanged, neither of them the first or the last.
    - `coordination_inversion`: two clauses are exchanged, so that a pronoun comes before its noun.

    In the last two, the words of a sentence do not tell the label. Test sentences share no noun, no
    verb, no adjective, no determiner and no template with training sentences, in any task. There is
    one exception: the six words that `word_content` looks for are in both, since they are the
    classes. Prepositions, "that", "and" and pronouns are shared.

    Args:
        task: one of the eight names.
        n: number of sentences, all different; about 100 or more.
        test_share: share of the sentences that is held out.
        seed: seed of the sentences and of the halves of the vocabulary.

    Raises:
        InterpError: an unknown task, a share that is not between 0 and 1, or fewer than 10
            sentences of a class on either side.

    Departs from the source: sentences are made, not taken from a corpus. So labels are exact and
    cues are balanced, and the sentences are simpler than natural ones.
    Source: the probing tasks of SentEval, Conneau et al. 2018, arXiv 1805.01070.
    """
    if task not in TASKS:
        raise unknown("probing task", task, TASKS)
    classes, write = TASKS[task]
    n_test = round(checked(Count, n, "the sentences of a probing task") * test_share)
    if not 0 < test_share < 1 or min(n_test, n - n_test) < 10 * len(classes):
        found = f"n={n}, test_share={test_share:g}, {len(classes)} classes"
        do = "give a share between 0 and 1, and 10 sentences of each class on both sides"
        raise InterpError(f"the sentences of {task}", found, do)
    sentences: list[ProbeSentence] = []
    seen: set[Any] = set()
    for test, count in ((False, n - n_test), (True, n_test)):
        writer = _Writer(seed, task, test)
        while count:
            writer.start()
            label = classes[count % len(classes)]
            write(writer, label)
            words, kinds = zip(*writer.parts, strict=True)
            if (same := tuple(sorted(words))) in seen:
                continue
            seen.add(same)
            text, template = f"{' '.join(words)}.", " ".join(kinds)
            sentences.append(ProbeSentence(text=text, label=label, test=test, template=template))
            count -= 1
    return SentenceTask(name=task, sentences=tuple(sentences))
