"""The positions where a model judges its own attempts: there the study reads and intervenes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.token_patterns import find_positions, number_positions, require_single
from interp.tasks.countdown import Problem


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The token ids of a verdict: " (", and "this" and "not" after it."""

    paren: int
    this: int
    no: int


def verdict_tokens(model: LanguageModel) -> Verdicts:
    """The verdict's tokens in a model's vocabulary.

    Raises:
        InterpError: the tokeniser merges digits, or splits or merges " (", "this" or "not".
    """
    require_single(model, " = 71 (this", [" =", " ", "7", "1", " (", "this"])
    paren, this = require_single(model, " (this", [" (", "this"])
    _, no = require_single(model, " (not", [" (", "not"])
    return Verdicts(paren=paren, this=this, no=no)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Texts cut after " (", one for each verdict: the next token is "this" or "not".

    The last token is t_paren, the one before it t_ans, the last digit of the attempt's result.
    `valid` says that the model wrote "this". `written` is the result it wrote, `problems` which
    problem each belongs to (a text gives several samples), `operands` how many numbers that has,
    `attempt` which verdict of its text it is, from 0. `targets` holds the last token of every
    earlier occurrence of the target, never t_ans itself; `asked` those before the first attempt.
    """

    tokens: tuple[tuple[int, ...], ...]
    valid: np.ndarray
    problems: np.ndarray
    written: np.ndarray
    operands: np.ndarray
    attempt: np.ndarray
    targets: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def verdicts(self) -> list[str]:
        """For each text "valid" or "invalid"."""
        return ["valid" if valid else "invalid" for valid in self.valid]

    @property
    def t_paren(self) -> list[int]:
        """The position of " (" in each text."""
        return [len(tokens) - 1 for tokens in self.tokens]

    @property
    def t_ans(self) -> list[int]:
        """The position of the result's last digit."""
        return [len(tokens) - 2 for tokens in self.tokens]

    def take(self, chosen: Sequence[int] | np.ndarray) -> Samples:
        """Some of the samples, in the order given."""
        index = np.asarray(chosen, dtype=np.int64)
        taken: dict[str, Any] = {
            name: value[index] if isinstance(value, np.ndarray) else tuple(value[i] for i in index)
            for name, value in vars(self).items()
        }
        return Samples(**taken)

    def balanced(self, n: int, *, seed: int = 0) -> Samples:
        """As many valid as invalid samples, n each, matched pair by pair.

        Sample i and sample n + i have the same attempt number and the same number of operands, and
        so nearly the same length. No two samples of one verdict come from the same problem.
        Without matching, the position in the text would reveal the verdict, because the attempt
        that works is the last one.

        Raises:
            InterpError: fewer than n such pairs; the counts are given.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self))
        waiting: dict[tuple[int, int], list[int]] = {}
        for i in order[~self.valid[order]].tolist():
            waiting.setdefault((int(self.attempt[i]), int(self.operands[i])), []).append(i)
        pairs: list[tuple[int, int]] = []
        problems = self.problems.tolist()
        used: tuple[set[int], set[int]] = (set(), set())
        for i in order[self.valid[order]].tolist():
            if len(pairs) == n or problems[i] in used[0]:
                continue
            others = waiting.get((int(self.attempt[i]), int(self.operands[i])), [])
            other = next((j for j in others if problems[j] not in used[1]), None)
            if other is not None:
                pairs.append((i, other))
                used[0].add(problems[i])
                used[1].add(problems[other])
        if len(pairs) < n:
            valid = int(self.valid.sum())
            raise InterpError(
                f"{n} pairs of a valid and an invalid sample of one attempt number",
                f"{len(pairs)}, out of {valid} valid and {len(self) - valid} invalid samples",
                "generate more problems or ask for fewer",
            )
        return self.take([i for i, _ in pairs] + [j for _, j in pairs])


def find_samples(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    *,
    first_attempt: str = "Let's try",
    starts: Sequence[int] | None = None,
) -> Samples:
    """Every verdict in some texts, each text (prompt included) one problem's.

    A verdict is " (" followed by "this" or "not", after "= " and a whole number; others are not
    samples. `first_attempt` marks where the attempts begin, for `Samples.asked`, which is empty
    in a text without it. `starts` says how many tokens each prompt has: verdicts in the prompt,
    such as those of worked examples, are not the model's, and the prompt's last mark counts.

    Raises:
        InterpError: tokens that do not fit, or no verdict at all.
    """
    ids = verdict_tokens(model)
    matches = find_positions(texts, {"this": (ids.paren, ids.this), "not": (ids.paren, ids.no)})
    rows, unread, attempts = [], 0, dict.fromkeys(range(len(texts)), 0)
    pieces = [model.strings(text) for text in texts]
    for match in matches:
        begin = 0 if starts is None else starts[match.text]
        if match.position < begin:
            continue
        tokens = tuple(texts[match.text][: match.position + 1])
        strings = pieces[match.text][: len(tokens)]
        text = "".join(strings[:-1])
        result = re.search(r"= *(-?[0-9]+)$", text)
        attempt = attempts[match.text]
        attempts[match.text] += 1
        if result is None:
            unread += 1
            continue
        target = problems[match.text].target
        earlier = [p for p in number_positions(strings, target) if p < match.position - 1]
        ends = np.cumsum([len(piece) for piece in strings])
        start = text.rfind(first_attempt, 0, len("".join(strings[:begin])))
        start = text.find(first_attempt) if start < 0 else start
        rows.append(
            {
                "tokens": tokens,
                "valid": match.label == "this",
                "problems": match.text,
                "written": int(result.group(1)),
                "operands": len(problems[match.text].numbers),
                "attempt": attempt,
                "targets": tuple(earlier),
                "asked": tuple(p for p in earlier if ends[p] <= start),
            }
        )
    if not rows:
        raise InterpError(
            f"verdicts in {len(texts)} texts",
            f'none of " (this" or " (not" after a result ({unread} elsewhere)',
            "use a model that writes the CountDown format, or another prompt template",
        )
    columns: dict[str, Any] = {name: tuple(row[name] for row in rows) for name in rows[0]}
    arrays = ("valid", "problems", "written", "operands", "attempt")
    columns |= {name: np.array(columns[name]) for name in arrays}
    return Samples(**columns)
