"""Task files: one JSON object per line, or CSV, and what each field may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from interp.core.errors import InterpError, unknown
from interp.core.positions import occurrences, require_own
from interp.core.schema import AnswerIds, FileRow, Ids, Number, Text, Texts, checked, read_rows

Occurrence = Annotated[tuple[Text, Number], Strict(False)]
_SOME = "a text or a list of texts, each a possible next token or answer of several tokens"
_IDS = 'a list of token ids, separated by "|" in CSV'
_ANSWER_IDS = f"{_IDS}; in JSONL an answer of several tokens is a list of ids"
NAMED = {"positions", "indices"}
_LISTS = ("clean_ids", "corrupted_ids", "answers", "answers_ids", "wrong", "wrong_ids")


class TaskRow(FileRow):
    """A prompt pair in a task file.

    The prompts, the answers and the wrong answers are each given as texts or as token ids. Only the
    clean prompt and the answers are required. Numbers are read as texts, except in the fields of
    ids and indices.
    """

    clean: Text | None = Field(None, description="the prompt, a text")
    clean_ids: Ids | None = Field(None, description=_IDS)
    corrupted: Text | None = Field(None, description="the corrupted prompt, a text")
    corrupted_ids: Ids | None = Field(None, description=_IDS)
    answers: Texts | None = Field(None, description=_SOME)
    answers_ids: AnswerIds | None = Field(None, description=_ANSWER_IDS)
    wrong: Texts | None = Field(None, description=_SOME)
    wrong_ids: AnswerIds | None = Field(None, description=_ANSWER_IDS)
    positions: dict[Text, Text | Occurrence] = Field(
        {}, description="name: a substring of the clean prompt, or [substring, occurrence]"
    )
    indices: dict[Text, Number] = Field(
        {}, description="name: a token index, from 0, or negative from the end"
    )

    def pair(self, place: str) -> dict[str, Any]:
        """The fields of a `PromptPair`.

        Raises:
            InterpError: a prompt or list is given both as texts and as ids, the prompt or the
                answers are missing, or a position is not in the prompt, as far as this can be
                checked without a tokeniser.
        """
        found: dict[str, Any] = {"positions": {**self.positions, **self.indices}, "place": place}
        for name in ("clean", "corrupted", "answers", "wrong"):
            both = [x for x in (getattr(self, name), getattr(self, f"{name}_ids")) if x is not None]
            if len(both) > 1:
                raise InterpError(place, f"both {name} and {name}_ids", "give only one of them")
            if not both and name in ("clean", "answers"):
                do = "give clean, answers, and for patching corrupted and wrong"
                raise InterpError(place, f"no {name}", do)
            found |= {name: both[0]} if both else {}
        if twice := self.positions.keys() & self.indices.keys():
            name = min(twice)
            raise InterpError(place, f"position {name!r} is given twice", "use each name once")
        for field in ("positions", "indices"):
            for name, mark in getattr(self, field).items():
                self._require_there(mark, name, f"{place}, {field}.{name}")
        return found

    def _require_there(self, mark: str | tuple[str, int] | int, name: str, place: str) -> None:
        require_own([name], place)
        if isinstance(mark, int):
            n = len(self.clean_ids or ())
            if n and not -n <= mark < n:
                do = f"give an index inside the prompt, {-n} to {n - 1}"
                raise InterpError(place, f"{mark} in {n} tokens", do)
            return
        if self.clean is None:
            found = "a substring, but the prompt is token ids"
            raise InterpError(place, found, "give the position in indices")
        part, occurrence = (mark, 0) if isinstance(mark, str) else mark
        n = len(occurrences(part, self.clean))
        if not -n <= occurrence < n:
            found = f"{part!r:.60}, {n} time{'s' * (n != 1)} in the clean prompt"
            there = f"give an occurrence from {-n} to {n - 1}"
            raise InterpError(place, found, there if n else "write it exactly as in the prompt")


def read_task(path: Path, kind: str) -> list[dict[str, Any]]:
    """The prompt pairs of a file (kind jsonl or csv), each as the fields of a `PromptPair`.

    Raises:
        InterpError: the file cannot be read, a field is unknown, missing or of the wrong type, a
            position has a reserved name or is not in its prompt, or only some rows have corrupted
            prompts or wrong answers.
    """
    pairs: list[dict[str, Any]] = []
    for place, record in read_rows(path, kind, f"task file {path}", header=_require_known):
        row = _from_csv(record) if kind == "csv" else _lists(record)
        pair = checked(TaskRow, row, place).pair(place)
        for name in ("corrupted", "wrong"):
            if pairs and (name in pair) != (name in pairs[0]):
                there = ("no", "a")[name in pair]
                raise InterpError(
                    place,
                    f"it has {there} value for {name}, unlike the first row",
                    "give it in every row or in none",
                )
        pairs.append(pair)
    if not pairs:
        raise InterpError(f"task file {path}", "no prompts", "give at least one pair")
    return pairs


def task_row(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a JSONL task file that reads as these fields of a `PromptPair`.

    Raises:
        InterpError: texts and token ids are mixed in the answers.
    """
    row: dict[str, Any] = {}
    for name in ("clean", "corrupted", "answers", "wrong"):
        value = pair[name]
        each = value if name in ("answers", "wrong") else (value,)
        kinds = {isinstance(one, str) for one in each}
        if len(kinds) > 1:
            do = "give only texts, or only ids"
            raise InterpError(f"writing {name} {value}", "texts and token ids", do)
        if value not in (None, ()):
            row[name if kinds == {True} else f"{name}_ids"] = value
    for field, whole in (("positions", False), ("indices", True)):
        marks = {n: m for n, m in pair["positions"].items() if isinstance(m, int) == whole}
        row |= {field: marks} if marks else {}
    return row


def _lists(record: dict[str, Any]) -> dict[str, Any]:
    """A JSON record with texts as lists of one, and without nulls and an empty list of wrong."""
    row = {name: value for name, value in record.items() if value is not None}
    for name in ("answers", "wrong"):
        if isinstance(row.get(name), str):
            row[name] = [row[name]]
    if row.get("wrong") == []:
        del row["wrong"]
    return row


def _require_known(columns: list[str], place: str) -> None:
    for column in columns:
        field, _, name = column.partition(".")
        if name and field in NAMED:
            require_own([name], f"{place}, {column}")
        elif column in NAMED or column not in TaskRow.model_fields:
            known = {*TaskRow.model_fields, "positions.NAME", "indices.NAME"} - NAMED
            raise unknown(f"{place}: column", column, known)


def _from_csv(record: dict[str, str]) -> dict[str, Any]:
    """A CSV record with lists split at "|" and columns positions.NAME and indices.NAME grouped."""
    row: dict[str, Any] = {}
    for column, cell in record.items():
        field, _, name = column.partition(".")
        if name:
            row.setdefault(field, {})[name] = cell
        else:
            row[field] = cell.split("|") if field in _LISTS else cell
    return row
