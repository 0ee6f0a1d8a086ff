"""What a page about a study gives to take away: its Python prints the numbers of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from interp.ui.shared.widgets import unsigned
from interp.ui.studies.pages import ALL_PAGES
from interp.ui.views.refusal import interventions as steering
from interp.ui.views.reuse import circuits
from interp.ui.views.verification import interventions
from tests import ROOT
from tests.pages import charts, downloads, numbers, opened

SECTIONS = {
    "verification_interventions": interventions.SECTIONS,
    "refusal_interventions": steering.SECTIONS,
    "reuse_circuits": circuits.SECTIONS,
}
MADE_NOW = {"generate", "try one"}
"""Sections that show what the loaded model writes now, and nothing that was kept."""

DRAWN = {
    "verification_probes": ({"site": "resid_post"}, "accuracy"),
    "verification_heads": ({"query and keys": "t_ans to earlier"}, "mean"),
    "refusal_heads": ({"measure": "carries (direct attribution)"}, "value"),
}
"""Pages that draw their table: the rows drawn first, and the column."""

PAGES = [
    (f"{pages.kind.name}_{view.stem}", str(view.relative_to(ROOT)), section)
    for pages in ALL_PAGES
    for view in sorted((ROOT / "interp/ui/views" / pages.kind.name).glob("[a-z]*.py"))
    for section in SECTIONS.get(f"{pages.kind.name}_{view.stem}", [""])
    if section not in MADE_NOW
]


@pytest.fixture(autouse=True)
def _ships(monkeypatch):
    shipped = ROOT / "interp" / "data" / "studies"
    monkeypatch.setattr("interp.studies.study.SHIPPED", shipped)


def drawn(at: Any) -> np.ndarray:
    """All numbers of the page's figures."""
    found = [
        numbers(trace[axis]).ravel()
        for chart in charts(at)
        for trace in chart["data"]
        for axis in ("y", "z")
        if axis in trace and not _words(trace[axis])
    ]
    return np.concatenate(found)


def _words(sent: Any) -> bool:
    return isinstance(sent, list) and any(isinstance(one, str) for one in sent)


def cells(frame: pd.DataFrame) -> set[tuple[str, ...]]:
    """The rows of a table as text: numbers with six decimals, whole ones too."""

    def text(cell: Any) -> str:
        try:
            return "" if cell is None or cell == "" else f"{float(cell):z.6f}"
        except ValueError:
            return str(cell)

    clean = frame.astype(object).where(frame.notna(), None)
    return {tuple(map(text, row)) for row in clean.itertuples(index=False)}


@pytest.mark.long
def test_the_python_of_every_page_prints_its_numbers_in_an_empty_folder(tmp_path) -> None:
    seen, script = {}, []
    for number, (page, view, section) in enumerate(PAGES):
        link = {"section": section} if section else {}
        if view.endswith("study.py"):
            link["section"] = "Open study"  # its first view is the report
        seen[number] = at = opened(view, **link)
        assert not at.error, page
        assert {"CSV", "JSON", "Notebook"} <= downloads(at), (page, section)
        code = next(block.value for block in at.code if "kept_study" in block.value)
        script += [code, f"table.to_csv('{number}.csv', index=False)", "print('~~~~')"]
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "INTERP_CACHE": str(empty), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=empty, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = done.stdout.split("~~~~\n")
    for number, (page, _, section) in enumerate(PAGES):
        table = pd.read_csv(empty / f"{number}.csv", keep_default_na=False, na_values=[""])
        assert len(printed[number].splitlines()) >= len(table) + 1, (page, section)
        if page in DRAWN:
            where, column = DRAWN[page]
            for name, value in where.items():
                table = table[table[name] == value]
            assert len(table)
            assert np.isin(np.round(table[column], 6), np.round(drawn(seen[number]), 6)).all(), page
            continue
        frames = [x.value for x in seen[number].dataframe if {*x.value.columns} <= {*table.columns}]
        assert frames, (page, section)
        main = max(frames, key=lambda frame: len(frame.columns))
        shown = [one.map(unsigned, decimals=3) for one in (main, table[list(main.columns)])]
        assert cells(shown[0]) <= cells(shown[1]), (page, section)


def test_the_kind_of_picture_is_chosen_in_the_row_of_files() -> None:
    at = opened("interp/ui/views/verification/probes.py")
    (kind,) = [one for one in at.get("button_group") if one.label.startswith("The camera")]
    assert (kind.options, kind.value) == (["PNG", "SVG"], "PNG")
