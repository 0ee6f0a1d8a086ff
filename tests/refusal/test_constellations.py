"""Constellations on planted states: every centroid, distance, layer and winner is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.chat_prompts import ChatFormat
from interp.core.errors import InterpError
from interp.models.loading import load_model
from interp.refusal.constellations import (
    NOTEBOOK_GATE,
    alignment,
    best_layers,
    effectiveness,
    identify,
    make_bank,
    notebook_score,
    potential,
)
from interp.refusal.judging import JudgedReplies
from interp.refusal.task_steering import (
    NOTEBOOK,
    PUBLISHED,
    TaskSteering,
    calibrate_gate,
    plan_steering,
    steer_task,
)
from interp.refusal.trajectories import Reading, Trajectories, classes_of, read_trajectories
from interp.runs.capture import run_with_cache
from interp.steering.runs import run_steered
from interp.tasks.registry import load_task

D, CENTRE, SPREAD = 8, 10.0, 0.5
GAINS = np.array([0.0, 1.0, 3.0, 2.0])
"""How far answered and refused rows are from their task's centre along the axis, by layer."""

TASKS = ("translate", "sentiment", "rephrase")
READING = Reading(model_hash="m", site="resid_post", normalise="none")


def planted(rows, reading=READING, prefix="r"):
    """States of (task, side, wobble): centre_t - side * gain * axis + wobble * spread * other.

    side +1 is the target's centroid, -1 the refusal's, 0 the middle.
    """
    states = np.zeros((len(rows), len(GAINS), D))
    for i, (task, side, wobble) in enumerate(rows):
        states[i, :, TASKS.index(task)] = CENTRE
        states[i, :, 5] = -side * GAINS
        states[i, :, 6] = wobble * SPREAD
    kinds = {1: "target", -1: "refusal"}
    return Trajectories(
        states=states,
        scale=np.ones((*states.shape[:2], 1)),
        rows=tuple(f"{prefix}{i}" for i in range(len(rows))),
        tasks=tuple(task for task, _, _ in rows),
        classes=tuple(kinds.get(side, "other") for _, side, _ in rows),
        layers=tuple(range(len(GAINS))),
        reading=reading,
    )


@pytest.fixture
def world():
    return planted([(t, side, w) for t in TASKS for side in (1, -1) for w in (1, -1, 1, -1)])


@pytest.fixture
def bank(world):
    return make_bank(world)


def test_bank_by_hand(bank):
    assert bank.tasks == TASKS
    assert bank.counts.tolist() == [[4, 4]] * 3
    axis = np.eye(D)[5]
    np.testing.assert_allclose(bank.vectors, np.tile(-2 * GAINS[:, None] * axis, (3, 1, 1)))
    np.testing.assert_allclose(bank.spread, SPREAD)
    np.testing.assert_allclose(effectiveness(bank, epsilon=0), [2 * GAINS / (2 * SPREAD)] * 3)
    assert best_layers(effectiveness(bank), 2) == [[2, 3]] * 3
    # Half of the pairs have the same wobble, half differ by twice the spread.
    cross = (2 * GAINS + np.hypot(2 * GAINS, 2 * SPREAD)) / 2
    np.testing.assert_allclose(bank.cross, [cross] * 3)
    assert any("layer 0 holds" in notice for notice in bank.notices) is False
    assert len(bank.to_dataframe()) == 12


def test_notebook_score_rewards_overlap(bank):
    """At layer 0 the classes coincide, and the released score ranks it first."""
    distance = 2 * GAINS[1:]
    expected = 0.3 * distance / SPREAD + 0.5 * distance + 0.2 * bank.cross[0, 1:] / distance
    np.testing.assert_allclose(notebook_score(bank)[0, 1:], expected, rtol=1e-6)
    assert notebook_score(bank)[0].argmax() == 0
    assert effectiveness(bank)[0].argmax() == 2


def test_missing_classes_are_explicit(world):
    few = world[[i for i, (t, c) in enumerate(zip(world.tasks, world.classes, strict=True))
                 if (t, c) != ("rephrase", "refusal")]]  # fmt: skip
    bank = make_bank(few)
    assert bank.whole.tolist() == [True, True, False]
    assert np.isnan(bank.centroids[2, 1]).all()
    assert np.isnan(effectiveness(bank)[2]).all()
    assert best_layers(effectiveness(bank), 3)[2] == []
    assert bank.notices == ("task rephrase has 0 refusal rows, fewer than 2",)
    ledger = plan_steering(planted([("rephrase", -1, 0)], prefix="e"), bank)
    assert ledger.skipped[0].startswith("class missing")
    assert "not tested" in str(ledger)
    still = make_bank(planted([("translate", 1, 0), ("translate", -1, 0)] * 2))
    assert "layer 0 has the same state in every row: its vectors are zero" in still.notices
    assert "only one task: the task of a prompt cannot be identified" in still.notices
    found = identify(planted([("translate", 1, 0)]).states, still)
    assert np.isnan(found.margin).all()


@pytest.mark.parametrize("centre", ["task", "target", "refusal", "nearest"])
@pytest.mark.parametrize("over", ["max", "mean"])
@pytest.mark.parametrize("stored", [2, None])
def test_identify_against_loops(bank, centre, over, stored):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(6, len(GAINS), D)) + 3
    found = identify(states, bank, centre=centre, over_layers=over, stored=stored)
    chosen = best_layers(effectiveness(bank), stored or 4)
    for i in range(6):
        scores = []
        for t in range(3):
            centres = {"target": bank.centroids[t, 0], "refusal": bank.centroids[t, 1]}
            centres["task"] = (centres["target"] + centres["refusal"]) / 2
            used = ("target", "refusal") if centre == "nearest" else (centre,)
            cosines = [
                max(
                    float(states[i, k] @ centres[name][k])
                    / (np.linalg.norm(states[i, k]) * np.linalg.norm(centres[name][k]))
                    for name in used
                )
                for k in chosen[t]
            ]
            scores.append(max(cosines) if over == "max" else sum(cosines) / len(cosines))
        np.testing.assert_allclose(found.scores[i], scores)
        assert found.best[i] == int(np.argmax(scores))
        assert found.margin[i] == pytest.approx(sorted(scores)[-1] - sorted(scores)[-2])


def test_a_task_without_a_class_is_told_at_the_layers_of_the_others(world):
    few = world[[i for i, (task, kind) in enumerate(zip(world.tasks, world.classes, strict=True))
                 if (task, kind) != ("rephrase", "refusal")]]  # fmt: skip
    bank = make_bank(few)
    states = np.random.default_rng(0).normal(size=(5, len(GAINS), D)) + 3
    own = best_layers(effectiveness(bank), 1)
    union = sorted({*own[0], *own[1]})
    assert own[2] == []
    assert len(union) < len(GAINS)
    found = identify(states, bank, stored=1)
    mean = bank.centroids[2, 0]
    cosines = (states * mean).sum(-1) / (
        np.linalg.norm(states, axis=-1) * np.linalg.norm(mean, axis=-1)
    )
    np.testing.assert_allclose(found.scores[:, 2], cosines[:, union].max(1))


def test_planted_tasks_are_found(bank):
    test = planted([(t, side, 0.3) for t in TASKS for side in (1, -1, 0)], prefix="e")
    assert identify(test.states, bank).names == test.tasks
    assert identify(test.states, bank, **NOTEBOOK_GATE).names == test.tasks
    soft = identify(test.states, bank, likeness="softmax", temperature=0.1)
    assert soft.names == test.tasks
    np.testing.assert_allclose(soft.scores.sum(1), 1)
    with pytest.raises(InterpError, match="read the bank's layers"):
        identify(test.states[:, :2], bank)


def test_potential_and_alignment_by_hand(bank):
    states = planted([("translate", side, 0) for side in (1, -1, 0, 0.5)]).states
    task = np.zeros(4, dtype=int)
    found = potential(states, bank, task)[:, 1:]
    np.testing.assert_allclose(found[0], 0, atol=1e-12)
    assert (found[1] > 1e6).all()
    np.testing.assert_allclose(found[2:], [[1] * 3, [1 / 3] * 3], rtol=1e-6)
    close = alignment(states, bank, task, "distance")[:, 1:]
    np.testing.assert_allclose(close, [[1] * 3, [0] * 3, [0.5] * 3, [0.75] * 3], atol=1e-12)
    assert (alignment(states, bank, task, "none") == 0).all()
    cosine = alignment(states, bank, task, "cosine")
    np.testing.assert_allclose(cosine[0], 1)
    assert (np.diff(cosine[[1, 2, 3, 0]][:, 2]) > 0).all()


def test_plan_by_hand(bank):
    """One refused prompt half-way up: layers by Pot, strengths by the formula, the shift exact."""
    test = planted([("sentiment", -0.5, 0), ("sentiment", 1, 0)], prefix="e")
    test.states[0, 1:, 5] = [0.8 * 1, 0.5 * 3, 0.2 * 2]  # Pot 9, 3 and 1.5
    options = TaskSteering(strength=2, n_layers=2, depth="linear", threshold=0.5)
    ledger = plan_steering(test, bank, options)
    found = ledger.identified
    assert found.names == ("sentiment", "sentiment")
    assert ledger.layers[0] == (1, 2)
    aligned = {1: 0.1, 2: 0.25}
    expected = [2 * (1 - aligned[k]) * found.confidence[0] * (k + 1) / 4 for k in (1, 2)]
    np.testing.assert_allclose(ledger.strengths[0], expected)
    for layer, strength in zip((1, 2), expected, strict=True):
        np.testing.assert_allclose(ledger.shifts[layer][0], -strength * np.eye(D)[5], atol=1e-12)
    # A prompt at its target's centroid has nowhere to go.
    assert ledger.layers[1] == ()
    assert ledger.skipped[1].startswith("no layer to steer")
    gap = plan_steering(test, bank, TaskSteering(move="gap", alignment="none", threshold=0.5))
    np.testing.assert_allclose(
        gap.shifts[2][0], found.confidence[0] * bank.vectors[1, 2], atol=1e-12
    )


def test_units_carry_the_shift_to_the_stream(bank):
    test = planted([("sentiment", -1, 0)], prefix="e")
    large = Trajectories(**{**vars(test), "scale": np.full((1, 4, 1), 7.0)})
    one, other = (plan_steering(t, bank, PUBLISHED) for t in (test, large))
    assert one.shifts
    for layer, shift in one.shifts.items():
        np.testing.assert_allclose(other.shifts[layer], 7 * shift)


def test_notebook_options(bank):
    """Static layers, and an offset to the target centroid by depth; alignment is not looked at."""
    ledger = plan_steering(planted([("translate", -1, 0)], prefix="e"), bank, NOTEBOOK)
    assert set(ledger.layers[0]) == {1, 2, 3}  # layer 0 ranks first, but nothing differs there
    # m is 0.5 up to 10/32 of the depth, 1 up to 20/32, 1.5 above.
    for layer, factor in ((1, 0.5), (2, 1.0), (3, 1.5)):
        expected = factor * bank.vectors[0, layer]
        np.testing.assert_allclose(ledger.shifts[layer][0], expected, atol=1e-12)


def test_gate_reasons_and_counts(bank):
    """A prompt of a task that is not listed, one of an unknown task, and a wrong one."""
    rows = [("translate", -1, 0), ("rephrase", -1, 0), ("sentiment", -1, 0)]
    test = planted(rows, prefix="e")
    test.states[2] = 1.0
    fooled = Trajectories(**{**vars(test), "tasks": ("sentiment", "rephrase", "sentiment")})
    ledger = plan_steering(fooled, bank, TaskSteering(tasks=("translate", "sentiment")))
    assert ledger.steered.tolist() == [True, False, False]
    assert ledger.wrong_task.tolist() == [True, False, False]
    assert ledger.skipped[1] == "task not to be steered: rephrase"
    assert ledger.skipped[2].startswith("gated out: confidence")
    assert str(ledger) == (
        "1 of 3 steered, 1 by a wrong task; 1 task not to be steered; 1 gated out"
    )
    assert ledger.to_dataframe().skipped.tolist() == list(ledger.skipped)


def test_calibration_against_loops(bank):
    rng = np.random.default_rng(1)
    rows = [(TASKS[i % 3], -1, 0) for i in range(60)]
    select = planted(rows, prefix="s")
    select.states[:] += rng.normal(scale=6, size=select.states.shape)
    harmful = rng.random(60) < 0.3
    options = TaskSteering(tasks=("translate", "sentiment"))
    curve = calibrate_gate(bank, select, harmful=harmful, options=options)
    for k in (0, 20, -1):
        ledger = plan_steering(
            select, bank, TaskSteering(tasks=options.tasks, threshold=curve.thresholds[k])
        )
        right = ledger.steered & ~ledger.wrong_task & ~harmful
        assert curve.covered[k] == right.sum()
        assert curve.wrong[k] == (ledger.wrong_task & ~harmful).sum()
        assert curve.passed[k] == (ledger.steered & harmful).sum()
    assert (curve.n_benign, curve.n_harmful) == ((~harmful).sum(), harmful.sum())
    chosen = curve.choose(wrong=0.05, passed=0.1)
    fits = (curve.wrong <= 0.05 * curve.n_benign) & (curve.passed <= 0.1 * curve.n_harmful)
    place = int(np.flatnonzero(curve.thresholds == chosen)[0])
    assert fits[place]
    assert curve.covered[place] == curve.covered[fits].max()
    assert curve.at(chosen)["covered"].n == curve.n_benign
    everyone = calibrate_gate(bank, select, harmful=[True] * 60, options=options)
    assert everyone.choose() is None


def test_rows_of_the_bank_are_refused(world, bank):
    with pytest.raises(InterpError, match="24 of 24 rows are in the bank"):
        plan_steering(world, bank)
    with pytest.raises(InterpError, match="rows are in the bank"):
        calibrate_gate(bank, world, harmful=[False] * 24)
    chat = Reading(**{**vars(READING), "format": ChatFormat("abc", generation_prompt=True)})
    with pytest.raises(InterpError, match="read both in the same way"):
        plan_steering(planted([("translate", 1, 0)], reading=chat, prefix="e"), bank)


@pytest.mark.parametrize("seed", range(5))
def test_split_is_disjoint_and_even(seed):
    rows = [(t, side, i) for t in TASKS for side in (1, -1) for i in range(20)]
    everyone = planted(rows)
    bases = [f"text{i // 2}" for i in range(len(rows))]
    parts = everyone.split((0.5, 0.2, 0.3), bases=bases, seed=seed)
    ids = [set(part.rows) for part in parts]
    assert set.union(*ids) == set(everyone.rows)
    assert sum(map(len, ids)) == len(rows)
    texts = [{bases[int(row[1:])] for row in part} for part in ids]
    assert not texts[0] & texts[1] | texts[1] & texts[2] | texts[0] & texts[2]
    for part, share in zip(parts, (0.5, 0.2, 0.3), strict=True):
        for t in TASKS:
            for kind in ("target", "refusal"):
                n = sum(a == t and b == kind for a, b in zip(part.tasks, part.classes, strict=True))
                assert abs(n - 20 * share) <= 2
    make_bank(parts[0]).accept(parts[2])


def test_equal_states_and_equal_prompts_stay_on_one_side(bank):
    rows = [(t, side, i % 10) for t in TASKS for side in (1, -1) for i in range(20)]
    parts = planted(rows).split((0.6, 0.4))
    texts = [{rows[int(row[1:])] for row in part.rows} for part in parts]
    assert not texts[0] & texts[1]
    known = [
        replace(planted([("translate", side, 0)], prefix=name), prompts=("a hash",))
        for side, name in ((1, "x"), (-1, "y"))
    ]
    with pytest.raises(InterpError, match="1 of 1 prompts are in the bank"):
        make_bank(known[0], least=1).accept(known[1])


def test_shuffled_classes_lose_the_effect():
    rows = [(t, side, w) for t in TASKS for side in (1, -1) for w in np.linspace(-1, 1, 20)]
    everyone = planted(rows)
    true, null = (make_bank(x) for x in (everyone, everyone.shuffled(seed=0)))
    assert (effectiveness(null)[:, 2] < 0.3 * effectiveness(true)[:, 2]).all()


def test_shuffled_classes_depend_on_the_seed_alone():
    """Tasks are shuffled in the order they come in, not in that of a set, which hashing decides."""
    states = planted([(t, side, w) for t in TASKS for side in (1, -1) for w in range(20)])
    rng, expected = np.random.default_rng(3), np.array(states.classes, dtype=object)
    for task in sorted(set(states.tasks), key=states.tasks.index):
        at = np.flatnonzero(np.array(states.tasks) == task)
        expected[at] = rng.permutation(expected[at])
    assert states.shuffled(seed=3).classes == tuple(expected)


def test_classes_of_verdicts():
    labels = ("direct_answer", "indirect_refusal", "direct_refusal", "degenerate", "judge_error")
    n = len(labels)
    judged = JudgedReplies(
        judge="j", rows=tuple("abcde"), labels=labels, cut=(False,) * n, text_hashes=("",) * n
    )
    assert classes_of(judged) == ("target", "refusal", "refusal", "other", "other")


# -- on models ------------------------------------------------------------------------------------

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7))]


def facts(prefix="r"):
    return {"rows": [f"{prefix}{i}" for i in range(4)], "tasks": ["a", "a", "b", "b"]}


def test_states_are_the_models(family):
    seen = read_trajectories(family, PROMPTS, **facts())
    raw = run_with_cache(family, PROMPTS, sites=["resid_post"], positions="last")
    expected = torch.stack([raw[k, "resid_post"] for k in range(family.n_layers)], 1).double()
    np.testing.assert_allclose(seen.states * seen.scale, expected, atol=3e-5)
    np.testing.assert_allclose((seen.states**2).mean(-1), 1)
    if family.decoder.blocks[0].ln1 is None:
        with pytest.raises(InterpError, match="it has none"):
            read_trajectories(family, PROMPTS, site="ln_in", normalise="none", **facts())
        return
    behind = read_trajectories(family, PROMPTS, site="ln_in", normalise="none", **facts())
    assert behind.layers == tuple(range(family.n_layers + 1))
    for layer in (0, 1, family.n_layers):
        last = layer == family.n_layers
        norm = family.decoder.ln_final if last else family.decoder.blocks[layer].ln1
        address = (layer - 1, "resid_post") if last else (layer, "resid_pre")
        stream = run_with_cache(
            family, PROMPTS, sites=[address[1]], layers=[address[0]], positions="last"
        )[address]
        np.testing.assert_allclose(behind.states[:, layer], norm(stream).double(), atol=1e-4)
        # What a scale says it moves the stream by moves the norm's output by one, at its scale.
        move = torch.randn(4, family.d_model, generator=torch.manual_seed(0)).double()
        move -= move.mean(-1, keepdim=True) if norm.centred else 0
        gained = norm.share(torch.from_numpy(behind.scale[:, layer]) * move, stream)
        known = (norm.weight.abs() > 1e-6).double()
        if not norm.centred:
            np.testing.assert_allclose(gained, move * known, atol=2e-4)
    with pytest.raises(InterpError, match="give finite"):
        read_trajectories(family, PROMPTS, rows=["a"], tasks=["b"])


def test_steering_turns_refusals_on_the_toy():
    """Along its task's constellation a refused request is answered; a random shift does nothing."""
    model, task = load_model("toy-refusal"), load_task("toy-refusal")
    refuse, comply = (model.single_token(word) for word in ("refuse", "comply"))
    refused, answered = ([getattr(p, side) for p in task.pairs] for side in ("clean", "corrupted"))
    half = len(refused) // 2
    bank = make_bank(
        read_trajectories(
            model,
            refused[:half] + answered[:half],
            rows=[f"b{i}" for i in range(2 * half)],
            tasks=["ask"] * 2 * half,
            classes=["refusal"] * half + ["target"] * half,
        )
    )
    assert (effectiveness(bank) > 1).all()
    test = refused[half:]
    given = {"rows": [f"e{i}" for i in range(len(test))], "tasks": ["ask"] * len(test)}
    options = TaskSteering(move="gap", strength=1.2, layers=(1,), alignment="none", threshold=0.5)
    steering, ledger = steer_task(model, test, bank, options=options, **given)
    plain, run = run_steered(model, test), run_steered(model, test, steering, layers=[1])
    random = run_steered(model, test, ledger.random(seed=1).steering(model))
    margins = [x.logits[:, refuse] - x.logits[:, comply] for x in (plain, run, random)]
    assert (margins[0] > 1).all()
    assert (margins[1] < 0).all()
    assert (margins[2] > 1).all()
    # Exactly the shift was added, at the layer named, at every token of every prompt.
    assert ledger.layers[0] == (1,)
    before = run_steered(model, test, layers=[1]).states[:, 0].double()
    np.testing.assert_allclose(run.states[:, 0].double() - before, ledger.shifts[1], atol=1e-4)
    assert run.tally.tokens.tolist() == [len(model.tokenize(p).tokens) for p in test]
    closed = TaskSteering(threshold=1.1)
    steering, ledger = steer_task(model, test, bank, options=closed, **given)
    assert torch.equal(run_steered(model, test, steering).logits, plain.logits)
    assert "no prompt was steered" in str(ledger)
    with pytest.raises(InterpError, match="planned for another model"):
        ledger.steering(load_model("toy-or"))


def test_fixed_layers_and_bad_options(bank):
    test = planted([("translate", -1, 0)], prefix="e")
    assert plan_steering(test, bank, TaskSteering(layers=(3, 1))).layers == ((3, 1),)
    with pytest.raises(InterpError, match="not read"):
        plan_steering(test, bank, TaskSteering(layers=(9,)))
    for name in ("move", "alignment", "depth", "layers"):
        with pytest.raises(InterpError, match="known"):
            TaskSteering(**{name: "best"})
