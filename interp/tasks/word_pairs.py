"""Tasks that map a word to a word, shown to a model by examples or said by an instruction."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from interp.core.arguments import Tokenizing, listed
from interp.core.errors import InterpError, unknown
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.core.schema import Count, Seed, checked
from interp.tasks.words import word_size

WORD_PAIRS = Path(__file__).parent.parent / "data" / "word_pairs.json"

Shown = Literal["none", "examples", "instruction"]
"""How a prompt specifies its task: not at all, by examples of it, or by an instruction."""


@dataclass(frozen=True, kw_only=True)
class WordTask:
    """A task given by pairs of a query and its answer, such as France and Paris.

    Attributes:
        name: its name.
        instruction: what to do, as a sentence.
        pairs: (query, answer); no query twice.

    Raises:
        InterpError: a query occurs twice, or there are no pairs.
    """

    name: str
    instruction: str
    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        queries = [query for query, _ in self.pairs]
        if not queries or len({*queries}) < len(queries):
            found = f"{len(queries)} queries, {len({*queries})} different"
            raise InterpError(f"the word task {self.name!r}", found, "give each query once")

    def __len__(self) -> int:
        return len(self.pairs)

    def split(self, *, seed: int = 0) -> tuple[WordTask, WordTask]:
        """Two halves that share no query: one to choose on and one that is held out.

        Raises:
            InterpError: fewer than two pairs.
        """
        seed = checked(Seed, seed, "a seed")
        if len(self) < 2:
            raise InterpError(f"halves of {self.name}", "one pair", "give at least two")
        mixed = random.Random(f"{seed} {self.name}").sample(self.pairs, len(self))
        half = len(self) // 2
        return replace(self, pairs=tuple(mixed[:half])), replace(self, pairs=tuple(mixed[half:]))

    def prompts(
        self,
        shown: Shown = "none",
        *,
        source: WordTask | None = None,
        examples: int = 5,
        seed: int = 0,
    ) -> Task:
        """One prompt for each query, with the log probability of its answer as the metric.

        A bare prompt is "Q: France", a new line and "A:". Examples are written before it in the
        same way, with their answers, and an instruction is a sentence before it. With examples, the
        corrupted prompt has the same examples with their answers permuted: each answer moves to
        the next example. It shows the words of the task without the mapping.

        Args:
            shown: "none" (the bare prompt), "examples" or "instruction".
            source: the task that examples are drawn from; by default this one. The query itself is
                never among them.
            examples: number of examples, from 2.
            seed: seed of their draw.

        Raises:
            InterpError: an unknown way to show the task, or too few pairs to draw from.
        """
        if shown not in get_args(Shown):
            raise unknown("way to show a task", shown, get_args(Shown))
        count, seed = checked(Count, examples, "examples"), checked(Seed, seed, "a seed")
        rng, drawn_from = random.Random(f"{seed} {self.name}"), source or self
        rows = []
        for query, answer in self.pairs:
            bare, corrupted = f"Q: {query}\nA:", None
            clean = f"{self.instruction}\n\n{bare}" if shown == "instruction" else bare
            if shown == "examples":
                some = self._examples(query, drawn_from, count, rng)
                words = [said for _, said in some]
                clean = _written(some) + bare
                turned = [*words[-1:], *words[:-1]]
                asked = [one for one, _ in some]
                corrupted = _written([*zip(asked, turned, strict=True)]) + bare
            rows.append(PromptPair(clean=clean, corrupted=corrupted, answers=(f" {answer}",)))
        return Task(
            name=f"{self.name}, {shown}",
            pairs=tuple(rows),
            metric=METRICS["log_prob"],
            description=self.instruction,
            seed=seed,
        )

    def _examples(
        self, query: str, source: WordTask, count: int, rng: random.Random
    ) -> list[tuple[str, str]]:
        """Examples for a query, of at least two different answers."""
        others = [pair for pair in source.pairs if pair[0] != query]
        if not 2 <= count <= len(others) or len({answer for _, answer in others}) < 2:
            raise InterpError(
                f"{count} examples for {query!r} of {self.name}",
                f"{len(others)} other pairs",
                "ask for 2 to so many, of at least two different answers",
            )
        some = rng.sample(others, count)
        while len({answer for _, answer in some}) < 2:
            some = rng.sample(others, count)
        return some


def _written(pairs: Sequence[tuple[str, str]]) -> str:
    """Examples as text."""
    return "".join(f"Q: {query}\nA: {answer}\n\n" for query, answer in pairs)


@cache
def shipped_pairs() -> dict[str, Any]:
    """The instruction and the pairs of each word task that ships, in-house."""
    return json.loads(WORD_PAIRS.read_text(encoding="utf-8"))["tasks"]


def word_tasks(
    names: str | Sequence[str] | None = None, model: Tokenizing | None = None
) -> tuple[WordTask, ...]:
    """The word tasks that ship, by name; all by default, of 40 pairs each.

    They are capital, plural, past_tense, antonym, next_number (words, ordinals and Roman numerals)
    and colour. With a model, only answers of one token are kept; all are in the default model.

    Raises:
        InterpError: an unknown name, or fewer than 12 answers of one token.
    """
    known, found = shipped_pairs(), []
    for name in [*known] if names is None else listed(names):
        if name not in known:
            raise unknown("word task", name, known)
        pairs = tuple(
            (query, answer)
            for query, answer in known[name]["pairs"]
            if model is None or word_size(answer, model) == 1
        )
        if len(pairs) < 12:
            raise InterpError(
                f"the word task {name} in the tokens of {'' if model is None else model.name}",
                f"{len(pairs)} answers of one token, 12 needed",
                "write pairs for this vocabulary (WordTask)",
            )
        found.append(WordTask(name=name, instruction=known[name]["instruction"], pairs=pairs))
    return tuple(found)
