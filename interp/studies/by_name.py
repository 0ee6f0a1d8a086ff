"""A kept study by its name, and the tables that its pages show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.studies.refusal.report.tables import TABLES as REFUSAL_TABLES
from interp.studies.refusal.settings import REFUSAL
from interp.studies.reuse.report.tables import TABLES as REUSE_TABLES
from interp.studies.reuse.settings import REUSE
from interp.studies.steps import Result, Results, Rows
from interp.studies.study import Study, StudyKind, kept_studies
from interp.studies.verification.report.tables import TABLES as VERIFICATION_TABLES
from interp.studies.verification.settings import VERIFICATION

KINDS: tuple[tuple[StudyKind[Any], Mapping[str, Callable[[Results], Rows]]], ...] = (
    (VERIFICATION, VERIFICATION_TABLES),
    (REFUSAL, REFUSAL_TABLES),
    (REUSE, REUSE_TABLES),
)
"""The kinds of study with the tables of each."""


class _Asked(dict[str, Result]):
    """The results of a study's steps; a step that is asked for and missing is named."""

    def __missing__(self, step: str) -> Result:
        raise InterpError(
            "a table of the study",
            f"it has no results of the step {step}",
            "continue the study: finished steps are kept",
        )


@reads_arguments
def kept_study(name: str) -> Study[Any]:
    """A study that ships or is kept in the cache, by the name of its folder.

    Raises:
        InterpError: there is none of this name.
    """
    studies = {study.directory.name: study for kind, _ in KINDS for study in kept_studies(kind)}
    if name not in studies:
        known = ", ".join(studies) or "none"
        raise InterpError(f"the study {name!r:.80}", f"these are kept: {known}", "choose one")
    return studies[name]


@reads_arguments
def study_table(study: Study[Any], table: str) -> pd.DataFrame:
    """A table of a study, as its page in the app shows it: "claims", "behaviour", "heads", ...

    Raises:
        InterpError: the kind of study has no such table, or the study lacks a step of it.
    """
    tables = next(tables for kind, tables in KINDS if isinstance(study.settings, kind.settings))
    if table not in tables:
        found = f"a study of this kind has {', '.join(tables)}"
        raise InterpError(f"the table {table!r:.80} of a study", found, "choose one of these")
    return pd.DataFrame(tables[table](_Asked(study.results)), dtype=object)
