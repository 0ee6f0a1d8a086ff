"""Prompts with what should become of each: what over-refusal and refusal are measured on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import InterpError, unknown
from interp.files import file_sha256
from interp.folds import joined
from interp.over_refusal import SIDES, Row, Side
from interp.tasks.taboo import make_taboo


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
    def known(self) -> Row:
        """The case without its text."""
        return Row(row=self.row, should=self.should, task=self.task, base=self.base or self.row)


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
        InterpError: another hash, a column missing or unknown, no rows, one twice, or a `should`
            that is neither "answer" nor "refuse".
    """
    found = file_sha256(path)
    if found != sha256.lower():
        raise InterpError(f"prompts in {path}", f"sha256 {found}, not {sha256}", "pin this one")
    table = _table(path)
    known = tuple(Case.__dataclass_fields__)
    if columns is not None:
        for field, column in columns.items():
            if field not in known or column not in table.columns:
                told = (*known, *map(str, table.columns))
                raise unknown("field or column", column if field in known else field, told)
        table = table[list(columns.values())].set_axis(list(columns), axis=1)
        if "row" not in columns:
            table = table.assign(row=[str(number) for number in range(len(table))])
    if should is not None and "should" not in table.columns:
        table = table.assign(should=should)
    for column in table.columns:
        if column not in known:
            raise unknown("column", str(column), known)
    needed = ("row", "prompt", "should")
    if missing := {x for x in needed if x not in table.columns or not all(table[x].notna())}:
        raise InterpError(f"prompts in {path}", f"no {', '.join(sorted(missing))}", "add them")
    twice, asked = len(table) - len(set(table["row"])), set(table["should"])
    if table.empty or twice or not asked <= set(SIDES):
        raise InterpError(
            f"prompts in {path}",
            f"{len(table)} rows, {twice} ids twice, should of {sorted(asked)}",
            'give each row an id of its own, and "answer" or "refuse"',
        )
    rows = (
        {k: v for k, v in row.items() if isinstance(v, str)} for row in table.to_dict("records")
    )
    return tuple(Case(**row) for row in rows)  # type: ignore[arg-type]


def _table(path: Path) -> Any:
    """A file's rows, all texts."""
    import pandas as pd

    if path.suffix not in (".jsonl", ".csv"):
        raise InterpError(f"prompts in {path}", f"a {path.suffix} file", "give .jsonl or .csv")
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    lines = path.read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=str)


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
