"""Patching: the example, the estimate and the exact values that replace it, units and paths."""

import json
import re
import threading

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair
from interp.engine import sweep
from interp.patching.path_spec import parse_receivers
from interp.tasks.saved import save_task
from interp.ui.patching import paths
from interp.ui.shared import cache, jobs
from interp.ui.shared.prompts import found
from tests.overview import test_parity as plain_hooks
from tests.pages import charts, named, numbers, opened, table_with, wait

PATCHING = "interp/ui/views/patching.py"
LINK = {"model": "toy-induction", "task": "toy-induction", "n": "12"}
TOY = ("toy-induction",)


def said(at: AppTest) -> str:
    """All text of the page."""
    parts = [*at.markdown, *at.caption, *at.warning, *at.info, *at.error, *at.title, *at.header]
    return "\n".join(part.value.replace("\\", "") for part in parts)


@pytest.fixture
def toy_task():
    model = interp.load_model(*TOY)
    return model, interp.load_task(*TOY, model, n=12)


@pytest.mark.long
def test_the_example_runs_at_one_click(smollm, monkeypatch) -> None:
    started = []
    monkeypatch.setattr("interp.load_model", lambda name, dtype: smollm)
    monkeypatch.setattr(
        jobs, "start", lambda key, work, counted="chunks": started.append((key, work))
    )
    at = opened(PATCHING)
    assert "What it does" in said(at)
    assert "What it does not show" in said(at)
    named(at.button, "Run the example").click().run()
    assert not at.exception
    assert not at.error
    (key, work), model = started[0], "smollm2-135m-instruct"
    assert (at.query_params["model"], at.query_params["n"]) == (model, "16")
    assert work.args[1].hash == interp.load_task("ioi", smollm, n=16).hash
    made = interp.patching.sweep.make_sweep(*work.args, interp.patching.spec.PatchSpec())
    assert key == interp.patching.activation.sweep_key(*work.args, made)


def test_the_estimate_comes_first_and_is_called_one(toy_task) -> None:
    model, task = toy_task
    at = opened(PATCHING, **LINK)
    assert "An estimate, not measured" in said(at)
    estimate = interp.attribution_patching(model, task.first(cache.ESTIMATED))
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(estimate.values, abs=1e-6)
    shown = table_with(at, "measured, of 12 prompts")
    assert set(shown["measured, of 12 prompts"]) == {0}
    assert shown["component"][0] == estimate.top(1, by="absolute")[0].label
    assert "1 is the whole gap" in said(at)


@pytest.mark.long
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_interventions_opens_on_the_pair_with_the_same_effect(loaded, direction) -> None:
    task = interp.load_task("ioi", loaded, n=4)
    scores = interp.activation_patching(loaded, task, direction=direction, unit="metric")
    link = {"model": loaded.name, "task": "ioi", "n": "4", "unit": "metric", "prompt": "2"}
    at = opened(PATCHING, **link, direction=direction, layer="23", head="3")
    named(at.button, "Try L23H3 on pair 2").click().run()
    assert not at.exception
    assert not at.error
    assert at.query_params["changes"] == "L23H3, patch, 1, all tokens"
    asked = found(at.query_params["asked"])
    pair = task.pairs[2]
    assert (asked.prompt, asked.foil) == (
        (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
    )
    given = {"answer": asked.answer, "wrong": asked.wrong, "foil": asked.foil, "draws": 2}
    made = interp.overview.try_changes(loaded, asked.prompt, ["L23H3, patch"], **given)
    effect = scores.effects[2, 23, 3] * (1 if direction == "denoise" else -1)
    assert made.changed - made.plain == pytest.approx(effect, abs=1e-3)


def test_pairs_of_token_ids_have_no_way_to_interventions(toy_task) -> None:
    model, task = toy_task

    def ids(text: str) -> tuple[int, ...]:
        return model.tokenize(text).tokens

    pairs = tuple(
        PromptPair(
            clean=ids(pair.clean),
            corrupted=ids(pair.corrupted),
            answers=ids(pair.answers[0])[-1:],
            wrong=ids(pair.wrong[0])[-1:],
        )
        for pair in task.pairs
    )
    kept = save_task(interp.Task(name="ids", pairs=pairs))
    interp.activation_patching(model, interp.load_task(kept.name, model, n=12))
    at = opened(PATCHING, **{**LINK, "task": kept.name}, layer="1", head="2")
    assert at.subheader[0].value == "L1H2"
    assert not [one for one in at.button if one.label.startswith("Try")]


def forecast(at: AppTest) -> str:
    """The estimated time of a run, as the page says it."""
    told = next(b.proto.body for b in at.get("html") if "estimated time" in b.proto.body)
    return re.sub(r"<[^>]+>", "\n", told).partition("estimated time")[2].split("\n\n")[1].strip()


@pytest.mark.parametrize("more", [{}, {"patched": "paths", "receivers": "L1H2.q"}])
@pytest.mark.long
def test_after_a_first_run_the_forecast_is_a_figure(more, monkeypatch) -> None:
    """The run is of another process, which keeps its speed; an open page takes note of it."""
    monkeypatch.setattr("interp.engine.cost.PACE", {})
    other = LINK | more | {"n": "8"}
    open_ = opened(PATCHING, **other)
    assert not forecast(open_).startswith("about")
    wait(opened(PATCHING, **LINK, **more), "Run", seconds=60)
    assert forecast(open_.run()).startswith("about")
    assert forecast(opened(PATCHING, **other)).startswith("about")


def test_a_page_does_not_wait_for_its_estimate(monkeypatch) -> None:
    shown, found = threading.Event(), interp.attribution_patching

    def late(*args, **options):
        assert shown.wait(60)
        return found(*args, **options)

    monkeypatch.setattr("interp.attribution_patching", late)
    monkeypatch.setattr(jobs, "AT_ONCE", 0.1)
    at = opened(PATCHING, **LINK)
    assert "Estimating by one gradient" in said(at)
    assert named(at.button, "Run")
    shown.set()
    monkeypatch.setattr(jobs, "AT_ONCE", 60.0)
    assert "An estimate, not measured" in said(at.run())


@pytest.mark.long
def test_a_newcomers_questions_are_answered_where_they_come_up(toy_task) -> None:
    before = said(opened(PATCHING, **LINK))
    for words in ("Which first?", "How many pairs?", "add some on Setup", "1 is the whole gap"):
        assert words in before
    assert "add some on Setup" not in said(opened(PATCHING, **LINK | {"n": "16"}))
    after = said(wait(opened(PATCHING, **LINK), "Run", seconds=100))
    for words in ("What next?", "Grey: no value", "**1** is the whole gap"):
        assert words in after
    raw = said(wait(opened(PATCHING, **LINK, unit="metric"), "Run", seconds=100))
    assert "**1** is one of logits" in raw


def test_in_the_unit_of_the_metric_nothing_is_divided_by_the_gap(toy_task) -> None:
    at = opened(PATCHING, **LINK, unit="metric")
    assert "A mean over prompts, in logits" in said(at)
    assert "the whole gap" not in said(at)
    assert not any("Big/" in block.value for block in at.latex)


def test_what_a_stopped_sweep_measured_replaces_the_estimate(toy_task, monkeypatch) -> None:
    model, task = toy_task
    monkeypatch.setattr(sweep, "CPU_TILE", 64)
    exact = interp.activation_patching(model, task, cache=False)
    done = [0]
    with pytest.raises(InterpError, match="stopped"):
        interp.activation_patching(
            model, task, progress=lambda now, n: done.append(now), cancelled=lambda: done[-1] > 3
        )
    at = opened(PATCHING, **LINK)
    counts = table_with(at, "measured, of 12 prompts")["measured, of 12 prompts"]
    assert 0 < counts.max() < 12
    assert "% measured" in said(at)
    estimate = interp.attribution_patching(model, task.first(cache.ESTIMATED), unit="metric")
    mixed, _ = interp.patching.unfinished_sweep(model, task).into(estimate)
    gap = float((exact.clean - exact.corrupted).mean())
    shown = numbers(charts(at)[0]["data"][0]["z"])
    assert shown == pytest.approx(mixed.effects.mean(0) / gap, abs=1e-6)
    assert abs(shown - estimate.values / gap).max() > 0
    assert "\u00b1" not in json.dumps(charts(at)[0], ensure_ascii=False)


def test_the_estimate_is_calibrated_on_the_run(toy_task) -> None:
    model, task = toy_task
    at = wait(opened(PATCHING, **LINK), "Run", seconds=100)
    named(at.toggle, "Compare with the estimate").set_value(True).run()
    exact = interp.activation_patching(model, task)
    found = interp.patching.calibrate(
        interp.attribution_patching(model, task.first(cache.ESTIMATED)), exact
    )
    assert f"correlation with the exact effects **{found.correlation:.3f}**" in said(at)
    assert f"slope **{found.slope:.3f}**" in said(at)
    assert f"On the first {cache.ESTIMATED} pairs, over 8 cells" in said(at)


def test_a_small_gap_offers_the_metrics_own_unit() -> None:
    """Two words change places that the model does not read."""
    model = interp.load_model(*TOY)
    pairs = []
    for pair in interp.load_task(*TOY, model).pairs[:6]:
        words = str(pair.clean).split(" ")
        read = {words[0], words[-1], *pair.answers, *pair.wrong}
        first, second = [i for i, word in enumerate(words) if word not in read][:2]
        words[first], words[second] = words[second], words[first]
        pairs.append(interp.PromptPair(
            clean=pair.clean, corrupted=" ".join(words), answers=pair.answers, wrong=pair.wrong
        ))  # fmt: skip
    task = interp.tasks.save_task(interp.Task(name="own", pairs=tuple(pairs)))
    at = opened(PATCHING, model="toy-induction", task=task.name, n="6")
    assert "The gap is small" in said(at)
    named(at.button, "Measure in logits").click().run()
    assert at.query_params["unit"] == "metric"
    at = wait(at, "Run", seconds=100)
    assert "in logits" in said(at)
    scores = interp.activation_patching(model, task, unit="metric")
    shown = at.dataframe[0].value
    assert list(shown["effect"]) == [found.value for found in scores.top(len(shown))]


def test_a_negative_gap_is_said_before_and_after_the_run() -> None:
    """Answers and wrong answers change places: a positive fraction works against the answers."""
    model = interp.load_model(*TOY)
    pairs = tuple(
        interp.PromptPair(
            clean=pair.clean, corrupted=pair.corrupted, answers=pair.wrong, wrong=pair.answers
        )
        for pair in interp.load_task(*TOY, model, n=12).pairs
    )
    task = interp.tasks.save_task(interp.Task(name="own", pairs=pairs))
    at = opened(PATCHING, model="toy-induction", task=task.name, n="12")
    assert "A negative gap" in said(at)
    assert "A negative gap" in said(wait(at, "Run", seconds=100))
    assert "A negative gap" not in said(opened(PATCHING, **LINK))


@pytest.mark.long
def test_cells_patched_together_are_measured_and_a_fresh_visit_shows_the_same(toy_task) -> None:
    model, task = toy_task
    at = wait(opened(PATCHING, **LINK, layer="1", head="2"), "Run", seconds=100)
    named(at.button, "Add L1H2").click().run()
    assert not [one for one in at.button if one.label == "Measure together"]
    named(at.multiselect, "Patched together").set_value(["L1H2", "L0H1"]).run()
    named(at.number_input, "Random sets").set_value(5).run()
    named(at.number_input, "Their seed").set_value(3).run()
    at = wait(at, "Measure together", seconds=100)
    found = interp.patching.joint_patching(model, task, ["L0H1", "L1H2"], draws=5, seed=3)
    link = dict(at.query_params)
    for visit in (at, opened(PATCHING, **link)):
        shown = " ".join(block.proto.body for block in visit.get("html"))
        assert f">{found.effect.mean:.3f}<" in shown
        assert f"{found.effect.low:.3f} to {found.effect.high:.3f}" in shown
        assert found.null is not None
        assert found.null.beside in shown
        assert str(found.flips) in said(visit)
        scores = interp.activation_patching(model, task)
        alone = sum(scores.estimate(label).mean for label in ("L0H1", "L1H2"))
        assert f">{alone:.3f}<" in shown
    code = next(block.value for block in at.code if "joint_patching" in block.value)
    exec(code, space := {})
    assert space["joint"].effect == found.effect
    assert space["joint"].null == found.null


@pytest.mark.long
def test_together_is_offered_where_it_can_be_measured(toy_task) -> None:
    offered = "Patched together"
    for link, there in (({}, True), ({"by": "position"}, False), ({"source": "zero"}, False)):
        at = wait(opened(PATCHING, **LINK | link), "Run", seconds=100)
        assert any(box.label == offered for box in at.multiselect) == there
    at = opened(PATCHING, **LINK, together=["L9H9", "L1H2"])
    assert "together=L9H9" in said(at)
    assert at.session_state["selection"].together == ("L1H2",)


@pytest.mark.long
def test_how_many_are_listed_and_tested_is_in_the_link_and_the_python(toy_task, capsys) -> None:
    at = wait(opened(PATCHING, **LINK), "Run", seconds=100)
    named(at.number_input, "How many").set_value(3).run()
    again = opened(PATCHING, **dict(at.query_params))
    assert len(table_with(again, "rank")) == 3
    exec(again.code[0].value, space := {})
    test = space["scores"].null(3)
    assert str(test) in capsys.readouterr().out
    assert str(test.flips) in said(again)


def test_one_pair_is_shown_without_an_interval(toy_task) -> None:
    at = wait(opened(PATCHING, **LINK | {"n": "1"}, layer="1", head="2"), "Run", seconds=100)
    assert set(table_with(at, "rank")["95 % interval"]) == {"none (one prompt)"}
    assert "95 % interval none (one prompt)" in said(at)
    assert "inf" not in said(at).split()


@pytest.mark.long
def test_paths_into_a_head_are_measured_as_in_python(toy_task) -> None:
    model, task = toy_task
    at = opened(PATCHING, **LINK, patched="paths")
    assert "Click heads" in said(at)
    assert "No estimate for paths" not in said(at)
    named(at.multiselect, "Receivers").set_value(["L1H2.q", "L1KV1.k"]).run()
    assert at.query_params["receivers"] == ["L1H2.q", "L1KV1.k"]
    assert "No estimate for paths" in said(at)
    at = wait(at, "Run", seconds=100)
    scores = interp.path_patching(model, task, receivers=["L1H2.q", "L1KV1.k"], direction="denoise")
    shown = at.dataframe[0].value
    assert list(shown["effect"]) == [found.value for found in scores.top(len(shown))]
    assert "path_patching(model, task, receivers=['L1H2.q', 'L1KV1.k']" in at.code[0].value
    named(at.number_input, "Layer").set_value(0).run()
    named(at.number_input, "Head").set_value(1).run()
    assert at.subheader[0].value == "L0H1"
    named(at.button, "keys").click().run()
    assert at.query_params["receivers"] == "L0KV0.k"


def test_a_receiver_that_does_not_exist_is_ignored_with_a_word() -> None:
    at = opened(PATCHING, **LINK, patched="paths", receivers="L9H9.q")
    assert "receivers=L9H9.q" in said(at)
    assert "Click heads" in said(at)


def test_a_click_adds_a_heads_input_and_takes_it_away(smollm) -> None:
    for site, label in (("q", "L20H5.q"), ("k", "L20KV1.k"), ("v", "L20KV1.v")):
        assert paths.receiver(smollm, 20, 5, site) == label
        parse_receivers(smollm, [label])
    at = AppTest.from_string(
        "from interp.ui.patching.paths import _toggle\nfrom interp.ui.shared.state import current\n"
        "_toggle('L1H2.q'); _toggle('L0H1.q'); _toggle('L1H2.q')\n"
        "import streamlit as st; st.text(current().receivers)"
    ).run()
    assert at.text[0].value == "('L0H1.q',)"


def test_a_model_without_the_fast_engine_runs_without_an_estimate(monkeypatch) -> None:
    from dataclasses import replace

    toy = replace(interp.load_model(*TOY), decoder=None, engine_reason="no test engine")
    monkeypatch.setattr("interp.load_model", lambda name, dtype: toy)
    at = opened(PATCHING, **LINK)
    assert not at.error
    assert "No estimate before the run: no test engine" in said(at)
    assert np.any([button.label == "Run" for button in at.button])


@pytest.mark.long
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_number_of_the_map_is_that_of_plain_hooks(loaded, direction) -> None:
    """The strongest head, on every pair, by Hugging Face Transformers and one hook."""
    task = interp.load_task("ioi", loaded, n=2)
    interp.activation_patching(loaded, task, direction=direction)  # kept, so the page shows it
    link = {"model": "smollm2-135m-instruct", "task": "ioi", "n": "2", "direction": direction}
    shown = table_with(opened(PATCHING, **link), "rank")
    label, effect = shown["component"][0], shown["effect"][0]
    layer, head = map(int, label[1:].split("H"))
    gained, gaps, encoded = [], [], task.encode(loaded)
    for i in range(len(task)):
        rows = encoded.clean[i], encoded.corrupted[i]
        right, wrong = (
            int(side[i, 0]) for side in (encoded.targets.answers, encoded.targets.wrong)
        )
        clean, corrupted = (plain_hooks.run(loaded.hf_model, row) for row in rows)
        ends = [float(one.logits[-1, right] - one.logits[-1, wrong]) for one in (clean, corrupted)]
        base, other = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        row = rows[1] if direction == "denoise" else rows[0]
        z = other.z[layer][:, head]
        logits = plain_hooks.patched(loaded.hf_model, row, layer, head, z)
        moved = float(logits[right] - logits[wrong]) - float(
            base.logits[-1, right] - base.logits[-1, wrong]
        )
        gained.append(moved if direction == "denoise" else -moved)
        gaps.append(ends[0] - ends[1])
    assert effect == pytest.approx(np.mean(gained) / np.mean(gaps), abs=1e-3)
    assert abs(effect) > 0.05


@pytest.mark.long
def test_answers_of_several_tokens_are_swept_whole_and_a_head_is_opened(toy_task) -> None:
    model, task = toy_task
    pairs = tuple(
        PromptPair(clean=one.clean, corrupted=one.corrupted, answers=(f" {a} {w}",),
                   wrong=(f" {w} {a}",))
        for one in task.pairs[:4] for (a,), (w,) in [(one.answers, one.wrong)]
    )  # fmt: skip
    own = save_task(interp.Task(name="own", pairs=pairs), "long")
    link = {"model": model.name, "task": own.name, "n": "4"}
    at = opened(PATCHING, **link)
    a, w = task.pairs[0].answers[0], task.pairs[0].wrong[0]
    words = f"Answers are scored whole, by log_prob_diff: 2 tokens each, such as {a} | {w} (2)"
    assert words in said(at).replace("*", "")
    at = wait(at, "Run", seconds=200)
    scores = interp.activation_patching(model, interp.load_task(own.name, model, n=4))
    assert scores.metric == "log_prob_diff"
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(scores.values, abs=1e-6)
    named(at.number_input, "Layer").set_value(1).run()
    named(at.number_input, "Head").set_value(2).run()
    assert not at.exception
    assert not at.error
    assert f"effect **{scores.estimate('L1H2').mean:.3f}**" in said(at)
    assert "No direct logit attribution" in said(at)


def test_single_answers_are_not_said_to_be_scored_whole(toy_task) -> None:
    assert "scored whole" not in said(opened(PATCHING, **LINK))
