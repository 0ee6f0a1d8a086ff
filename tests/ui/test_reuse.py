"""The pages about circuit reuse show what a study kept: each number is the result's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from interp.studies.reuse.study import study_reuse
from interp.ui.shared.widgets import interval
from tests.pages import charts, downloads, named, numbers, opened, table_with
from tests.studies.test_reuse import SETTINGS, worded

__all__ = ["worded"]
PAGES = {name: f"interp/ui/views/reuse/{name}.py" for name in ("study", "circuits")}
FOLDER = f"reuse-{'a' * 20}"
llama = pytest.mark.parametrize("worded", ["llama"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def results(worded, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A study of a random model in a cache of its own, and its results."""
    from interp.studies.reuse.steps import overlap

    whole, root = overlap.behaviour, tmp_path_factory.mktemp("cache")

    def passed(context, entries):  # a random model does none of the tasks
        return {n: x | {"verdict": "tends"} for n, x in whole(context, entries).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.studies.reuse.study.behaviour", passed)
        patch.setattr("interp.patching.path.check_gap", lambda one, other: None)
        folder = root / "studies" / FOLDER
        study = study_reuse(worded, worded, settings=SETTINGS, directory=folder)
    return root, study.results


@pytest.fixture
def kept(results, monkeypatch) -> dict[str, Any]:
    monkeypatch.setenv("INTERP_CACHE", str(results[0]))
    return results[1]


@llama
def test_the_first_page_shows_claims_and_behaviour(kept) -> None:
    at = opened(PAGES["study"])
    assert not at.error
    rows = table_with(at, "verdict").set_index("task")
    for name, x in kept["behaviour"].items():
        assert rows.loc[name, "right"] == x["right"]["mean"]
        assert rows.loc[name, "95 % interval"] == interval(x["right"])
    assert {"CSV", "JSON", "report.html"} <= downloads(at)


@llama
def test_heads_of_every_stage_and_one_head_in_every_task(kept) -> None:
    found = kept["circuit_ioi"]
    for stage, x in found["stages"].items():
        at = opened(PAGES["circuits"], reuse=FOLDER, candidates="ioi", side=stage, picked="L1H2")
        assert not at.error
        drawn = numbers(charts(at)[0]["data"][0]["z"])
        assert np.allclose(drawn.ravel(), x["values"], atol=1e-6)
        listed = table_with(at, "attends as")["head"] if x["heads"] else ()
        assert list(listed) == x["heads"]
        tasks = table_with(at, "what it does").set_index("task")
        assert tasks.loc["ioi", stage] == x["values"][1 * found["n_heads"] + 2]


@llama
def test_overlaps_and_repairs_stand_beside_chance(kept) -> None:
    at = opened(PAGES["circuits"], reuse=FOLDER, section="Overlap")
    assert not at.error
    rows = table_with(at, "halves").set_index("tasks")
    for row in kept["overlap"]["pairs"]:
        shown = rows.loc[" / ".join(row["pair"])]
        assert shown["in common"] == row["matched"]["value"]
        assert shown["random"] == row["matched"]["null"]["mean"]
    at = opened(PAGES["circuits"], reuse=FOLDER, section="Repair")
    assert not at.error
    rows = table_with(at, "repaired").set_index("heads made to attend")
    for name, x in kept["repair"]["sets"].items():
        assert rows.loc[name, "right"] == x["right"]["mean"]
        assert rows.loc[name, "as strong"] == x["right"]["share"]


def test_without_a_study_the_page_says_what_to_do() -> None:
    at = opened(PAGES["circuits"])
    assert [info.value for info in at.info] == ["No study is kept yet. Run one first."]


def test_a_study_runs_with_the_model_that_was_trained_from_it(monkeypatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("interp.ui.shared.jobs.start", lambda key, work: asked.append(work.args))
    trained = {"toy-induction": "colored-objects-smollm2"}
    monkeypatch.setattr("interp.studies.reuse.study.TRAINED", trained)
    at = opened(PAGES["study"], model="toy-induction")
    named(at.number_input, "n").set_value(40).run()
    named(at.button, "Run").click().run()
    kind, model, other, settings = asked[0]
    assert (kind, model.name, settings.n) == ("reuse", "toy-induction", 40)
    assert other == "colored-objects-smollm2"
