"""A kept study is found by its name, and its tables are those of its pages."""

import pytest

import interp
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.studies.by_name import KINDS
from interp.studies.steps import write_step
from interp.studies.study import write_manifest
from interp.studies.verification.settings import VERIFICATION, VerificationSettings
from tests import ROOT

FOLDER = f"verification-{'a' * 20}"
SHIPPED = sorted(path.name for path in (ROOT / "interp/data/studies").iterdir())


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A study in a cache of its own, of which one step is there."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    folder, of = tmp_path / "studies" / FOLDER, content_key("a study")
    folder.mkdir(parents=True)
    settings = VerificationSettings(n=40)
    write_manifest(folder, VERIFICATION, "toy", "f" * 64, settings, {"base": None}, of)
    rows = [{"share": "a share", "mean": 0.5, "low": 0.4, "high": 0.6, "n": 40}]
    write_step(folder / "behaviour.json", {"rows": rows}, key="k", of=of, seconds=1.0)
    return interp.studies.kept_study(FOLDER)


def test_a_study_in_the_cache_is_found_and_its_table_is_the_step(kept):
    assert (kept.model, kept.settings.n) == ("toy", 40)
    (row,) = interp.studies.study_table(kept, "behaviour").to_dict("records")
    assert row == {"share": "a share", "value": 0.5, "95 % interval": "0.400 to 0.600", "n": 40}


@pytest.mark.long
def test_a_missing_step_an_unknown_table_and_an_unknown_study_are_refused(kept):
    with pytest.raises(InterpError, match="no results of the step probes"):
        interp.studies.study_table(kept, "probes")
    with pytest.raises(InterpError, match="has claims, behaviour, probes"):
        interp.studies.study_table(kept, "frontier")
    for name in ("gone", "../studies/" + FOLDER, ""):
        with pytest.raises(InterpError, match=f"these are kept: {FOLDER}"):
            interp.studies.kept_study(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_table_of_a_study_that_ships_has_rows_with_the_same_keys(name):
    study = interp.studies.kept_study(name)
    (tables,) = [tables for kind, tables in KINDS if isinstance(study.settings, kind.settings)]
    for table, rows in tables.items():
        made = rows(study.results)
        assert made, table
        assert len({tuple(row) for row in made}) == 1, table
