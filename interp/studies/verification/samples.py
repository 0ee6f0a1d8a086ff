"""The places at which a model judges its own attempts: where the study reads and intervenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.patterns import find_positions, number_positions, require_single
from interp.tasks.countdown import Problem


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The token ids the study turns on: " (", and "this" and "not" behind it."""

    paren: int
    this: int
    no: int


def verdict_tokens(model: LanguageModel) -> Verdicts:
    """The verdict's tokens in a model's vocabulary.

    Raises:
        InterpError: the tokeniser merges digits, or splits or merges " (", "this" or "not".
    """
    require_single(model, "71", ["7", "1"])
    paren, this = require_single(model, " (this", [" (", "this"])
    _, no = require_single(model, " (not", [" (", "not"])
    return Verdicts(paren=paren, this=this, no=no)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Texts cut behind " (", one for each verdict: the next token is "this" or "not".

    The last token is t_paren, the one before it t_ans, the last digit of the attempt's result.
    `valid` says that the model wrote "this". `written` is the result it wrote, `problems` which
    problem each belongs to (a text gives several samples), `targets` the last token of every
    earlier occurrence of the target, t_ans itself never among them; `asked` those of them that
    stand before the first attempt.
    """

    tokens: tuple[tuple[int, ...], ...]
    valid: np.ndarray
    problems: np.ndarray
    written: np.ndarray
    targets: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.tokens)

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
        return replace(
            self,
            tokens=tuple(self.tokens[i] for i in index),
            valid=self.valid[index],
            problems=self.problems[index],
            written=self.written[index],
            targets=tuple(self.targets[i] for i in index),
            asked=tuple(self.asked[i] for i in index),
        )

    def balanced(self, n: int, *, seed: int = 0) -> Samples:
        """As many valid as invalid samples, n each, no two of one class from the same problem.

        Raises:
            InterpError: fewer than n problems have one; both counts are given.
        """
        rng = np.random.default_rng(seed)
        chosen: list[int] = []
        for label in (True, False):
            index = rng.permutation(np.flatnonzero(self.valid == label))
            _, first = np.unique(self.problems[index], return_index=True)
            distinct = index[np.sort(first)]
            if len(distinct) < n:
                counts = {bool(v): int((self.valid == v).sum()) for v in (True, False)}
                raise InterpError(
                    f"{n} samples of each verdict, one a problem",
                    f"{len(distinct)} problems have a {'valid' if label else 'invalid'} one "
                    f"(samples: {counts[True]} valid, {counts[False]} invalid)",
                    "generate more problems or ask for fewer",
                )
            chosen += distinct[:n].tolist()
        return self.take(chosen)


def find_samples(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    *,
    first_attempt: str = "Let's try",
) -> Samples:
    """Every verdict in some texts, each text (prompt included) one problem's.

    A verdict is " (" followed by "this" or "not"; the token before " (" must end in a digit.
    `first_attempt` marks where the attempts begin, for `Samples.asked`.

    Raises:
        InterpError: tokens that do not fit, or no verdict at all.
    """
    ids = verdict_tokens(model)
    matches = find_positions(texts, {"this": (ids.paren, ids.this), "not": (ids.paren, ids.no)})
    rows, skipped = [], 0
    for match in matches:
        tokens = tuple(texts[match.text][: match.position + 1])
        strings = model.strings(tokens)
        if match.position == 0 or not strings[-2][-1:].isdigit():
            skipped += 1
            continue
        target = problems[match.text].target
        earlier = [p for p in number_positions(model, tokens, target) if p < match.position - 1]
        before = "".join(strings).split(first_attempt)[0]
        asked = number_positions(model, model.token_id(before), target) if earlier else []
        result = "".join(strings[:-1]).rsplit("=", 1)[-1].replace(" ", "")
        written = int(result) if result.lstrip("-").isdigit() else 0
        rows.append(
            (tokens, match, written, tuple(earlier), tuple(p for p in asked if p in earlier))
        )
    if not rows:
        raise InterpError(
            f"verdicts in {len(texts)} texts",
            f'none of " (this" or " (not" behind a digit ({skipped} elsewhere)',
            "use a model that writes the CountDown format, or another prompt template",
        )
    return Samples(
        tokens=tuple(row[0] for row in rows),
        valid=np.array([row[1].label == "this" for row in rows]),
        problems=np.array([row[1].text for row in rows]),
        written=np.array([row[2] for row in rows]),
        targets=tuple(row[3] for row in rows),
        asked=tuple(row[4] for row in rows),
    )
