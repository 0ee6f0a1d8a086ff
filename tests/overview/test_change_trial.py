"""Trials of changes: every number equals that of a hooked run of the whole model."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.overview.change_trial import try_changes
from interp.overview.planned_changes import PlannedChange
from interp.results.direction import keep_direction, kept_directions, save_directions
from interp.runs import kinds
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.steering.candidates import mean_difference

PROMPT = (5, 9, 21, 33, 9, 40)
FOIL = (5, 11, 21, 30, 9, 41)


def odds(model, trial, change, prompt=PROMPT) -> float:
    """The logit difference by one hooked pass over the whole model."""
    with intervene(model, change) if change is not None else nullcontext():
        logits = model.last_logits([prompt])[0].double()
    return float(logits[trial.answer] - logits[trial.wrong])


def written(model, row: PlannedChange):
    """A row of strength 1 at all tokens, by the package's own kinds of change."""
    at, texts = row.component, [PROMPT, FOIL]
    values = kinds.component_values(model, row.part, texts)
    along = values[0][-1] - values[1][-1]
    return {
        "zero": lambda: kinds.zero(at),
        "scale": lambda: kinds.scale(at, row.strength),
        "mean": lambda: kinds.mean(model, at, texts),
        "patch": lambda: kinds.patch(model, at, [FOIL]),
        "steer": lambda: kinds.add(at, along, coefficient=row.strength),
        "project out": lambda: kinds.project_out(at, along),
    }[row.how]()


HOWS = ["zero", "mean", "patch", "scale, 0.3", "steer, -1.5", "project out"]


@pytest.mark.parametrize("site", ["L1H2", "L1N7", "L1.mlp_out", "L0.resid_post"])
@pytest.mark.parametrize("how", HOWS)
def test_every_kind_of_change_equals_a_hooked_run(family_models, site, how) -> None:
    model = family_models["llama"]
    text = f"{site}, {how}"
    trial = try_changes(model, PROMPT, [text], foil=FOIL, draws=2)
    assert trial.plain == pytest.approx(odds(model, trial, None), abs=1e-5)
    change = written(model, trial.changes[0])
    assert trial.changed == pytest.approx(odds(model, trial, change), abs=1e-5)
    if not trial.changes[0].along:
        for rows, value in zip(trial.random, trial.drawn, strict=True):
            assert value == pytest.approx(odds(model, trial, written(model, rows[0])), abs=1e-5)


def test_changes_act_together_in_order_and_those_off_do_not(family_models) -> None:
    model = family_models["qwen3"]
    rows = ["L0H1, scale, 3", "L0H1, steer, 2", "L2.mlp_out, zero, 1, all tokens, off"]
    trial = try_changes(model, PROMPT, rows, foil=FOIL, draws=2)
    both = written(model, trial.changes[0]) + written(model, trial.changes[1])
    assert len(trial.changes) == 2
    assert trial.changed == pytest.approx(odds(model, trial, both), abs=1e-5)


def test_when_and_how_strongly(family_models) -> None:
    model = family_models["llama"]
    every = try_changes(model, PROMPT, ["L1H2"])
    last = try_changes(model, PROMPT, ["L1H2, zero, 1, last token"])
    at_last = kinds.zero("L1H2", positions="last")
    assert last.changed == pytest.approx(odds(model, last, at_last), abs=1e-5)
    assert last.changed != pytest.approx(every.changed, abs=1e-4)
    later = try_changes(model, PROMPT, ["L1H2, zero, 1, generated tokens"])
    assert later.changed == pytest.approx(later.plain, abs=1e-6)
    half = try_changes(model, PROMPT, ["L1H2, zero, 0.5"])
    assert half.changed == pytest.approx(odds(model, half, kinds.scale("L1H2", 0.5)), abs=1e-5)


def test_a_dose_scales_the_change(family_models) -> None:
    model = family_models["llama"]
    trial = try_changes(model, PROMPT, ["L1H2", "L0.mlp_out, scale, 0.5"], draws=3)
    curve = trial.doses([0, 1, 2])
    twice = kinds.scale("L1H2", -1.0) + kinds.scale("L0.mlp_out", 0.0)
    expected = [trial.plain, trial.changed, odds(model, trial, twice)]
    assert curve.changed == pytest.approx(expected, abs=1e-5)
    assert curve.random.shape == (3, 3)
    assert curve.random[:, 1] == pytest.approx(trial.drawn, abs=1e-5)
    doubled = try_changes(model, PROMPT, list(trial.changes), draws=3, dose=2)
    assert doubled.changed == pytest.approx(expected[2], abs=1e-5)
    assert curve.band[0] == pytest.approx(np.quantile(curve.random, 0.025, axis=0))


def test_random_directions_have_the_length_of_the_difference(family_models) -> None:
    model = family_models["llama"]
    trial = try_changes(model, PROMPT, ["L0.resid_post, steer"], foil=FOIL, draws=3)
    values = kinds.component_values(model, Component(0, "resid_post"), [PROMPT, FOIL])
    length = float((values[0][-1] - values[1][-1]).norm())
    for change, value in zip(trial._made(1.0)[1:], trial.drawn, strict=True):
        moved = []
        x = torch.zeros(len(PROMPT), model.d_model)
        edit = change.edits[0]
        tokens = torch.arange(len(PROMPT))
        moved = edit.value(x, type("T", (), {"positions": tokens})())
        assert moved.norm(dim=1) == pytest.approx(length, rel=1e-4)
        assert value == pytest.approx(
            odds(model, trial, kinds.add("L0.resid_post", moved[0])), abs=1e-5
        )
    assert len(set(trial.drawn.round(6))) == 3


@pytest.mark.parametrize("how", ["steer, -2", "project out"])
def test_stricter_directions_are_differences_of_tokens_and_of_the_answers(
    family_models, how
) -> None:
    model = family_models["llama"]
    at, strength = "L0.resid_post", -2.0 if how.startswith("steer") else 1.0
    trial = try_changes(model, PROMPT, [f"{at}, {how}"], foil=FOIL, draws=4)
    values = kinds.component_values(model, Component(0, "resid_post"), [PROMPT, FOIL])
    length = (values[0][-1] - values[1][-1]).norm()
    rows = torch.cat([x[1:] for x in values]).double()
    pairs = [a - b for a in rows for b in rows if not torch.equal(a, b)]
    both = model.decoder.unembed[[trial.answer, trial.wrong]].double()
    aimed = (both[0] - both[1]) * (-1 if strength < 0 else 1)

    def effect(direction) -> float:
        d = (direction / direction.norm() * length).float()
        change = (
            kinds.add(at, d, coefficient=strength) if strength < 0 else kinds.project_out(at, d)
        )
        return odds(model, trial, change)

    known = np.array([effect(pair) for pair in pairs])
    assert trial.harder is not None
    assert all(np.abs(known - value).min() < 1e-4 for value in trial.harder)
    assert len(set(trial.harder.round(5))) > 1
    assert trial.towards == pytest.approx(effect(aimed), abs=1e-4)
    assert strength > 0 or trial.towards > trial.plain
    assert trial.to_dict()["along_the_answer"] == trial.towards


def test_a_kept_direction_needs_no_foil(family_models, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model = family_models["llama"]
    mood = mean_difference(model, [PROMPT, PROMPT[1:]], [FOIL], layer=1)
    keep_direction("mood", mood)
    save_directions(tmp_path / "studies" / "refusal-ab" / "directions", {"over-refusal": mood})
    keep_direction("other", replace(mood, model_hash="of another model"))
    assert set(kept_directions(model)) == {"mood", "refusal-ab/over-refusal"}
    rows = ["L1.resid_post, steer, 2, all tokens, mood", "L2.mlp_out, project out, 1, last token"]
    for how in ("steer, 2", "project out, 1"):
        text = f"L1.resid_post, {how}, all tokens, refusal-ab/over-refusal"
        assert str(PlannedChange.parse(text)) == text
        trial = try_changes(model, PROMPT, [text], draws=3)
        vector = mood.vector.float()
        change = kinds.add("L1.resid_post", vector, coefficient=2.0)
        if "out" in how:
            change = kinds.project_out("L1.resid_post", vector)
        assert trial.changed == pytest.approx(odds(model, trial, change), abs=1e-5)
        assert trial.harder is not None
        assert len(trial.harder) == 3
    with pytest.raises(InterpError, match="there is no foil"):
        try_changes(model, PROMPT, rows)
    with pytest.raises(InterpError, match="direction kept of .* 'moot'"):
        try_changes(model, PROMPT, [rows[0].replace("mood", "moot")])
    for text in ("L1H2, steer, 2, all tokens, mood", "L1.resid_post, zero, 1, all tokens, mood"):
        with pytest.raises(InterpError, match="fits only whole sites"):
            PlannedChange.parse(text)
    with pytest.raises(InterpError, match="not a name"):
        keep_direction("../mood", mood)


def test_changes_along_no_direction_have_no_stricter_one(family_models) -> None:
    trial = try_changes(family_models["llama"], PROMPT, ["L1H2", "L1H2, steer"], foil=FOIL, draws=2)
    assert trial.harder is None
    assert trial.towards is None


def at_tokens(change, when: str, length: int):
    """A change in force at the tokens of a text of this length that `when` names; None for none."""
    if when == "all tokens":
        return change
    if when == "last token":
        return change.at(len(PROMPT) - 1)
    return change.at(slice(len(PROMPT) - length, None)) if length > len(PROMPT) else None


@pytest.mark.parametrize("when", ["all tokens", "last token", "generated tokens"])
def test_texts_equal_running_the_whole_text_for_each_token(family_models, when) -> None:
    model = family_models["llama"]
    rows = [f"L1H0, steer, 20, {when}", f"L0H1, scale, -9, {when}"]
    trial = try_changes(model, PROMPT, rows, foil=FOIL, draws=1)
    made = trial.texts(6)
    changed = []
    for name, rows in (
        ("plain", ()),
        ("changed", trial.changes),
        ("matched random", trial.random[0]),
    ):
        text = list(PROMPT)
        for _ in range(6):
            both = [at_tokens(written(model, row), when, len(text)) for row in rows]
            with intervene(model, [one for one in both if one is not None]):
                text.append(int(model.last_logits([tuple(text)])[0].argmax()))
        expected = text[len(PROMPT) :]
        assert list(made[name].tokens) == expected[: len(made[name].tokens)]
        changed.append(made[name].tokens)
    assert changed[0] != changed[1]


@pytest.mark.filterwarnings("ignore:.*shared by query heads")
def test_a_site_that_the_engine_does_not_change_gives_the_same_numbers(family_models) -> None:
    model = family_models["llama"]
    trial = try_changes(model, PROMPT, ["L1H2.q, zero", "L1KV0.k, scale, 0.5"], draws=2)
    both = kinds.zero("L1H2.q") + kinds.scale("L1KV0.k", 0.5)
    assert trial.changed == pytest.approx(odds(model, trial, both), abs=1e-5)
    assert trial.texts(3)["plain"].tokens == generate(model, [PROMPT], max_new_tokens=3)[0].tokens


def test_the_likeliest_tokens_of_both_runs_are_shown(family_models) -> None:
    model = family_models["llama"]
    trial = try_changes(model, PROMPT, ["L0.mlp_out"], draws=3)
    shown = {token.token: token for token in trial.tokens}
    for change, name in ((None, "plain"), (kinds.zero("L0.mlp_out"), "changed")):
        with intervene(model, change or []):
            likely = model.last_logits([PROMPT])[0].softmax(-1)
        best = int(likely.argmax())
        assert getattr(shown[best], name) == pytest.approx(float(likely[best]), abs=1e-5)
    plain = [token.plain for token in trial.tokens]
    assert plain == sorted(plain, reverse=True)
    told = json.loads(json.dumps(trial.to_dict()))
    assert told["changed"] == trial.changed
    assert len(told["random"]) == len(trial.random)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "switch one on"),
        (["L1H2, zero, 1, all tokens, off"], {}, "switch one on"),
        (["L9H0"], {}, "layer"),
        (["L1H99"], {}, "head"),
        (["L1H2, patch"], {}, "give a foil"),
        (["L1H2, steer"], {}, "give a foil"),
        (["L1H2, patch"], {"foil": FOIL[:4]}, "as many tokens"),
        (["L1H2, patch, 1, generated tokens"], {"foil": FOIL}, "generated"),
        (["L1H2"], {"answer": 3, "wrong": 3}, "two different tokens"),
        (["L1H2"], {"draws": 0}, "random changes"),
    ],
)
def test_what_does_not_fit_is_refused(family_models, rows, options, words) -> None:
    with pytest.raises(InterpError, match=words):
        try_changes(family_models["llama"], PROMPT, rows, **options)
