"""Habits of a model's reasoning, found in its texts by rules, and a task of where one begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from interp.core.arguments import listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.core.schema import Brief
from interp.core.statistics import Estimate, mean_estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.text_runs import Generation

RULES = "habits/1"
"""The version of the rules that ship. Another wording of a rule gets another version."""


@dataclass(frozen=True, kw_only=True)
class HabitRule(Brief):
    """A habit as a regular expression, in which case does not count.

    A habit begins where the first group matches, or the whole expression if it has no group. With
    `again`, a match counts if the same words were matched before in the same text.

    Raises:
        InterpError: no regular expression.
    """

    name: str
    pattern: str
    again: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            do = "give one that re.compile reads"
            raise InterpError(
                f"the rule {self.name!r}", f"{self.pattern!r:.60}: {error}", do
            ) from None


HABITS: tuple[HabitRule, ...] = (
    HabitRule(name="waiting", pattern=r"\b(?:wait|hold on|hang on|hmm+)\b"),
    HabitRule(
        name="rejecting",
        pattern=r"\bnot (?:this|that|right|correct|\d+)\b|\b(?:does|did)(?: not|n't) work\b"
        r"|\bis(?:n't| wrong\b)",
    ),
    HabitRule(name="accepting", pattern=r"\b(?:this|that|it) (?:works|is (?:right|correct))\b"),
    HabitRule(
        name="checking",
        pattern=r"\b(?:double[- ])?(?:check|verify|confirm)(?:ing)?\b|\bmake sure\b",
    ),
    HabitRule(
        name="restarting",
        pattern=r"\b(?:start|begin|try) (?:again|over|anew)\b"
        r"|\b(?:another|a different) (?:way|approach|method)\b|\binstead\b",
    ),
    HabitRule(name="new attempt", pattern=r"(?<=\n)-(?= )"),
    HabitRule(name="repeating a sum", pattern=r"(?m)^[- ]*(\d+(?: [-+*/] \d+)+)(?= =)", again=True),
)
"""The rules of `RULES`. The wordings are ours: CogTest asks a language model, not patterns."""


@dataclass(frozen=True, kw_only=True)
class HabitOnset(Brief):
    """A place where a habit shows: the number of the text, its first and last character + 1."""

    habit: str
    trace: int
    start: int
    end: int
    words: str


@dataclass(frozen=True, kw_only=True)
class Habits(Tabled):
    """Where habits show in n texts.

    Attributes:
        rules: the version of the rules, "own" for rules that were given.
        names: the habits that were looked for.
        onsets: all places, by text and then by place.
        n: number of texts.
    """

    rules: str
    names: tuple[str, ...]
    onsets: tuple[HabitOnset, ...]
    n: int

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.share(name).mean:z.2f}" for name in self.names)
        return f"Habits({self.rules}, n={self.n} texts; share of texts: {shown})"

    def counts(self, habit: str) -> np.ndarray:
        """(n,) how often a habit shows in each text.

        Raises:
            InterpError: it was not looked for.
        """
        if habit not in self.names:
            raise unknown("habit", habit, self.names)
        own = [one.trace for one in self.onsets if one.habit == habit]
        return np.bincount(np.array(own, dtype=int), minlength=self.n)

    def share(self, habit: str) -> Estimate:
        """The share of texts that show a habit at least once (Wilson interval)."""
        return share_estimate(int((self.counts(habit) > 0).sum()), self.n)

    def to_dataframe(self) -> Any:
        """One row per habit: the share of texts that show it, and the mean count of a text."""
        from pandas import DataFrame

        rows = []
        for name in self.names:
            share, mean = self.share(name), mean_estimate(self.counts(name))
            rows.append({"habit": name, "share": share.mean, "low": share.low, "high": share.high})
            rows[-1] |= {"a text": mean.mean, "a text, low": mean.low, "a text, high": mean.high}
            rows[-1]["n"] = self.n
        return DataFrame(rows)

    def plot(self) -> Any:
        """A Plotly figure: the share of texts that show each habit."""
        from interp.plots.components import bars

        shares = [(name, self.share(name).mean) for name in self.names]
        return bars(shares, x_title="share of texts that show it")


def find_habits(texts: Sequence[str], *, rules: str | Sequence[HabitRule] = RULES) -> Habits:
    """Which habits of reasoning some texts show, and where.

    The intervals take the texts as independent: give one text of each prompt, and only what the
    model wrote, without the prompt. A rule finds words: "wait" in a story is no habit of reasoning.

    Args:
        texts: what a model wrote.
        rules: "habits/1", or rules of your own.

    Raises:
        InterpError: no texts, other rules of that name, no rules, or two of one name.

    Source: CogTest, arXiv 2506.21571, profiles of cognitive habits. Departures: patterns in place
    of a language model, other habits, and intervals.
    """
    given = listed(texts)
    if not given or not all(isinstance(text, str) for text in given):
        raise InterpError("habits", f"{len(given)} texts, or no text", "give what a model wrote")
    chosen = _rules(rules)
    onsets = [one for i, text in enumerate(given) for one in _onsets(text, i, chosen)]
    names = tuple(rule.name for rule in chosen)
    version = rules if isinstance(rules, str) else "own"
    return Habits(rules=version, names=names, onsets=tuple(onsets), n=len(given))


def _rules(rules: str | Sequence[HabitRule]) -> tuple[HabitRule, ...]:
    if isinstance(rules, str):
        if rules != RULES:
            raise unknown("version of rules", rules, (RULES,))
        return HABITS
    chosen, names = tuple(listed(rules)), [getattr(rule, "name", None) for rule in listed(rules)]
    if not chosen or None in names or len({*names}) < len(names):
        raise InterpError("rules of habits", f"{names}", "give HabitRule objects, each name once")
    return chosen


def _onsets(text: str, trace: int, rules: Sequence[HabitRule]) -> list[HabitOnset]:
    """The onsets in one text, by place."""
    found = []
    for rule in rules:
        seen: set[str] = set()
        for match in re.finditer(rule.pattern, text, re.IGNORECASE):
            start, end = match.span(1 if match.re.groups and match.group(1) else 0)
            words = text[start:end]
            if not rule.again or words.lower() in seen:
                one = HabitOnset(habit=rule.name, trace=trace, start=start, end=end, words=words)
                found.append(one)
            seen.add(words.lower())
    return sorted(found, key=lambda one: (one.start, one.habit))


@dataclass(frozen=True, kw_only=True)
class HabitTask(Brief):
    """A task of where a habit begins, and the same question where it does not begin.

    Attributes:
        task: clean prompts end where the habit begins, corrupted ones at a matched place without.
        null: clean prompts are the corrupted ones of `task`, corrupted ones are other matched
            places without the habit; None if there is no second place.
        traces: the text that each pair's clean prompt is from.
        others: the text that each pair's corrupted prompt is from.
        unmatched: texts with the habit that have no matched place, and are left out.
    """

    task: Task
    null: Task | None
    traces: tuple[int, ...]
    others: tuple[int, ...]
    unmatched: int


@reads_arguments
def habit_task(
    model: LanguageModel,
    texts: Sequence[Generation],
    habit: str,
    *,
    rules: str | Sequence[HabitRule] = RULES,
    foil: str | int | None = None,
    seed: int = 0,
) -> HabitTask:
    """Prompts that end where a habit begins, with its first token as the answer.

    The clean prompt is a text up to the token with the habit's first character. The corrupted one
    is another text up to a matched place: as many tokens, the same last token, and another next
    token. So position and last token do not tell the two apart, and patching asks what else does.
    Each text gives at most one clean prompt, from its first onset that has a match, and each place
    is used once.

    `null` asks the same of two places without the habit. What has an effect there too does not
    belong to the habit.

    Args:
        model: the model that wrote the texts, or another with its tokens.
        texts: what `interp.generate` returned.
        habit: a name of the rules.
        rules: as in `find_habits`, applied to what follows each prompt.
        foil: the wrong answer, one token; by default the likeliest next token of the clean prompt
            that is not the answer: what the model would write otherwise.
        seed: of the choice among matched places.

    Raises:
        InterpError: an unknown habit, texts that were not generated, a habit that no text shows at
            a place that has a match, or a foil that is the habit's first token.
    """
    given = listed(texts)
    if not given or not all(isinstance(one, Generation) for one in given):
        found, do = f"{len(given)} texts, or others", "give what interp.generate returned"
        raise InterpError(f"a task of the habit {habit!r}", found, do)
    chosen = [rule for rule in _rules(rules) if rule.name == habit]
    if not chosen:
        raise unknown("habit", habit, [rule.name for rule in _rules(rules)])
    begins: list[list[int]] = []
    for i, one in enumerate(given):
        pieces = model.strings(one.tokens)
        ends = list(accumulate(map(len, pieces)))
        starts = [onset.start for onset in _onsets("".join(pieces), i, chosen)]
        first = len(one.prompt)
        begins.append([first + sum(end <= at for end in ends) for at in starts])
    rows = [(*one.prompt, *one.tokens) for one in given]
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        for at in range(len(given[i].prompt), len(row)):
            if at > 0 and at not in begins[i]:
                places.setdefault((at, row[at - 1]), []).append((i, at))
    rng = np.random.default_rng(seed)
    pairs: list[tuple[int, int, int]] = []
    unmatched, used = 0, set[tuple[int, int]]()
    for i, own in enumerate(begins):
        for at in own:
            other = _place(places, rows, i, at, rows[i][at], used, rng)
            if other is not None:
                used.add((other, at))
                pairs.append((i, at, other))
                break
        else:
            unmatched += bool(own)
    if not pairs:
        found = f"{sum(map(bool, begins))} of {len(given)} texts show it, none has a matched place"
        do = "give more texts, of prompts with equal token length"
        raise InterpError(f"a task of the habit {habit!r}", found, do)
    answers = [rows[i][at] for i, at, _ in pairs]
    wrong = _foils(model, [rows[i][:at] for i, at, _ in pairs], answers, foil)
    made = [
        PromptPair(clean=rows[i][:at], corrupted=rows[o][:at], answers=(right,), wrong=(other,))
        for (i, at, o), right, other in zip(pairs, answers, wrong, strict=True)
    ]
    name = f"{habit} ({rules if isinstance(rules, str) else 'own rules'})"
    task = Task(name=name, pairs=tuple(made), metric=METRICS["logit_diff"], seed=seed)
    plain = []
    for pair, (i, at, o) in zip(made, pairs, strict=True):
        other = _place(places, rows, o, at, pair.answers[0], used | {(i, at)}, rng)
        if other is not None:
            used.add((other, at))
            plain.append(replace(pair, clean=pair.corrupted, corrupted=rows[other][:at]))
    null = replace(task, name=f"{name}, without it", pairs=tuple(plain)) if plain else None
    return HabitTask(
        task=task,
        null=null,
        traces=tuple(i for i, _, _ in pairs),
        others=tuple(o for _, _, o in pairs),
        unmatched=unmatched,
    )


def _place(
    places: dict[tuple[int, int], list[tuple[int, int]]],
    rows: Sequence[tuple[int, ...]],
    trace: int,
    at: int,
    answer: Any,
    used: set[tuple[int, int]],
    rng: np.random.Generator,
) -> int | None:
    """A text other than `trace` with a matched place, at which another token is written."""
    free = [
        i
        for i, _ in places.get((at, rows[trace][at - 1]), [])
        if i != trace
        and (i, at) not in used
        and rows[i][at] != answer
        and rows[i][:at] != rows[trace][:at]
    ]
    return free[int(rng.integers(len(free)))] if free else None


def _foils(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[int],
    foil: str | int | None,
) -> list[int]:
    """The wrong answer of each prompt."""
    if foil is not None:
        token = model.single_token(foil, "foil")
        if token in answers:
            do = "give another token, or none"
            raise InterpError(f"the foil {foil!r}", "it is the habit's first token", do)
        return [token] * len(prompts)
    logits = model.tail_logits(prompts).clone()
    for row, answer in zip(logits, answers, strict=True):
        row[answer] = -float("inf")
    return logits.argmax(-1).tolist()
