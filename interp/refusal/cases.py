"""Prompts for measuring refusal, each labelled as one to answer or to refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from interp.core.errors import InterpError, unknown
from interp.core.files import file_sha256
from interp.core.folds import joined
from interp.core.hub import SCHEME, dataset_file, parse_address
from interp.core.schema import FileRow, Text, checked, read_rows
from interp.refusal.over_refusal import DesiredReply, PromptCase
from interp.tasks.taboo import make_taboo


class CaseRow(FileRow):
    """A case as a row of a file, see `Case`. Numbers are read as texts."""

    row: Text = Field(description="a unique id, a text")
    prompt: Text = Field(description="the user's turn, a text")
    should: DesiredReply
    task: Text = Field("", description='what is requested, such as "translate"')
    kind: Text = Field("", description='what it is about, such as "taboo"')
    base: Text = Field("", description="the text that it is built on")


@dataclass(frozen=True, kw_only=True)
class Case(PromptCase):
    """A prompt (the user's turn), and whether a model should answer or refuse it.

    Attributes:
        row: its id. Only the id is stored with a result, never the text.
        prompt: its text.
        should: "answer" or "refuse".
        task: what is requested, such as "translate".
        kind: what it is about, such as "taboo". Control prompts have another kind.
        base: the text that it is built on. Rows with the same base are not independent.
    """

    prompt: str
    task: str = "request"
    kind: str = ""


def taboo_cases(n: int, *, requests: int = 1, seed: int = 0) -> tuple[Case, ...]:
    """The held-out prompts of `interp.tasks.taboo`, n of each kind and task.

    Of requests about the taboo itself, the only ones that should be refused, there are `requests`
    times as many.
    """
    records = make_taboo(n, seed=seed)
    asked = make_taboo(n * requests, kinds=("taboo",), tasks=("request",), seed=seed)
    seen = {record.row: record for record in (*records, *asked)}
    return tuple(
        Case(row=x.row, prompt=x.prompt, should=x.should, task=x.task, kind=x.kind, base=x.base)
        for x in seen.values()
    )


def cases_from(source: str, *, sha256: str = "") -> tuple[Case, ...]:
    """Read your own prompts from a path, or from hf://owner/name@commit/file.

    A path needs the file's hash, a data set the full commit; see `read_cases` and `dataset_cases`.

    Raises:
        InterpError: as these two functions, or an incomplete data set address.
    """
    if not source.startswith(SCHEME):
        return read_cases(Path(source), sha256=sha256)
    name, revision, file = parse_address(source)
    return dataset_cases(name, file, revision=revision, sha256=sha256 or None)


def dataset_cases(
    name: str,
    file: str,
    *,
    revision: str,
    sha256: str | None = None,
    columns: Mapping[str, str] | None = None,
    should: DesiredReply | None = None,
) -> tuple[Case, ...]:
    """Read your own prompts from a file of a Hugging Face data set, at one commit.

    The file is downloaded once into the Hugging Face cache. Its texts are not stored elsewhere:
    results contain ids, labels and scores.

    Args:
        name: the data set, such as "owner/name".
        file: its .jsonl or .csv file.
        revision: the commit, all 40 digits. A branch or tag would not fix the content.
        sha256: the file's hash, optionally.
        columns: see `read_cases`.
        should: see `read_cases`.

    Raises:
        InterpError: an incomplete commit, no such file, no network, and as `read_cases`.
    """
    path = dataset_file(name, file, revision)
    pinned = file_sha256(path) if sha256 is None else sha256
    return read_cases(path, sha256=pinned, columns=columns, should=should)


def read_cases(
    path: Path,
    *,
    sha256: str,
    columns: Mapping[str, str] | None = None,
    should: DesiredReply | None = None,
) -> tuple[Case, ...]:
    """Read your own prompts from a .jsonl or .csv file whose content is fixed by its hash.

    Columns are the fields of `Case`; row, prompt and should are required. Texts are not stored:
    results contain ids, labels and scores.

    Args:
        path: the file.
        sha256: its hash, which fixes what a result was measured on.
        columns: field of `Case` -> name of the file's column, if the file uses other names. Other
            columns are then ignored, and rows without ids are numbered.
        should: "answer" or "refuse" for all rows, if the file does not say.

    Raises:
        InterpError: no such file, another hash, a missing or unknown column, no rows, or a
            repeated id.
    """
    asked = f"prompts in {path}"
    kind = path.suffix.removeprefix(".")
    if kind not in ("jsonl", "csv"):
        raise InterpError(asked, f"a file {path.suffix or 'without suffix'}", "give .jsonl or .csv")
    for field in columns or {}:
        if field not in CaseRow.model_fields:
            raise unknown(f"field of {asked}", field, CaseRow.model_fields)
    header = _require_known if columns is None else None
    records = list(read_rows(path, kind, asked, header=header))
    present = dict.fromkeys(name for _, record in records for name in record)
    for column in (columns or {}).values():
        if column not in present:
            raise unknown(f"column of {asked}", column, present)
    cases: dict[str, Case] = {}
    for number, (line, record) in enumerate(records):
        row = {name: value for name, value in record.items() if value is not None}
        if columns is not None:
            row = {field: row[name] for field, name in columns.items() if name in row}
            row |= {} if "row" in columns else {"row": str(number)}
        if should is not None:
            row.setdefault("should", should)
        case = Case(**checked(CaseRow, row, line).model_dump(exclude_unset=True))
        if cases.setdefault(case.row, case) is not case:
            raise InterpError(line, f"the id {case.row!r} again", "give every row a unique id")
    if not cases:
        raise InterpError(asked, "no rows", "write one prompt per line")
    if (found := file_sha256(path)) != sha256.lower():
        wrong = f"its hash is not {sha256}" if sha256 else "no hash is given"
        do = "if this is the right file, give sha256= (on the command line --sha256)"
        raise InterpError(asked, wrong, f"{do} {found}")
    return tuple(cases.values())


def _require_known(columns: list[str], place: str) -> None:
    for column in columns:
        if column not in CaseRow.model_fields:
            raise unknown(f"{place}: column", column, CaseRow.model_fields)


def deal(cases: Sequence[Case], shares: Mapping[str, float], *, seed: int = 0) -> tuple[str, ...]:
    """Assign every case to a part: rows of one base text together, every kind by the shares.

    Base texts with a prompt in common are also kept together.

    Raises:
        InterpError: shares that are not positive, or a part left without a case.
    """
    names, wanted = list(shares), np.array(list(shares.values()), dtype=float)
    if (wanted <= 0).any():
        raise InterpError(f"parts {dict(shares)}", "not all above 0", "give positive shares")
    rng, part = np.random.default_rng(seed), dict[str, str]()
    own = [case.group for case in cases]
    group = joined(own, (case.prompt for case in cases)).tolist()
    bases = [own[group.index(number)] for number in group]  # the first base of each group
    for kind in dict.fromkeys(case.kind for case in cases):
        sizes = Counter(b for b, case in zip(bases, cases, strict=True) if case.kind == kind)
        held = np.zeros(len(names))
        for base in rng.permutation(sorted(sizes)).tolist():
            name = part.setdefault(base, names[int(np.argmin(held / wanted))])
            held[names.index(name)] += sizes[base]
    dealt = tuple(part[base] for base in bases)
    if set(dealt) != set(names):
        raise InterpError(
            f"{len(cases)} cases in parts {dict(shares)}",
            f"{len(part)} base texts, rows {dict(Counter(dealt))}",
            "give more base texts",
        )
    return dealt
