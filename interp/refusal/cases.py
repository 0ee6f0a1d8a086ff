"""Prompts with what should become of each: what over-refusal and refusal are measured on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from interp.core.errors import InterpError, unknown
from interp.core.files import file_sha256
from interp.core.folds import joined
from interp.core.schema import FileRow, Text, checked, read_rows
from interp.refusal.over_refusal import PromptCase as Known
from interp.refusal.over_refusal import Side
from interp.tasks.taboo import make_taboo


class CaseRow(FileRow):
    """A case as a file holds it: see `Case`. Numbers are texts."""

    row: Text = Field(description="an id of its own, a text")
    prompt: Text = Field(description="the user's turn, a text")
    should: Side
    task: Text = Field("", description='what is asked for, such as "translate"')
    kind: Text = Field("", description='what it is about, such as "taboo"')
    base: Text = Field("", description="the text it is written around")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A prompt (the user's turn) and what should become of it.

    Attributes:
        row: id, the only thing of a prompt that is kept with a result.
        prompt: its text.
        should: whether a model ought to answer it or to refuse it.
        task: what is asked for, such as "translate".
        kind: what it is about, such as "taboo"; rows to compare with have another kind.
        base: the text it is written around; rows of one base are not independent.
    """

    row: str
    prompt: str
    should: Side
    task: str = "request"
    kind: str = ""
    base: str = ""

    @property
    def known(self) -> Known:
        """The case without its text."""
        return Known(row=self.row, should=self.should, task=self.task, base=self.base or self.row)


def taboo_cases(n: int, *, requests: int = 1, seed: int = 0) -> tuple[Case, ...]:
    """The held-out prompts of `interp.tasks.taboo`, n of each kind and task.

    `requests` times as many about the taboo itself: these alone should be refused.
    """
    records = make_taboo(n, seed=seed)
    asked = make_taboo(n * requests, kinds=("taboo",), tasks=("request",), seed=seed)
    seen = {record.row: record for record in (*records, *asked)}
    return tuple(
        Case(row=x.row, prompt=x.prompt, should=x.should, task=x.task, kind=x.kind, base=x.base)
        for x in seen.values()
    )


def cases_from(source: str, *, sha256: str = "") -> tuple[Case, ...]:
    """Your own prompts by one line of text: a path, or hf://owner/name@commit/file.

    A path needs its hash, a data set the whole commit; see `read_cases` and `dataset_cases`.

    Raises:
        InterpError: see there, or a data set's address that is not complete.
    """
    if not source.startswith("hf://"):
        return read_cases(Path(source), sha256=sha256)
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)@([^/]+)/(.+)", source)
    if found is None:
        raise InterpError(source, "no address of a file", "write hf://owner/name@commit/file")
    name, revision, file = found.groups()
    return dataset_cases(name, file, revision=revision, sha256=sha256 or None)


def dataset_cases(
    name: str,
    file: str,
    *,
    revision: str,
    sha256: str | None = None,
    columns: Mapping[str, str] | None = None,
    should: Side | None = None,
) -> tuple[Case, ...]:
    """Your own prompts, from one file of a data set on the Hugging Face hub at one commit.

    Fetched once, into the hub's cache. Nothing of it is stored here: results hold ids, labels and
    scores.

    Args:
        name: the data set, such as "owner/name".
        file: its .jsonl or .csv file.
        revision: the commit, all 40 digits: a branch or a tag would not pin the content.
        sha256: the file's hash too, if you like.
        columns: see `read_cases`.
        should: see `read_cases`.

    Raises:
        InterpError: no whole commit, no such file or no network, and all of `read_cases`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InterpError(f"data set {name}", f"revision {revision!r}", "give all 40 digits of one")
    try:
        path = hf_hub_download(name, file, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InterpError(
            f"{file} of data set {name} at {revision[:8]}",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "check name, file and commit, the network, and that you may read it",
        ) from error
    pinned = file_sha256(Path(path)) if sha256 is None else sha256
    return read_cases(Path(path), sha256=pinned, columns=columns, should=should)


def read_cases(
    path: Path,
    *,
    sha256: str,
    columns: Mapping[str, str] | None = None,
    should: Side | None = None,
) -> tuple[Case, ...]:
    """Your own prompts, from a .jsonl or .csv file whose content is pinned.

    Columns are the fields of `Case`; row, prompt and should are needed. Texts are used and never
    written: results hold ids, labels and scores.

    Args:
        path: the file.
        sha256: its hash, so that a result says what it was measured on.
        columns: field of `Case` -> the file's name for it, where it has names of its own; columns
            that are not named here are then left out, and rows without ids are numbered.
        should: what should become of all rows, where the file does not say.

    Raises:
        InterpError: no such file, another hash, a column missing or unknown, no rows, or an id
            twice.
    """
    asked = f"prompts in {path}"
    kind = path.suffix.removeprefix(".")
    if kind not in ("jsonl", "csv"):
        raise InterpError(asked, f"a {path.suffix or 'nameless'} file", "give .jsonl or .csv")
    for field in columns or {}:
        if field not in CaseRow.model_fields:
            raise unknown(f"field of {asked}", field, CaseRow.model_fields)
    header = _require_known if columns is None else None
    records = list(read_rows(path, kind, asked, header=header))
    there = dict.fromkeys(name for _, record in records for name in record)
    for column in (columns or {}).values():
        if column not in there:
            raise unknown(f"column of {asked}", column, there)
    cases: dict[str, Case] = {}
    for number, (place, record) in enumerate(records):
        row = {name: value for name, value in record.items() if value is not None}
        if columns is not None:
            row = {field: row[name] for field, name in columns.items() if name in row}
            row |= {} if "row" in columns else {"row": str(number)}
        if should is not None:
            row.setdefault("should", should)
        case = Case(**checked(CaseRow, row, place).model_dump(exclude_unset=True))
        if cases.setdefault(case.row, case) is not case:
            raise InterpError(place, f"the id {case.row!r} twice", "give each row one of its own")
    if not cases:
        raise InterpError(asked, "no rows", "write one prompt a line")
    if (found := file_sha256(path)) != sha256.lower():
        wrong = f"not the content of hash {sha256}" if sha256 else "no hash pins its content"
        do = "if it is what you mean, give sha256= (on the command line --sha256)"
        raise InterpError(asked, wrong, f"{do} {found}")
    return tuple(cases.values())


def _require_known(columns: list[str], place: str) -> None:
    for column in columns:
        if column not in CaseRow.model_fields:
            raise unknown(f"{place}: column", column, CaseRow.model_fields)


def deal(cases: Sequence[Case], shares: Mapping[str, float], *, seed: int = 0) -> tuple[str, ...]:
    """The part each case falls to; base texts stay together, kinds are spread by the shares.

    Base texts that share a prompt stay together too.

    Raises:
        InterpError: shares that are not positive, or a part left without a case.
    """
    names, wanted = list(shares), np.array(list(shares.values()), dtype=float)
    if (wanted <= 0).any():
        raise InterpError(f"parts {dict(shares)}", "not all above 0", "give positive shares")
    rng, part = np.random.default_rng(seed), dict[str, str]()
    own = [case.known.base for case in cases]
    group = joined(own, (case.prompt for case in cases)).tolist()
    bases = [own[group.index(number)] for number in group]  # the first of those together
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
