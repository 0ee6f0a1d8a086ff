import shutil
from dataclasses import dataclass, replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.models.token_patterns import find_positions, number_positions, require_single
from interp.studies.report.report import study_report
from interp.studies.steps import Steps, read_results, read_step
from interp.studies.study import (
    StudyKind,
    begin,
    kept_studies,
    open_study,
    study_key,
)
from interp.studies.verification.outcomes import classify_outcome, outcomes
from interp.studies.verification.samples import Samples


def test_patterns_are_found_in_their_own_text():
    texts = [(5, 1, 2, 9), (1, 2, 1, 2, 3), (7,)]
    found = find_positions(texts, {"a": (1, 2), "b": (1, 3)})
    assert [(m.text, m.position, m.label) for m in found] == [(0, 1, "a"), (1, 0, "a"), (1, 2, "a")]
    with pytest.raises(InterpError, match="a repeated one"):
        find_positions(texts, {"a": (1, 2), "b": (1, 2)})
    with pytest.raises(InterpError, match="empty"):
        find_positions(texts, {"a": ()})


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("(this works)\nSo", "fail"),
        ("(not 71)\n- 3 + 4 = 7 (this works)", "fail"),
        ("(not 71)\n- 3 + 4", "success"),
        ("(not 71) <answer> 3 </answer>", "partial"),
        ("<answer> 3 </answer>", "partial"),
        ("another thing", "ood"),
        ("(yes, exactly)", "ood"),
        ("  ", "empty"),
    ],
)
def test_our_outcomes(text, outcome):
    assert classify_outcome(text) == outcome


@pytest.mark.parametrize(
    ("rule", "text", "outcome"),
    [
        ("next_token", "(not 3)", "success"),
        ("next_token", "(this is wrong", "fail"),
        ("next_token", "( equals", "ood"),
        ("v1", "(not 3)", "success"),
        ("v1", "anything at all", "success"),
        ("v1", "<answer>", "partial"),
        ("v1", "(this works) <answer>", "fail"),
        ("final", "(not 3)\n- 4 + 5 = 9 (not 3)", "success"),
        ("final", "(not 3) So the answer is", "partial"),
        ("final", "(not 64 - this is actually 84", "success"),
        ("final", "not correct, try", "success"),
        ("final", "not right but correct", "partial"),
        ("final", "another way", "success"),
        ("final", "well done", "ood"),
        ("r1", "(not 3) + 4", "success"),
        ("r1", "not so. Wait", "partial"),
        ("r1", "not so fast", "ood"),
        ("r1", "yes, this works", "fail"),
        ("final", "", "empty"),
    ],
)
def test_published_outcomes(rule, text, outcome):
    assert classify_outcome(text, rule) == outcome


def test_shares_add_up_and_unknown_rules_are_refused():
    found = outcomes(["(not 3)", "", "(this works)", "hm"])
    assert sum(share.mean for share in found.values()) == pytest.approx(1)
    assert {share.n for share in found.values()} == {4}
    with pytest.raises(InterpError, match="rule"):
        classify_outcome("x", "v2")


def test_steps_are_kept_under_their_key(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"value": (1, 2)}

    for _ in range(2):
        assert Steps(directory=tmp_path, key=["a"])("one", compute) == {"value": [1, 2]}
    assert len(calls) == 1
    Steps(directory=tmp_path, key=["b"])("one", compute)
    assert len(calls) == 2
    (tmp_path / "one.json").write_text("{")
    Steps(directory=tmp_path, key=["b"])("one", compute)
    assert len(calls) == 3
    assert read_step(tmp_path / "one.json")["result"] == {"value": [1, 2]}
    with pytest.raises(InterpError, match="plain JSON"):
        Steps(directory=tmp_path, key=["a"])("two", lambda: {"x": object()})


def test_numbers_by_their_last_token(smollm):
    text = "equals 71. - 171 = 71 (not 71), -71, 7.1, 71.5 and 84-71"
    tokens = smollm.token_id(text)
    found = number_positions(smollm.strings(tokens), 71)
    strings = smollm.strings(tokens)
    ends = np.cumsum([len(piece) for piece in strings])
    assert [text[: ends[i]].rsplit(" ", 1)[-1] for i in found] == ["71", "71", "71"]
    with pytest.raises(InterpError, match="cuts it into"):
        require_single(smollm, "verification", ["verif", "ication!"])


def row_of(i, *, valid, attempt, problem, operands=3):
    return {"tokens": (i, 1, 2), "valid": valid, "attempt": attempt, "problems": problem,
            "operands": operands}  # fmt: skip


def samples_of(rows):
    return Samples(
        tokens=tuple(row["tokens"] for row in rows),
        **{
            name: np.array([row[name] for row in rows])
            for name in ("valid", "attempt", "problems", "operands")
        },
        written=np.zeros(len(rows), dtype=int),
        targets=((),) * len(rows),
        asked=((),) * len(rows),
    )


def test_balanced_samples_are_matched_pairs():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        attempt, operands = int(rng.integers(4)), int(rng.integers(3, 5))
        # Later attempts are valid more often: the confound.
        valid = bool(rng.random() < 0.1 + 0.2 * attempt)
        rows.append(row_of(i, valid=valid, attempt=attempt, problem=i // 3, operands=operands))
    samples = samples_of(rows)
    assert samples.attempt[samples.valid].mean() > samples.attempt[~samples.valid].mean() + 0.5
    found = samples.balanced(40, seed=1)
    assert found.valid.tolist() == [True] * 40 + [False] * 40
    for name in ("attempt", "operands"):
        column = getattr(found, name)
        assert (column[:40] == column[40:]).all()
    for side in (found.problems[:40], found.problems[40:]):
        assert len(set(side.tolist())) == 40
    with pytest.raises(InterpError, match="valid and .* invalid samples"):
        samples.balanced(300)


def test_results_of_another_run_are_not_mixed_in(tmp_path):
    first, second = (Steps(directory=tmp_path, key=[key]) for key in "ab")
    first("one", lambda: {"x": 1})
    first("two", lambda: {"x": 2})
    second("one", lambda: {"x": 3})
    assert read_results(tmp_path, second.of)[0] == {"one": {"x": 3}}
    assert read_results(tmp_path, first.of)[0] == {"two": {"x": 2}}


def test_a_step_is_computed_again_when_its_inputs_change(tmp_path):
    steps = Steps(directory=tmp_path, key=["a"])
    assert steps("sum", lambda: {"x": 1}, ["L0H1"]) == {"x": 1}
    assert steps("sum", lambda: {"x": 2}, ["L0H1"]) == {"x": 1}
    assert steps("sum", lambda: {"x": 2}, ["L0H2"]) == {"x": 2}


@dataclass(frozen=True, kw_only=True)
class Few:
    """Settings of the smallest study."""

    n: int = 3
    sizes: tuple[int, ...] = (1, 2)


def test_a_study_is_kept_opened_and_refused(family_models, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    kind = StudyKind(name="small", version=1, settings=Few, beside=("base",))
    model, base = family_models["llama"], family_models["gpt2"]

    def run(kind, settings, base=base, **more):
        study, step = begin(kind, model, base, settings=settings, **more)
        doubled = step("doubled", lambda: {"x": 2 * settings.n})
        step("pairs", lambda: {"y": [doubled["x"], settings.sizes]}, doubled)
        return study

    done = run(kind, Few())
    assert done.directory == tmp_path / "studies" / f"small-{study_key(kind, model, Few())}"
    assert done.results == {"doubled": {"x": 6}, "pairs": {"y": [6, [1, 2]]}}
    assert done.beside == {"base": base.name}
    assert open_study(kind, done.directory) == done
    assert run(kind, Few(), key=["more"]).directory != done.directory
    assert run(kind, Few(), base=None).beside == {"base": None}
    assert kept_studies(kind)[0].beside == {"base": None}
    (tmp_path / "studies" / "small-damaged").mkdir()
    (tmp_path / "studies" / "small-damaged" / "study.json").write_text("{}")
    assert len(kept_studies(kind)) == 2
    for other in (replace(kind, version=2), replace(kind, beside=("judge",))):
        with pytest.raises(InterpError, match="run the study first"):
            open_study(other, done.directory)
    ships = tmp_path / "shipped" / "small-it"
    monkeypatch.setattr("interp.studies.study.SHIPPED", ships.parent)
    shutil.copytree(done.directory, ships)
    assert [study.directory for study in kept_studies(kind)][2:] == [ships]
    assert kept_studies(kind)[2].made == str(date.today())
    with pytest.raises(ValueError, match="shorter"):
        begin(kind, model, settings=Few())
    (tmp_path / "report.md.j2").write_text('# A study\n\n{% include "run.md.j2" %}')
    report = study_report(tmp_path / "report.md.j2", done, figures=SimpleNamespace())
    text = " ".join(report.save(tmp_path / "r").read_text().split())
    assert f"Last run on {done.made}." in text
    assert "Settings: n 3, sizes (1, 2). 0 minutes" in text
