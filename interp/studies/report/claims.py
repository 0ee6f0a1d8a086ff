"""Claims of a paper as data: what is claimed, what must hold, and the test that decides."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from interp.core.errors import InterpError
from interp.studies.report.markdown import cell
from interp.studies.report.report import FILTERS
from interp.studies.steps import Results

Row = dict[str, str]
Verdict = bool | None | str
"""Holds, does not hold, or (None) partly; a string says itself."""

Finding = tuple[Verdict, Mapping[str, Any]]
"""A verdict, and the numbers behind it by name."""

WORDS = {True: "holds", False: "does not hold", None: "partly"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and the criterion it is judged by.

    claim: the sentence. source: the paper that makes it. holds_if: the criterion in words. test:
    applies the criterion; None if a step it needs was left out. evidence: a jinja2 sentence with
    the numbers that `test` returns.
    """

    claim: str
    source: str
    holds_if: str
    test: Callable[[Results], Finding | None]
    evidence: Template


def read_claims(tests: ModuleType) -> list[Claim]:
    """The claims of the claims.toml beside a module, whose functions test them.

    A claim's `of`, if it has one, is the second argument of its test.
    """
    directory = Path(str(tests.__file__)).parent
    environment = Environment(
        loader=FileSystemLoader(directory), undefined=StrictUndefined, finalize=cell
    )
    environment.filters |= FILTERS
    rows = tomllib.loads((directory / "claims.toml").read_text())["claim"]
    return [
        Claim(
            claim=" ".join(row["claim"].split()),
            source=row["source"],
            holds_if=" ".join(row["holds_if"].split()),
            test=partial(getattr(tests, row["test"]), **{x: row[x] for x in row.keys() & {"of"}}),
            evidence=environment.from_string(row["evidence"]),
        )
        for row in rows
    ]


def judge(claims: Iterable[Claim], results: Results) -> list[Row]:
    """One row a claim that can be tested: claim, here, holds if, evidence, source.

    Raises:
        InterpError: an evidence sentence names what its test does not return.
    """
    rows = []
    for claim in claims:
        if (found := claim.test(results)) is None:
            continue
        verdict, numbers = found
        try:
            evidence = claim.evidence.render(numbers)
        except TemplateError as error:
            asked = f"the evidence for {claim.claim!r}"
            raise InterpError(asked, str(error), "name what the test returns") from error
        rows.append(
            {
                "claim": claim.claim,
                "here": verdict if isinstance(verdict, str) else WORDS[verdict],
                "holds if": claim.holds_if,
                "evidence": " ".join(evidence.split()),
                "source": claim.source,
            }
        )
    return rows


def beyond(share: float, draws: int) -> bool | None:
    """Whether a set is beyond random ones; None if it beats all, but of too few to say."""
    if share < 0.05:
        return True
    return None if share <= 1 / (1 + draws) and draws < 19 else False


def least(*verdicts: bool | None) -> bool | None:
    """The weakest of several verdicts."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if None in verdicts else True


def some(parts: Iterable[bool | None]) -> bool | None:
    """True if all hold, False if none does, else None."""
    parts = list(parts)
    return True if all(parts) else None if any(parts) else False
