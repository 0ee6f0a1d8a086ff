"""What a model is asked and how success is scored: prompt pairs and tasks."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from interp.errors import InterpError
from interp.files import content_key
from interp.metrics import (
    METRICS,
    Estimate,
    Logits,
    Metric,
    Targets,
    is_shipped,
    mean_estimate,
    share_estimate,
)
from interp.positions import Mark, TokenizedPrompt, resolve

Prompt = str | tuple[int, ...]


class Tokenizing(Protocol):
    """What a task needs of a model: its tokeniser, and logits at the last token."""

    name: str
    d_vocab: int

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt: ...
    def token_id(self, text: str) -> tuple[int, ...]: ...
    def last_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A clean prompt, its corrupted counterpart, and the tokens the answer is read from.

    The model is scored on the token that follows the prompt. `answers` are the right next tokens
    of the clean prompt; `wrong` those the metric sets against them. A prompt is text or a tuple
    of token ids; `positions` names places in the clean prompt (see `interp.positions.Mark`).
    """

    clean: Prompt
    corrupted: Prompt | None = None
    answers: tuple[str | int, ...]
    wrong: tuple[str | int, ...] = ()
    positions: Mapping[str, Mark] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncodedTask:
    """A task in one model's tokens, checked. `marks[i]` resolves names in prompt i."""

    clean: list[tuple[int, ...]]
    corrupted: list[tuple[int, ...]] | None
    targets: Targets
    prompts: list[TokenizedPrompt]
    marks: list[dict[str, Mark]]

    def positions(self, name: str) -> list[int]:
        """The token index of a named position in every prompt."""
        return [
            resolve(name, prompt, marks, f"pair {i}")
            for i, (prompt, marks) in enumerate(zip(self.prompts, self.marks, strict=True))
        ]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """Whether a model shows the behaviour, on the clean and on the corrupted prompts.

    accuracy: share of clean prompts whose most likely next token is an answer (Wilson interval).
    clean, corrupted: mean metric (Student's t interval).
    preferred: share of clean prompts on which the metric is positive.
    """

    task: str
    model: str
    metric: str
    accuracy: Estimate
    preferred: Estimate
    clean: Estimate
    corrupted: Estimate | None

    def __str__(self) -> str:
        lines = [
            f"{self.task} on {self.model}",
            f"  top-1 accuracy     {self.accuracy}",
            f"  metric > 0         {self.preferred}",
            f"  {self.metric}, clean      {self.clean}",
        ]
        if self.corrupted is not None:
            lines.append(f"  {self.metric}, corrupted  {self.corrupted}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompt pairs and the metric they are scored with.

    `source` is the Python that makes the task again, kept with every result.
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

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def hash(self) -> str:
        """Fingerprint of the prompts, answers, positions and the metric's name."""
        pairs = [[p.clean, p.corrupted, p.answers, p.wrong, dict(p.positions)] for p in self.pairs]
        return content_key([self.name, self.metric.name, pairs])

    @property
    def position_names(self) -> tuple[str, ...]:
        """Names marked in every pair."""
        names = [set(pair.positions) for pair in self.pairs]
        return tuple(name for name in self.pairs[0].positions if all(name in n for n in names))

    def with_metric(self, metric: Metric) -> Task:
        """The same prompts under another metric."""
        spelled = f"interp.METRICS[{metric.name!r}]" if is_shipped(metric) else metric.name
        return replace(self, metric=metric, source=self._then(f"with_metric({spelled})"))

    def _then(self, call: str) -> str:
        return f"{self.source}.{call}" if self.source else ""

    def first(self, n: int) -> Task:
        """The first n pairs."""
        return replace(self, pairs=self.pairs[:n], source=self._then(f"first({n})"))

    def split(self, share: float = 0.5, *, seed: int = 0) -> tuple[Task, Task]:
        """Two disjoint tasks: find on one, confirm on the other.

        Raises:
            InterpError: one side would be empty.
        """
        order = list(range(len(self.pairs)))
        random.Random(seed).shuffle(order)
        cut = round(share * len(order))
        if not 0 < cut < len(order):
            raise InterpError(
                f"splitting {len(order)} pairs at {share}", "an empty side", "use a share between"
            )
        left, right = (tuple(self.pairs[i] for i in sorted(o)) for o in (order[:cut], order[cut:]))
        call = f"split({share}, seed={seed})"
        return (
            replace(self, pairs=left, source=self._then(f"{call}[0]")),
            replace(self, pairs=right, source=self._then(f"{call}[1]")),
        )

    def without(self, other: Task) -> Task:
        """The pairs that share no prompt with another task, e.g. for a mean to be taken over.

        Raises:
            InterpError: none is left.
        """
        taken = {prompt for pair in other.pairs for prompt in (pair.clean, pair.corrupted)} - {None}
        left = tuple(pair for pair in self.pairs if not taken & {pair.clean, pair.corrupted})
        if not left:
            raise InterpError(
                f"pairs of {self.name} that share no prompt with {other.name}",
                f"none of {len(self)}",
                "use fewer pairs, or draw others",
            )
        return replace(self, pairs=left, source=self._then(f"without({other.source or 'task'})"))

    def encode(self, model: Tokenizing) -> EncodedTask:
        """The task in the model's tokens.

        Raises:
            InterpError: a pair of unequal token length, an answer of several tokens, an answer
                that is also wrong; the tokens are printed.
        """
        prompts = [model.tokenize(pair.clean) for pair in self.pairs]
        corrupted: list[tuple[int, ...]] | None = None
        if all(pair.corrupted is not None for pair in self.pairs):
            corrupted = []
            for i, (pair, clean) in enumerate(zip(self.pairs, prompts, strict=True)):
                assert pair.corrupted is not None
                other = model.tokenize(pair.corrupted)
                if len(other.tokens) != len(clean.tokens):
                    raise InterpError(
                        f"pair {i} of {self.name}",
                        f"clean has {len(clean.tokens)} tokens, corrupted {len(other.tokens)}:"
                        f"\n  {clean.shown()}\n  {other.shown()}\n",
                        "write prompts of equal token length",
                    )
                corrupted.append(other.tokens)
        answers = [
            tuple(_single_token(model, text, i, self.name) for text in pair.answers)
            for i, pair in enumerate(self.pairs)
        ]
        wrong = [
            tuple(_single_token(model, text, i, self.name) for text in pair.wrong)
            for i, pair in enumerate(self.pairs)
        ]
        for i, (right, other) in enumerate(zip(answers, wrong, strict=True)):
            if not right or set(right) & set(other):
                raise InterpError(
                    f"pair {i} of {self.name}",
                    f"answers {self.pairs[i].answers} and wrong answers {self.pairs[i].wrong} "
                    f"are the tokens {right} and {other}",
                    "give at least one answer, none of them among the wrong ones",
                )
            if self.metric.needs_wrong and not other:
                raise InterpError(
                    f"pair {i} of {self.name}",
                    f"no wrong answers, which {self.metric.name} needs",
                    "add wrong answers or use log_odds",
                )
        return EncodedTask(
            clean=[prompt.tokens for prompt in prompts],
            corrupted=corrupted,
            targets=Targets(answers=_padded(answers), wrong=_padded(wrong)),
            prompts=prompts,
            marks=[dict(pair.positions) for pair in self.pairs],
        )

    def check(self, model: Tokenizing) -> TaskReport:
        """Does the model show the behaviour at all? Accuracy and baselines, with intervals."""
        encoded = self.encode(model)
        logits = model.last_logits(encoded.clean)
        targets = replace(encoded.targets, reference=logits.log_softmax(-1))
        clean = self.metric(Logits(logits), targets)
        top = logits.argmax(-1, keepdim=True).cpu()
        right = int((top == targets.answers).any(1).sum())
        corrupted = None
        if encoded.corrupted is not None:
            values = self.metric(Logits(model.last_logits(encoded.corrupted)), targets)
            corrupted = mean_estimate(values)
        return TaskReport(
            task=self.name,
            model=model.name,
            metric=self.metric.name,
            accuracy=share_estimate(right, len(self)),
            preferred=share_estimate(int((clean > 0).sum()), len(self)),
            clean=mean_estimate(clean),
            corrupted=corrupted,
        )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, name: str | None = None) -> Task:
        """A task from one JSON object per line: clean, corrupted, answers, wrong, positions.

        `answers` and `wrong` are a string or a list; `positions` maps a name to a substring, a
        token index or [substring, occurrence].

        Raises:
            InterpError: the file cannot be read, or a line lacks a field.
        """
        path = Path(path)
        rows = []
        for number, line in enumerate(_read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InterpError(
                    f"{path}, line {number}", f"not JSON: {error.msg}", "write one object a line"
                ) from error
        return cls._from_rows(rows, path, name)

    @classmethod
    def from_csv(cls, path: str | Path, *, name: str | None = None) -> Task:
        """A task from a CSV file with columns clean, corrupted, answers, wrong.

        Several answers are separated by "|"; every further column is a named position: a
        substring of the clean prompt or a token index.
        """
        path = Path(path)
        rows: list[dict[str, Any]] = []
        known = {"clean", "corrupted", "answers", "wrong"}
        for record in csv.DictReader(io.StringIO(_read_text(path), newline="")):
            if None in record or None in record.values():
                raise InterpError(
                    f"{path}, row {len(rows) + 1}",
                    "another number of fields than the header has",
                    'quote fields that hold commas: "a, b"',
                )
            row: dict[str, Any] = {k: v for k, v in record.items() if k in known and v}
            for column in ("answers", "wrong"):
                row[column] = row[column].split("|") if row.get(column) else []
            row["positions"] = {
                k: int(v) if v.lstrip("-").isdigit() else v
                for k, v in record.items()
                if k not in known and v
            }
            rows.append(row)
        return cls._from_rows(rows, path, name)

    @classmethod
    def _from_rows(cls, rows: list[dict[str, Any]], path: Path, name: str | None) -> Task:
        pairs = []
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not isinstance(row.get("positions") or {}, dict):
                raise InterpError(
                    f"{path}, row {number}", "not an object of fields", "see Task.from_jsonl"
                )
            missing = [key for key in ("clean", "answers") if not row.get(key)]
            if missing:
                raise InterpError(
                    f"{path}, row {number}",
                    f"no {' and no '.join(missing)}",
                    "give clean, answers, and for patching corrupted and wrong",
                )
            pairs.append(
                PromptPair(
                    clean=_prompt(row["clean"]),
                    corrupted=_prompt(row["corrupted"]) if row.get("corrupted") else None,
                    answers=_texts(row["answers"]),
                    wrong=_texts(row.get("wrong", ())),
                    positions={
                        k: tuple(v) if isinstance(v, list) else v
                        for k, v in (row.get("positions") or {}).items()
                    },
                )
            )
        wrong = all(pair.wrong for pair in pairs)
        kind = path.suffix.removeprefix(".")
        return cls(
            name=name or path.stem,
            pairs=tuple(pairs),
            metric=METRICS["logit_diff" if wrong else "log_odds"],
            source=f"interp.Task.from_{kind}({str(path)!r})",
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InterpError(
            f"task file {path}", reason.lower(), "give a CSV or JSONL file in UTF-8"
        ) from error


def _prompt(value: Any) -> Prompt:
    return value if isinstance(value, str) else tuple(value)


def _texts(value: Any) -> tuple[str | int, ...]:
    return (value,) if isinstance(value, str | int) else tuple(value)


def _single_token(model: Tokenizing, text: str | int, pair: int, task: str) -> int:
    if isinstance(text, int):
        if not 0 <= text < model.d_vocab:
            raise InterpError(
                f"answer {text} of pair {pair} of {task}",
                f"{model.name} has tokens 0 to {model.d_vocab - 1}",
                "give an id of its vocabulary",
            )
        return text
    tokens = model.token_id(text)
    if len(tokens) != 1:
        shown = model.tokenize(tokens).shown() if tokens else "nothing"
        raise InterpError(
            f"answer {text!r} of pair {pair} of {task}",
            f"{len(tokens)} tokens in {model.name}: {shown}",
            "use answers of one token (many need their leading space)",
        )
    return tokens[0]


def _padded(rows: list[tuple[int, ...]]) -> torch.Tensor:
    width = max(1, max(len(row) for row in rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
