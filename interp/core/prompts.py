"""What a model is asked and how success is scored: prompt pairs and tasks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, Strict

from interp.core.arguments import (
    Columns,
    MetricFunction,
    Tokenizing,
    as_metric,
    as_positions,
    listed,
    places_of,
)
from interp.core.branches import greedy
from interp.core.continuations import GivenAnswer, answer_token, answer_tokens
from interp.core.errors import InterpError
from interp.core.files import content_key, json_text
from interp.core.metrics import METRICS, Logits, Metric, Targets, is_shipped
from interp.core.positions import Mark, Prompt, TokenizedPrompt, require_own, resolve
from interp.core.schema import Count, Index, Seed, Share, Unicode, as_prompt, checked
from interp.core.statistics import Estimate, mean_estimate, share_estimate
from interp.core.task_files import read_task, task_row

OWN = {
    "own_metric": "a metric",
    "own_task": "a task",
    "own_other": "a task that shares no prompt with it",
    "own_reference": "a task whose prompts a mean is taken over",
}
"""Names, in the Python code kept with a result, for the user's own objects, and what they are."""

MOST_SHOWN = 5
"""Pairs of a task that a notebook shows."""

_Several = Annotated[tuple[Index, ...], Strict(False), Field(min_length=1)]
_Answers = Annotated[tuple[Unicode | Index | _Several, ...], Strict(False)]
_Occurrence = Annotated[tuple[Unicode, Index], Strict(False)]
_Marks = Annotated[dict[Unicode, Unicode | Index | _Occurrence], Strict(False)]


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A clean prompt, its corrupted counterpart, and the tokens the answer is read from.

    The model is scored on the token after the prompt. `answers` are the correct next tokens of the
    clean prompt, and `wrong` the tokens the metric compares them with. They may be texts of several
    tokens, or tuples of ids, if the task's metric takes them (`interp.core.metrics.METRICS`). A
    prompt is a text or a
    tuple of token ids. `positions` names tokens of the clean prompt (see
    `interp.core.positions.Mark`). `place` is the line of the file the pair was read from, for error
    messages.

    Raises:
        InterpError: a prompt, an answer or a position has the wrong type, or a position has a
            reserved name.
    """

    clean: Prompt
    corrupted: Prompt | None = None
    answers: tuple[GivenAnswer, ...]
    wrong: tuple[GivenAnswer, ...] = ()
    positions: Mapping[str, Mark] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        kept: dict[str, Any] = {"clean": as_prompt(self.clean, "the clean prompt of a pair")}
        if self.corrupted is not None:
            kept["corrupted"] = as_prompt(self.corrupted, "the corrupted prompt of a pair")
        for name in ("answers", "wrong"):
            asked = f"{name} of a pair"
            kept[name] = checked(_Answers, listed(getattr(self, name), asked=asked), asked)
        kept["positions"] = checked(_Marks, self.positions, "positions of a pair")
        require_own(kept["positions"], "positions of a pair")
        for name, value in kept.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class EncodedTask:
    """A checked task in one model's tokens. `marks[i]` holds the named positions of prompt i."""

    clean: list[tuple[int, ...]]
    corrupted: list[tuple[int, ...]] | None
    targets: Targets
    prompts: list[TokenizedPrompt]
    marks: list[dict[str, Mark]]

    def positions(self, name: str) -> list[int]:
        """The token index of a named position in every prompt."""
        return places_of(name, self.prompts, self.marks, label="pair")

    def columns(self, positions: Columns) -> tuple[tuple[str, ...], list[list[int]]]:
        """The names of the separate positions, and for each one the token index in every prompt.

        See `interp.core.arguments.Columns`; "all" is not handled here.

        Raises:
            InterpError: there is no position, a position occurs twice, names and numbers are mixed,
                or a prompt has no such token.
        """
        given = as_positions(positions)
        found = listed(given)
        names = [item for item in found if isinstance(item, str)]
        if not found or len(set(names)) < len(names) or len(names) not in (0, len(found)):
            raise InterpError(
                f"positions={found[:5]}",
                "no position, a name given twice, or names and numbers mixed",
                "give different names, one number for all prompts, or one number per prompt",
            )
        if names:
            return tuple(names), [self.positions(name) for name in names]
        same = found[0] if len(set(found)) == 1 else "given"
        return (str(same),), [places_of(given, self.prompts, self.marks, label="pair")]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """Whether a model shows the behaviour of a task.

    Attributes:
        task, model, metric: their names.
        accuracy: share of clean prompts whose most likely next token is an answer, or after which
            greedy decoding writes an answer of several tokens (Wilson interval).
        preferred: share of clean prompts on which the metric is positive (Wilson interval).
        clean, corrupted: mean metric on the clean and on the corrupted prompts, with the interval
            of `interp.core.statistics.ratio_of_means`.
        repeated: number of clean prompts equal to an earlier one. The intervals treat them as
            different prompts.
    """

    task: str
    model: str
    metric: str
    accuracy: Estimate
    preferred: Estimate
    clean: Estimate
    corrupted: Estimate | None
    repeated: int = 0

    def __str__(self) -> str:
        repeated = f"  {self.repeated} of {self.accuracy.n} prompts repeat an earlier one\n"
        corrupted = f"\n  {self.metric}, corrupted  {self.corrupted}"
        return (
            f"{self.task} on {self.model}\n"
            f"{repeated if self.repeated else ''}"
            f"  top-1 accuracy     {self.accuracy}\n"
            f"  metric > 0         {self.preferred}\n"
            f"  {self.metric}, clean      {self.clean}"
            f"{corrupted if self.corrupted is not None else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompt pairs and the metric that scores them.

    `source` is Python code that builds the task again. The provenance of a result holds it.
    """

    name: str
    pairs: tuple[PromptPair, ...]
    metric: Metric = METRICS["logit_diff"]
    description: str = ""
    source: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InterpError(f"task {self.name!r}", "no prompts", "give at least one pair")
        object.__setattr__(self, "metric", as_metric(self.metric))

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        first = self.pairs[0]
        other = "" if first.corrupted is None else f" / {first.corrupted!r:.50}"
        return (
            f"Task({self.name!r}, n={len(self)}, {self.metric.name}; {first.clean!r:.50}{other} -> "
            f"{first.answers!r:.30})"
        )

    def _repr_html_(self) -> str:
        """For a notebook: the line, and the first pairs as they are written."""
        from pandas import DataFrame

        rows = [
            {
                "clean": repr(pair.clean),
                "corrupted": "–" if pair.corrupted is None else repr(pair.corrupted),
                "answers": ", ".join(map(repr, pair.answers)),
                "wrong": ", ".join(map(repr, pair.wrong)) or "–",
            }
            for pair in self.pairs[:MOST_SHOWN]
        ]
        table = DataFrame(rows).to_html(index=False, border=0)
        return f"<p>{escape(repr(self))}</p>{table}"

    @property
    def hash(self) -> str:
        """Hash of the name, the prompts, answers and positions, and the metric's name."""
        pairs = [[p.clean, p.corrupted, p.answers, p.wrong, dict(p.positions)] for p in self.pairs]
        return content_key([self.name, self.metric.name, pairs])

    @property
    def position_names(self) -> tuple[str, ...]:
        """Names of the positions that every pair has."""
        names = [set(pair.positions) for pair in self.pairs]
        return tuple(name for name in self.pairs[0].positions if all(name in n for n in names))

    def with_metric(self, metric: Metric | str | MetricFunction) -> Task:
        """The same prompts with another metric: a name from `METRICS`, a `Metric` or a function.

        A function takes (readout, targets), see `interp.core.metrics`. It returns one number per
        prompt, (n,), which is higher for more of the behaviour.

        Raises:
            InterpError: there is no metric of that name, or the function does not take two
                arguments.
        """
        metric = as_metric(metric)
        spelled = repr(metric.name) if is_shipped(metric) else "own_metric"
        return replace(self, metric=metric, source=self._then(f"with_metric({spelled})"))

    def _then(self, call: str) -> str:
        return f"{self.source}.{call}" if self.source else ""

    def first(self, n: int) -> Task:
        """The first n pairs, or all of them if there are fewer."""
        n = checked(Count, n, "the first pairs of a task")
        return replace(self, pairs=self.pairs[:n], source=self._then(f"first({n})"))

    @property
    def repeated(self) -> int:
        """Number of pairs whose clean prompt also occurs in an earlier pair."""
        return len(self) - len({pair.clean for pair in self.pairs})

    def split(self, share: float = 0.5, *, seed: int = 0) -> tuple[Task, Task]:
        """Split into two tasks that share no prompt, e.g. to find on one and confirm on the other.

        Pairs that share a clean or corrupted prompt stay on one side. The first task holds the
        given share of the pairs, rounded, or fewer if the pairs that stay together do not fit.

        Raises:
            InterpError: one side would be empty.
        """
        from interp.core.folds import joined

        share, seed = checked(Share, share, "the share of a split"), checked(Seed, seed, "a seed")
        order = list(range(len(self.pairs)))
        random.Random(seed).shuffle(order)
        corrupted = [i if x.corrupted is None else x.corrupted for i, x in enumerate(self.pairs)]
        prompts = [*(pair.clean for pair in self.pairs), *corrupted]
        group = joined(prompts, [*range(len(order))] * 2).tolist()
        equal: dict[int, list[int]] = {}
        for i in order:
            equal.setdefault(group[i], []).append(i)
        size, sides = round(share * len(order)), ([], [])
        for group in equal.values():
            sides[len(sides[0]) + len(group) > size].extend(group)
        if not all(sides):
            raise InterpError(
                f"splitting {len(order)} pairs at {share}",
                f"one side is empty, with {len(equal)} different prompts",
                "use another share, or more different prompts",
            )
        left, right = (tuple(self.pairs[i] for i in sorted(side)) for side in sides)
        call = f"split({share}, seed={seed})"
        return (
            replace(self, pairs=left, source=self._then(f"{call}[0]")),
            replace(self, pairs=right, source=self._then(f"{call}[1]")),
        )

    def without(self, other: Task) -> Task:
        """The pairs that share no prompt with another task, e.g. to compute a mean over them.

        Raises:
            InterpError: no pair is left.
        """
        taken = {prompt for pair in other.pairs for prompt in (pair.clean, pair.corrupted)} - {None}
        left = tuple(pair for pair in self.pairs if not taken & {pair.clean, pair.corrupted})
        if not left:
            raise InterpError(
                f"pairs of {self.name} that share no prompt with {other.name}",
                f"none of {len(self)}",
                "use fewer pairs, or draw other pairs",
            )
        return replace(
            self, pairs=left, source=self._then(f"without({other.source or 'own_other'})")
        )

    def label(self, i: int) -> str:
        """The name of a pair in error messages, with the line of the file it was read from."""
        place = self.pairs[i].place
        return f"pair {i} of {self.name}" + f" ({place})" * bool(place)

    def encode(self, model: Tokenizing, *, strings: bool = False) -> EncodedTask:
        """The task as token ids of a model.

        With `strings`, answers may be several tokens if the metric takes them. `targets.rows` then
        gives the tokens to run.

        Raises:
            InterpError: the prompts of a pair differ in token length, an answer is several tokens
                and the metric or the measurement does not take it, an answer is also a wrong answer
                or begins one, wrong answers are missing that the metric needs, or a position is not
                in its prompt. The message shows the tokens.
        """
        prompts = [model.tokenize(pair.clean) for pair in self.pairs]
        marks = [dict(pair.positions) for pair in self.pairs]
        for i, prompt in enumerate(prompts):
            for name, mark in marks[i].items():
                if isinstance(mark, int) or prompt.spans is not None:
                    resolve(name, prompt, marks[i], self.label(i))
        texts = [pair.corrupted for pair in self.pairs if pair.corrupted is not None]
        others = [model.tokenize(text) for text in texts] if len(texts) == len(self) else None
        for i, (clean, other) in enumerate(zip(prompts, others or (), strict=False)):
            if len(other.tokens) != len(clean.tokens):
                raise InterpError(
                    self.label(i),
                    f"clean has {len(clean.tokens)} tokens, corrupted {len(other.tokens)}:"
                    f"\n  {clean.shown()}\n  {other.shown()}\n",
                    "write prompts of equal token length",
                )
        answers, wrong = (
            [self._written(model, i, getattr(pair, name)) for i, pair in enumerate(self.pairs)]
            for name in ("answers", "wrong")
        )
        for i, (right, other) in enumerate(zip(answers, wrong, strict=True)):
            if not right or set(right) & set(other):
                raise InterpError(
                    self.label(i),
                    f"answers {self.pairs[i].answers} and wrong answers {self.pairs[i].wrong} "
                    f"are the tokens {right} and {other}",
                    "give at least one answer, and no token in both lists",
                )
            if self.metric.needs_wrong and not other:
                raise InterpError(
                    self.label(i),
                    f"no wrong answers, which {self.metric.name} needs",
                    "add wrong answers or use log_odds",
                )
        return EncodedTask(
            clean=[prompt.tokens for prompt in prompts],
            corrupted=None if others is None else [other.tokens for other in others],
            targets=self._targets(model, prompts, answers, wrong, strings),
            prompts=prompts,
            marks=marks,
        )

    def _written(
        self, model: Tokenizing, i: int, texts: tuple[GivenAnswer, ...]
    ) -> tuple[tuple[int, ...], ...]:
        """The tokens of some answers of a pair; one token each unless the metric takes several."""
        prompt, label = self.pairs[i].clean, self.label(i)
        named = [(text, f"answer {text!r} of {label}") for text in texts]
        if self.metric.strings:
            return tuple(answer_tokens(model, prompt, *one) for one in named)
        return tuple((answer_token(model, prompt, *one),) for one in named)

    def _targets(
        self,
        model: Tokenizing,
        prompts: list[TokenizedPrompt],
        answers: list[tuple[tuple[int, ...], ...]],
        wrong: list[tuple[tuple[int, ...], ...]],
        strings: bool,
    ) -> Targets:
        """The targets: token ids, or numbers of strings if an answer has several tokens."""
        both = [tuple(dict.fromkeys(r + w)) for r, w in zip(answers, wrong, strict=True)]
        longest = [max(map(len, one)) for one in both]
        if max(longest) == 1:
            ids = [[tuple(t for (t,) in one) for one in side] for side in (answers, wrong)]
            return Targets(answers=_padded(ids[0]), wrong=_padded(ids[1]))
        for i, one in enumerate(both):
            label, n = self.label(i), len(prompts[i].tokens)
            if not strings and longest[i] > 1:
                shown = model.tokenize(max(one, key=len)).shown()
                do = "use answers of one token; Task.check, activation_patching and what "
                do += "docs/limits.md names take several"
                raise InterpError(label, f"an answer of several tokens, {shown}: not one token", do)
            inside = [(a, b) for a in one for b in one if a != b and b[: len(a)] == a]
            if inside:
                shown = " begins ".join(model.tokenize(each).shown() for each in inside[0])
                do = "end both at the same place, for example with a full stop"
                raise InterpError(label, f"{shown}, so it is never less likely", do)
            limit = getattr(model, "switch", None) or getattr(model, "max_positions", None)
            if limit is not None and n + longest[i] - 1 > limit:
                found = f"{n} tokens and an answer of {longest[i]}, but {model.name} takes {limit}"
                raise InterpError(label, found, "write a shorter prompt")
        numbers = [
            [tuple(one.index(each) for each in some) for one, some in zip(both, side, strict=True)]
            for side in (answers, wrong)
        ]
        return Targets(answers=_padded(numbers[0]), wrong=_padded(numbers[1]), strings=tuple(both))

    def check(self, model: Tokenizing) -> TaskReport:
        """Measure whether the model shows the behaviour: accuracy and mean metric."""
        encoded = self.encode(model, strings=True)
        targets = encoded.targets
        logits = model.tail_logits(targets.rows(encoded.clean))
        if targets.strings is None:
            targets = replace(targets, reference=logits.log_softmax(-1))
            hits = logits.argmax(-1, keepdim=True).cpu() == targets.answers
        else:
            written = torch.from_numpy(greedy(logits, targets.strings))
            hits = written.gather(1, targets.answers.clamp(min=0)) & (targets.answers >= 0)
        clean, corrupted = self.metric(Logits(logits), targets), None
        if encoded.corrupted is not None:
            other = model.tail_logits(targets.rows(encoded.corrupted))
            corrupted = mean_estimate(self.metric(Logits(other), targets))
        return TaskReport(
            task=self.name,
            model=model.name,
            metric=self.metric.name,
            accuracy=share_estimate(int(hits.any(1).sum()), len(self)),
            preferred=share_estimate(int((clean > 0).sum()), len(self)),
            clean=mean_estimate(clean),
            corrupted=corrupted,
            repeated=self.repeated,
        )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> Task:
        """Read a task from a file with one JSON object per line (`interp.core.task_files.TaskRow`).

        `clean` and `corrupted` are texts. `answers` and `wrong` are a text or a list of texts;
        numbers are read as texts. `positions` maps a name to a substring of the clean prompt or to
        [substring, occurrence], and `indices` maps a name to a token index. Token ids have separate
        fields: `clean_ids`, `corrupted_ids`, `answers_ids`, `wrong_ids`. The metric is logit_diff
        if the file has wrong answers, else log_odds.

        Raises:
            InterpError: the file cannot be read, a field is unknown, missing or of the wrong type,
                or only some lines have corrupted prompts or wrong answers.
        """
        return cls._from_file(Path(path), "jsonl", name)

    @classmethod
    def from_csv(cls, path: str | Path, *, name: str | None = None) -> Task:
        """Read a task from a CSV file whose columns are the fields of `from_jsonl`.

        Several answers or ids are separated by "|". Each position has its own column,
        `positions.NAME` or `indices.NAME`.

        Raises:
            InterpError: as in `from_jsonl`.
        """
        return cls._from_file(Path(path), "csv", name)

    def to_jsonl(self) -> str:
        """The text of a file that `from_jsonl` reads as these pairs. It does not hold the metric.

        Raises:
            InterpError: the answers of a pair mix texts and token ids.
        """
        rows = (
            task_row({one.name: getattr(pair, one.name) for one in fields(pair)})
            for pair in self.pairs
        )
        return "".join(json_text(row) + "\n" for row in rows)

    @classmethod
    def _from_file(cls, path: Path, kind: str, name: str | None) -> Task:
        if path.suffix.lower() == (other := {"jsonl": ".csv", "csv": ".jsonl"}[kind]):
            do = f"read it by interp.Task.from_{other[1:]}({str(path)!r})"
            raise InterpError(f"task file {path}", f"a {other} file, read as {kind}", do)
        pairs = tuple(PromptPair(**pair) for pair in read_task(path, kind))
        return cls(
            name=name or path.stem,
            pairs=pairs,
            metric=METRICS["logit_diff" if pairs[0].wrong else "log_odds"],
            source=f"interp.Task.from_{kind}({str(path)!r})",
        )


def _padded(rows: list[tuple[int, ...]]) -> torch.Tensor:
    width = max(1, max(len(row) for row in rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
