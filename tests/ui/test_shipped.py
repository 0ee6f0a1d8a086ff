"""The reports that ship open at once on the pages of studies, and can be run anew."""

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from jinja2 import Environment

import interp
from interp.studies.report.report import HERE
from interp.studies.study import kept_studies, shipped_reports
from interp.ui.studies.pages import ALL_PAGES, REFUSAL_PAGES
from interp.ui.studies.shipped import RUN
from tests import ROOT
from tests.pages import downloads, named, opened
from tests.ui.test_studies import make_study, visit

SHIPPED = ROOT / "interp" / "data" / "studies"
ON_PAGES = [
    pytest.param(pages, folder.name, id=folder.name)
    for pages in ALL_PAGES
    for folder in sorted(SHIPPED.glob(f"{pages.kind.name}-*"))
]


@pytest.fixture(autouse=True)
def _ships(monkeypatch):
    monkeypatch.setattr("interp.studies.study.SHIPPED", SHIPPED)


def page_of(at) -> str:
    """The report as it is sent to the browser."""
    return next(x.proto.body for x in at.get("html") if 'class="report"' in x.proto.body)


STUDY_VIEWS = [
    view
    for pages in ALL_PAGES
    for view in sorted((ROOT / "interp/ui/views" / pages.kind.name).glob("[a-z]*.py"))
    if view.stem != "study"
]


def test_every_report_is_on_a_page():
    assert {name for _, name in (param.values for param in ON_PAGES)} == {
        folder.name for folder in SHIPPED.iterdir()
    }
    for pages in ALL_PAGES:
        assert shipped_reports(pages.kind)


@pytest.mark.parametrize(("pages", "name"), ON_PAGES)
def test_a_newcomer_sees_the_report_with_its_figures_and_sections(pages, name):
    at = opened(f"interp/ui/views/{pages.kind.name}/study.py")
    assert not at.error
    assert not at.info
    if len(shipped_reports(pages.kind)) > 1:
        at = named(at.selectbox, "Study").select(name).run()
    page, folder = page_of(at), SHIPPED / name
    text = (folder / "report.md").read_text()
    figures = {path.name for path in folder.glob("figures/*")}
    shown = re.findall(r"\(figures/(.*?)\)", text)  # one may be shown twice
    assert set(shown) == figures
    assert page.count('<img src="data:image/') == len(shown)
    sections = re.findall(r'<a href="#(.*?)">', page)
    assert len(sections) == len(re.findall(r"^##+ ", text, re.M))
    assert all(f'id="{section}"' in page for section in sections)
    run = RUN.search(text)
    assert run is not None
    facts = next(x.proto.body for x in at.get("html") if "settings" in x.proto.body)
    assert all(words in facts for words in (folder.name.partition("-")[2], *run.groups()))
    assert {"report.html", "report.md"} <= downloads(at)


@pytest.mark.parametrize("view", STUDY_VIEWS, ids=lambda view: f"{view.parent.name}-{view.stem}")
def test_a_newcomer_sees_the_results_on_every_page_of_a_study(view):
    at = opened(str(view.relative_to(ROOT)))
    assert not at.error
    assert not at.exception
    assert at.get("plotly_chart") or at.dataframe
    assert ", ships" in named(at.selectbox, "Study").options[0]


def test_the_default_models_study_comes_first():
    default = interp.known_models()[0].name
    (first, _) = shipped_reports(REFUSAL_PAGES.kind)
    assert first.name.endswith(default)
    assert kept_studies(REFUSAL_PAGES.kind)[0].model == default


def test_a_report_that_is_written_today_says_of_its_run_what_the_page_shows():
    template = (HERE / "run.md.j2").read_text()
    run = {"settings": "n 3, top_k (1, 2)", "minutes": 71, "longest": "a 3 s", "versions": "x 1.2"}
    filters = {"fixed": lambda value, decimals: f"{value:.{decimals}f}"}
    environment = Environment()
    environment.filters |= filters
    text = environment.from_string(template).render(run=run | {"made": "2026-11-23"})
    found = RUN.search(text)
    assert found is not None
    assert found.groups() == ("n 3, top_k (1, 2)", "71 minutes", "2026-11-23")


def test_it_is_run_anew_with_its_model_and_numbers(loaded):
    at = visit("study")
    named(at.button, "Run it anew").click().run()
    assert not at.exception
    assert at.query_params["model"] == "countdown-smollm2"
    assert named(at.number_input, "n").value == 300
    assert named(at.number_input, "Draws").value == 50


def test_a_study_of_ones_own_goes_first(tmp_path):
    make_study(tmp_path)
    at = visit("study")
    assert not [x for x in at.get("html") if 'class="report"' in x.proto.body]
    at = visit("study", section="Report of a run that ships")
    assert "How countdown-smollm2 checks" in page_of(at)


def test_a_study_that_ships_with_its_steps_opens_on_every_page(tmp_path, monkeypatch):
    make_study(tmp_path)
    ships = tmp_path / "shipped"
    monkeypatch.setattr("interp.studies.study.SHIPPED", ships)
    shutil.move(tmp_path / "studies", ships)
    at = visit("probes")
    assert not at.error
    assert at.get("plotly_chart")
    assert ", ships" in named(at.selectbox, "Study").options[0]


def test_what_ships_is_small():
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 15_000_000, "the repository's limit for one file, for all of them"
    assert {path.name for path in Path(SHIPPED).glob("*/*.html")} == set()
