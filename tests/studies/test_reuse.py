"""Reuse across tasks: tasks, overlaps against brute force, labels, imposed patterns, the study."""

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.runs.capture import run_with_cache
from interp.runs.next_tokens import ablate
from interp.studies.reuse.report.claims import claims
from interp.studies.reuse.report.report import write_up
from interp.studies.reuse.settings import Choices, ReuseContext, ReuseSettings, choices
from interp.studies.reuse.steps.circuits import (
    circuit,
    circuits_of,
    clear,
    clear_heads,
    effects_of,
    heads_of,
    strongest,
)
from interp.studies.reuse.steps.heads import Looks, assign, in_words, named, writes
from interp.studies.reuse.steps.overlap import (
    MEASURES,
    _shared,
    around,
    beyond_controls,
    chance,
    clear_circuit,
    correlation,
    half_samples,
    matched,
    overlap,
    random_circuit,
    side_of,
    subsampled,
    weighted,
)
from interp.studies.reuse.steps.repair import (
    _paired,
    candidates,
    chosen_heads,
    evenly,
    impose,
    matched_heads,
    others_near,
    over_all,
    written,
)
from interp.studies.reuse.study import study_reuse
from interp.studies.reuse.tasks import BY_NAME, IOI, OBJECTS, Roles, entry_named
from interp.tasks.names import IOI_TEMPLATES
from interp.tasks.objects import make_scenes
from interp.tasks.registry import load_task
from interp.tasks.words import CAPITALS
from tests.families import random_task

SETTINGS = ReuseSettings(n=6, tested=12, share=0.25, draws=20, sets=3, resamples=20)


# -- tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", IOI_TEMPLATES)
@pytest.mark.parametrize("corruption", ["swap", "random", "abc"])
def test_ioi_variants(variant, corruption):
    acting = 2 if variant == "three" else 1
    for pair in load_task("ioi", n=30, variant=variant, corruption=corruption).pairs:
        answer, wrong = pair.answers[0].strip(), [name.strip() for name in pair.wrong]
        words = pair.clean.replace(",", "").replace(".", "").split()
        assert words.count(answer) == 1
        assert [words.count(name) for name in wrong] == [2] * acting
        assert len(pair.corrupted.split()) == len(words)
        assert pair.corrupted != pair.clean
        others = pair.corrupted.replace(",", "").replace(".", "").split()
        names = {"swap": 2, "random": 1, "abc": 0}[corruption]
        assert others.count(answer) == names
        assert others.count(wrong[0]) == (0 if corruption == "abc" else 1)
        assert pair.clean.endswith(" from") == (variant == "roles")


def test_ioi_templates_are_chosen_and_refused():
    pairs = load_task("ioi", n=20, variant="other", template=1).pairs
    assert all(pair.clean.startswith("Once ") for pair in pairs)
    assert load_task("ioi", n=9).hash == load_task("ioi", n=9, templates=6).hash
    for options, message in (
        ({"variant": "threee"}, "did you mean 'three'"),
        ({"template": 6}, "there are 0 to 5"),
        ({"templates": 4, "variant": "three"}, "there are 3"),
        ({"templates": 0}, "there are 6"),
    ):
        with pytest.raises(InterpError, match=message):
            load_task("ioi", n=2, **options)


def test_capitals_are_right_and_every_corruption_another_country():
    task = load_task("capitals", n=2 * 3 * len(CAPITALS))
    for pair in task.pairs:
        country = pair.positions["country"]
        other = next(c for c in CAPITALS if pair.clean.replace(country, c) == pair.corrupted)
        assert CAPITALS[country] == pair.answers[0].strip()
        assert CAPITALS[other] == pair.wrong[0].strip() != pair.answers[0].strip()
    half = {pair.clean for pair in task.pairs[: len(task) // 2]}
    assert len(half) == 3 * len(CAPITALS)


def test_held_out_tables_are_never_trained_on():
    def tables(split):
        scenes = make_scenes(150, 0, split=split)
        found = [t for scene in scenes for t in (scene.example, scene.table)]
        return {frozenset(table.pairs) for table in found}, [t.held_out for t in found]

    train, held_train = tables("train")
    test, held_test = tables("test")
    assert not train & test
    assert all(held_test)
    assert not any(held_train)
    with pytest.raises(InterpError, match="split"):
        make_scenes(1, 0, split="tests")
    with pytest.raises(InterpError, match="shots is 2"):
        load_task("colored_objects", shots=2)


def test_scenes_ask_what_they_say():
    for scene in make_scenes(40, 3):
        place = scene.table.things.index(scene.table.things[scene.asked])
        assert scene.answer == scene.table.hues[place]
        turned = scene.recoloured()
        assert turned.answer != scene.answer
        assert sorted(turned.table.hues) == sorted(scene.table.hues)
        assert scene.prompt().endswith(scene.prompt(shots=0))
        assert f"A: {scene.example.hues[scene.shown]}\n" in scene.prompt()
    for pair in load_task("colored_objects", n=40).pairs:
        names = [pair.positions[name].strip() for name in ("right", "wrong1", "wrong2")]
        assert names[0] == pair.answers[0].strip()
        assert names[1:] == [name.strip() for name in pair.wrong]
        assert all(pair.clean.count(f" {name}") == 1 for name in names)


# -- overlaps ------------------------------------------------------------------------------


LAST = 100
"""No head of these circuits is in the last layer."""


def of(**stages):
    """A circuit whose heads have equal effects, or the effects given."""
    return {
        name: dict(heads) if isinstance(heads, dict) else dict.fromkeys(heads, 1.0)
        for name, heads in stages.items()
    }


def test_overlap_against_sets_by_hand():
    one = of(a=(1, 2), b=(3, 4))
    other = of(a=(1, 3), b=(4, 9))
    # stages: {1} and {4}; as a whole {1,2,3,4} and {1,3,4,9}
    assert overlap(one, other, LAST) == {
        "stagewise": 0.5, "pooled": 0.75, "iou": 0.6, "matched": 0.75, "inner": 0.75,
        "weighted": 0.5,
    }  # fmt: skip
    assert set(overlap(one, one, LAST).values()) == {1.0}
    for bad in (of(a=(1,)), of(a=(), b=())):
        with pytest.raises(InterpError, match="same stages"):
            overlap(one, bad, LAST)


def test_heads_of_the_last_layer_are_left_out_before_circuits_are_cut_to_one_size():
    one, other = of(a=(9, 1, 2)), of(a=(9, 1))
    assert overlap(one, other, 9)["inner"] == 1.0  # {1} of {1, 2} and of {1}
    assert overlap(of(a=(9, 8, 1, 2)), of(a=(9, 8, 3, 2)), 8)["inner"] == 0.5
    assert overlap(of(a=(9, 8, 1, 2)), of(a=(9, 8, 3, 2)), 8)["matched"] == 0.75
    assert overlap(of(a=(9,)), of(a=(9,)), 9)["inner"] == 0.0


def test_the_weighted_overlap_is_that_of_a_loop_over_all_heads():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.standard_normal((2, 2, 8))
        sides = [{"a": strongest(x[0], 3), "b": strongest(x[1], 4)} for x in rows]
        shares = np.zeros((2, 2, 8))
        for side in range(2):
            for i, stage in enumerate("ab"):
                for head in range(8):
                    effect = sides[side][stage].get(head, 0.0)
                    shares[side, i, head] = effect / sum(map(abs, sides[side][stage].values()))
        total = 0.0
        for x, y in zip(shares[0].ravel(), shares[1].ravel(), strict=True):
            if x * y > 0:
                total += min(abs(x), abs(y)) / 2
        assert weighted(*sides) == pytest.approx(total)
    # A sign that turns shares nothing, and a stage that only one circuit has shares nothing.
    assert weighted(of(a={1: 1.0, 2: -3.0}), of(a={1: 2.0, 2: 2.0})) == pytest.approx(0.25)
    assert weighted(of(a=(1,), b=(2,), c=()), of(a=(1,), b=(), c=())) == 0.5
    assert weighted(of(a=()), of(a=())) == 0.0


def test_matched_circuits_are_the_strongest_of_each_as_many_as_both_have():
    one = of(a=(5, 1, 2), b=(3,), c=())
    other = of(a=(1, 5), b=(3, 4), c=(9,))
    assert matched(one, other) == (of(a=(5, 1), b=(3,), c=()), of(a=(1, 5), b=(3,), c=()))
    found = overlap(one, other, LAST)
    assert found["matched"] == 1.0
    assert found["pooled"] == pytest.approx(3 / 4.5)
    assert overlap(of(a=(1,), b=()), of(a=(), b=(1,)), LAST)["matched"] == 0.0


def test_strongest_takes_the_largest_of_either_sign_and_no_zeros():
    assert strongest(np.array([0.1, -3.0, 2.0, 0.0]), 2) == {1: -3.0, 2: 2.0}
    assert strongest(np.array([0.0, 1.0, 0.0]), 3) == {1: 1.0}


def test_only_heads_distinguishable_from_zero_are_in_a_circuit():
    """Head 0 is strong and steady, 1 strong but noise, 2 weak and steady, 3 nothing."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 4))
    noise -= noise.mean(0)
    noise /= noise.std(0, ddof=1)
    rows = np.array([3.0, 1.0, -0.4, 0.0]) + noise * np.array([1.0, 4.0, 0.5, 1.0])
    assert clear(rows).tolist() == [True, False, True, False]
    few = np.random.default_rng(1).standard_normal((4, 20_000))  # of four prompts one in twenty too
    assert 0.03 < clear(few).mean() < 0.06
    effects = {"a": rows}
    # The noisy head's place stays empty: with two places there is one head, with three two.
    assert [[*clear_circuit(effects, k)["a"]] for k in (1, 2, 3)] == [[0], [0], [0, 2]]
    with pytest.raises(InterpError, match="1 prompts"):
        clear(rows[:1])


def test_chance_is_the_mean_over_all_matched_sets():
    heads = 4
    one, other = of(a=(0, 1, 5)), of(a={0: 1.0, 2: 2.0, 6: -3.0})
    drawn = [
        overlap(one, of(a=(*first, 4 + second)), LAST)["iou"]
        for first in combinations(range(heads), 2)
        for second in range(heads)
    ]
    found = chance(one, other, heads, 4, 4000, 0)
    assert np.mean(found["iou"]) == pytest.approx(np.mean(drawn), abs=0.02)
    assert found["matched"] != found["pooled"]  # drawn on their own
    assert np.mean(found["matched"]) == pytest.approx(np.mean(found["pooled"]), abs=0.03)
    # Without the last layer: heads 0 and 1 against two of the four heads of the first layer.
    assert np.mean(found["inner"]) == pytest.approx(0.5, abs=0.03)
    rng = np.random.default_rng(0)
    for _ in range(20):
        circuit = random_circuit(other, heads, rng)["a"]
        assert sorted(head // heads for head in circuit) == [0, 0, 1]
        assert sorted(circuit.values()) == [-3.0, 1.0, 2.0]
        assert circuit[max(circuit)] == -3.0


def test_halves_of_a_clear_task_agree_and_halves_of_noise_share_little():
    rng = np.random.default_rng(0)
    planted = np.zeros(60)
    planted[:6] = 5
    distinct = {"a": planted + 0.1 * rng.standard_normal((20, 60))}
    noise = {"a": rng.standard_normal((20, 60))}
    for effects, agree in ((distinct, True), (noise, False)):
        side = side_of(effects, 6, 60, 0)
        found = subsampled(*zip(*side.halves, strict=True), last=LAST)
        assert (np.mean(found["pooled"]) == 1.0) if agree else (np.mean(found["pooled"]) < 0.35)
    parts = half_samples(9, 20, 0)
    assert all(len({*one, *other}) == 8 and len(one) == 4 for one, other in parts)
    equal = [0, 1, 0, 2, 3, 3, 4, 5, 0]
    for one, other in half_samples(9, 20, 0, equal):
        assert not {equal[i] for i in one} & {equal[i] for i in other}
        assert {equal[i] for i in (*one, *other)} == set(range(6))
    for few in ((3, 1, 0), (9, 1, 0, [0, 0, 0, 1, 1, 1, 2, 2, 2])):
        with pytest.raises(InterpError, match="at least 4"):
            half_samples(*few)


def _planted(rng, heads=80, strong=6, common=3):
    """Two tasks' true mean effects: graded, some of the strongest heads the same."""
    strength = np.linspace(2.0, 0.7, strong)
    means = 0.15 * rng.standard_normal((2, heads))
    means[1] = 0.5 * means[0] + 0.5 * means[1]
    means[0, :strong] = strength
    means[1, strong - common : 2 * strong - common] = strength[::-1]
    return means


@pytest.mark.long
def test_intervals_contain_their_estimates_and_cover_the_truth():
    """Studies of 32 prompts a task, of known mean effects, with noise that swaps ranks.

    The truth of an overlap is that of the means themselves, of the rank correlation its mean over
    studies, for noise lowers it at any number of prompts.
    """
    rng, k, draws, studies = np.random.default_rng(0), 5, 100, 60
    means = _planted(rng)
    truth = overlap(*({"a": strongest(mean, k)} for mean in means), LAST)
    found = []
    for seed in range(studies):
        rows = [mean + 1.5 * rng.standard_normal((32, means.shape[1])) for mean in means]
        left, right = (side_of({"a": row}, k, draws, seed) for row in rows)
        value = overlap(left.circuit, right.circuit, LAST)
        drawn = subsampled([a for a, _ in left.halves], [a for a, _ in right.halves], LAST)
        study = {name: (value[name], *around(value[name], drawn[name])) for name in MEASURES}
        ranks = correlation(left, right)
        found.append(study | {"spearman": (ranks["value"], ranks["low"], ranks["high"])})
    truth["spearman"] = float(np.mean([study["spearman"][0] for study in found]))
    for name, right in truth.items():
        assert all(low <= value <= high for value, low, high in (s[name] for s in found))
        covered = [low - 1e-9 <= right <= high + 1e-9 for _, low, high in (s[name] for s in found)]
        assert np.mean(covered) >= 0.9, name
        assert np.mean([high - low for _, low, high in (s[name] for s in found)]) < 0.75, name


def test_differences_to_controls_pair_the_same_halves():
    shared = {
        frozenset(pair): {"matched": values}
        for pair, values in (
            (("ioi", "colored_objects"), [0.5, 0.6, 0.2]),
            (("ioi", "capitals"), [0.1, 0.2, 0.0]),
            (("capitals", "colored_objects"), [0.4, 0.1, 0.5]),
            (("ioi", "ioi, swapped roles"), [0.9, 0.9, 0.9]),
        )
    }
    found = beyond_controls(shared, "matched", "ioi", "colored_objects")
    assert [(x["circuit"], x["shares"]) for x in found] == [("ioi", 0.1), ("colored_objects", 0.4)]
    for x, drawn in zip(found, ([0.4, 0.2], [0.5, -0.3]), strict=True):
        value = 0.5 - x["shares"]
        assert x["control"] == "capitals"
        assert x["value"] == pytest.approx(value)
        assert (x["low"], x["high"]) == pytest.approx(around(value, drawn, least=-1.0))
    assert found[1]["low"] < 0 < found[1]["value"]  # below zero only if it is not cut at zero
    assert beyond_controls(shared, "matched", "ioi", "capitals") == []  # itself a control
    assert len(beyond_controls(shared, "matched", "ioi", "ioi, swapped roles")) == 1


@pytest.mark.long
def test_differences_to_controls_cover_the_truth():
    """Three tasks; the control shares less with the first than the second does."""
    rng, k, studies = np.random.default_rng(0), 5, 40
    means = np.concatenate([_planted(rng, common=5), np.roll(_planted(rng)[1:], 2, axis=1)])
    names = ("ioi", "colored_objects", "capitals")
    exact = dict(zip(names, ({"a": strongest(mean, k)} for mean in means), strict=True))

    def matched_of(one, other):
        return overlap(exact[one], exact[other], LAST)["matched"]

    found = []
    for seed in range(studies):
        rows = [mean + 1.5 * rng.standard_normal((32, means.shape[1])) for mean in means]
        sides = [side_of({"a": row}, k, 60, seed) for row in rows]
        shared = {
            frozenset((names[i], names[j])): _shared(sides[i], sides[j], LAST)
            for i, j in combinations(range(3), 2)
        }
        found.append(beyond_controls(shared, "matched", "ioi", "colored_objects"))
    for i, name in enumerate(names[:2]):
        truth = matched_of(*names[:2]) - matched_of(name, "capitals")
        assert truth > 0
        covered = [one[i]["low"] - 1e-9 <= truth <= one[i]["high"] + 1e-9 for one in found]
        assert np.mean(covered) >= 0.9


def test_a_rank_correlation_needs_an_order():
    """Without one it could be anything, and one half without an order is no order at all."""
    rows = np.random.default_rng(0).standard_normal((8, 6))
    some, none = (side_of({"a": x}, 2, 20, 0) for x in (rows, 0 * rows))
    found = correlation(some, none)
    assert np.isnan(found["value"])
    assert (found["low"], found["high"]) == (-1, 1)
    halves = replace(some, ranks=np.concatenate([some.ranks[:10], none.ranks[10:]]))
    found = correlation(halves, some)
    assert (found["value"], found["low"], found["high"]) == (pytest.approx(1), 0, 1)


# -- labels --------------------------------------------------------------------------------


def adds(mean, spread=0.1):
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "n": 9}


def test_labels_of_hand_made_patterns():
    shape = (1, 8)

    def looks(heads, excess=None):
        value = np.zeros(shape)
        value[0, list(heads)] = [0.6 - 0.01 * i for i in range(len(heads))]
        return Looks(
            value=value,
            excess=value if excess is None else np.full(shape, excess),
            excess_low=value - 0.1 if excess is None else np.full(shape, excess - 0.1),
        )

    relations = {
        "answer": looks([0, 1, 2, 6]),
        "wrong": looks([6, 7]),  # head 6 attends to it a little more than to the answer
        "cue": looks([3, 7]),
        "duplicate": looks([4, 5]),
        "induction": looks([4], excess=-0.1),  # as much attention everywhere: no label
    }
    about = {0: (0.5, 0.0), 1: (-0.4, 0.0), 2: (0.05, 0.0), 3: (0.9, 0.9), 6: (0.9, -0.3)}
    about |= {4: (0.3, 0.3), 5: (0.0, 0.0), 7: (-0.2, -2.5)}
    written = {f"L0H{i}": {"answer": adds(x), "wrong": adds(y)} for i, (x, y) in about.items()}
    seen = named(relations, written, 0.1)
    assert {head: x["role"] for head, x in seen.items()} == {
        "L0H0": "mover",
        "L0H1": "suppressor",
        "L0H2": None,  # what it adds is not clear of zero
        "L0H6": "suppressor",  # of the wrong answer, which it lowers; it raises the answer
        "L0H7": "suppressor",
    }
    assert (seen["L0H7"]["side"], seen["L0H7"]["adds"]["mean"]) == ("wrong", -2.5)
    found = assign(relations, seen, Roles(answer="IO", cue="S2", earlier="S1"), 0.1)
    assert found == {
        "L0H0": ["mover"],
        "L0H1": ["suppressor"],
        "L0H3": ["inhibition"],  # attends to no named answer, whatever it writes
        "L0H4": ["duplicate token"],
        "L0H5": ["duplicate token"],
        "L0H6": ["suppressor"],
        "L0H7": ["suppressor", "inhibition"],
    }
    assert assign(relations, seen, OBJECTS.roles, 0.1)["L0H3"] == ["content gatherer"]


# -- imposed patterns ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_an_imposed_pattern_is_a_pattern_hooked_in(family_models, name):
    model, task = family_models[name], random_task()
    prompts = task.encode(model).clean
    heads = ["L0H1", "L1H0", "L1H3", "L2H2"]
    places = [[1, 3] if i % 2 else [2] for i in range(len(prompts))]
    told = written(model, prompts, {"first": [{0: 1.0}] * len(prompts), "there": evenly(places)})
    change = impose(model, heads, told["there"])
    seen = ablate(model, prompts, [change], tokens=[5, 6], where=1)

    def hook_of(layer):
        def hook(value, batch):
            value = value.clone()
            for row, prompt in enumerate(batch.prompts.tolist()):
                query = batch.column(row, len(prompts[prompt]) - 1)
                for head in (int(h[3]) for h in heads if h.startswith(f"L{layer}H")):
                    line = torch.zeros_like(value[row, head, query])
                    for place in places[prompt]:
                        line[batch.column(row, place)] += 1 / len(places[prompt])
                    value[row, head, query] = line
            return value

        return hook

    hooks = {(layer, "pattern"): [hook_of(layer)] for layer in range(3)}
    logits = torch.zeros(len(prompts), model.d_vocab)
    for batch, out in _runs(model, prompts, hooks):
        logits[batch] = out
    expected = logits.softmax(-1)[:, [5, 6]].numpy()
    np.testing.assert_allclose(seen.probabilities[1], expected, atol=2e-6)
    assert np.abs(seen.probabilities[1] - seen.probabilities[0]).max() > 1e-4


def _runs(model: LanguageModel, prompts, hooks):
    with model.hooked(hooks), torch.no_grad():
        yield slice(None), model.last_logits(prompts)


def test_matched_heads_keep_the_layers_and_differ(family_models):
    model, rng = family_models["llama"], np.random.default_rng(0)
    for _ in range(10):
        drawn = matched_heads(model, ["L0H1", "L0H2", "L2H0"], rng)
        assert [head[:2] for head in drawn.values()] == ["L0", "L0", "L2"]
        assert len(set(drawn.values())) == 3
        assert not set(drawn.values()) & set(drawn)
    near = others_near(model, "L1H2", ["L1H2", "L0H0"])
    assert len(near) == model.n_heads * model.n_layers - 2  # all three layers are near
    assert not {"L1H2", "L0H0"} & set(near)


def test_new_mistakes_are_counted_beside_what_is_mended():
    plain, changed = [1, 1, 0, 0, 0, 1], [0, 1, 1, 1, 0, 1]
    right = np.array([plain, changed, plain, plain], dtype=bool)
    found = _paired(Choices(right=right, top=right, chance=0.5), [1, 2, 3])["right"]
    assert (found["fixed"], found["broken"]) == (2, 1)
    assert found["mean"] == pytest.approx(4 / 6)
    assert found["null"] == [0.5, 0.5]
    assert found["share"] == pytest.approx(1 / 3)


def _rows(shares):
    return {
        name: {"right": {"mean": one[0], "null": list(one[1:])}} for name, one in shares.items()
    }


def test_p_over_all_rows_is_that_of_the_largest_row():
    rng = np.random.default_rng(0)
    null = {f"r{i}": rng.random(31) for i in range(9)}
    planted = np.array([9.0, *rng.random(30)])
    found = over_all(_rows({"both": planted} | null))
    assert found["both"] == pytest.approx(1 / 31)
    assert min(found[name] for name in null) > 1 / 31
    # By hand, two rows of one own and three random sets: z of each row, the larger of each draw.
    small = {"a": [0.9, 0.1, 0.2, 0.3], "b": [0.5, 0.5, 0.5, 0.9]}
    z = np.array([(np.array(x) - np.mean(x)) / np.std(x) for x in small.values()])
    by_hand = [(z.max(0) >= row[0]).mean() for row in z]
    assert list(over_all(_rows(small)).values()) == pytest.approx(by_hand)
    assert over_all(_rows({"flat": [1.0, 1.0, 1.0]})) == {"flat": 1.0}


def test_p_over_all_rows_errs_no_more_often_than_it_says():
    rng = np.random.default_rng(1)
    least = [
        min(over_all(_rows({f"r{i}": rng.random(20) for i in range(10)})).values())
        for _ in range(400)
    ]
    assert np.mean(np.array(least) <= 0.05 + 1e-9) < 0.09  # 0.05 of 400, +- 0.011
    assert np.mean(np.array(least) <= 0.5) > 0.4  # and not much less often


def _line(x, form=".2f"):
    return f"{x['mean']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"


def test_pages_about_ioi_and_the_repair_say_what_the_files_hold():
    root = Path(__file__).parents[2]
    results, pages = root / "experiments/results", root / "docs/findings"
    found = json.loads((results / "ioi_heads.json").read_text())
    page, readme = (pages / "ioi.md").read_text(), (root / "README.md").read_text()
    effect, beyond = found["together"]["denoise"]["effect"], found["beyond_clean"]["five"]
    assert _line(effect) in page
    assert _line(effect) in " ".join(readme.split())
    for part in ("other heads", "opposed two"):
        assert f"{abs(beyond[part]['mean']):.2f}" in readme
        assert all(_line(run[part]) in page for run in found["beyond_clean"].values())
    assert beyond["all"]["mean"] == pytest.approx(effect["mean"] - 1, abs=1e-3)
    for row in found["prompts"]:
        assert all(_line(x) in page for name, x in row.items() if name in ("five", "seven"))
    found = json.loads((results / "reuse_repair.json").read_text())
    page = (pages / "reuse.md").read_text()
    assert "A run on 80 other" in page
    # The same heads repair as in the report, whose numbers the page has, and no others.
    mending = {name for name, row in found["rows"].items() if row["mean"] > 0.85}
    assert mending == {"L23H3", "L24H4", "both"}
    for name in mending - {"both"}:
        assert re.search(rf"\*\*{name} alone\*\* \| suppressor", page)
    assert all(found["rows"][name]["mean"] < 0.6 for name in ("L21H5", "L23H0", "inhibition"))


# -- the study on a tiny model -------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def worded(request) -> LanguageModel:
    """A random model whose tokeniser has every word of the tasks as a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    texts = []
    for entry in BY_NAME.values():
        for pair in load_task(entry.task, n=400, **entry.options).pairs:
            texts += [pair.clean, pair.corrupted, *pair.answers, *pair.wrong]
    cut = pre_tokenizers.Split(Regex(r"[0-9]| ?[A-Za-z]+|\n| |[^A-Za-z0-9 \n]"), "isolated")
    pieces = sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})
    vocabulary = {piece: i for i, piece in enumerate(["<eos>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    if request.param == "llama":
        config = transformers.LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
    else:
        config = transformers.GPT2Config(
            vocab_size=len(vocabulary), n_embd=32, n_inner=48, n_layer=3, n_head=4, n_positions=128,
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return wrap(model.eval(), fast, name=f"worded-{request.param}", check=False)


@pytest.mark.long
def test_entries_fit_their_prompts(worded):
    context = ReuseContext(model=worded, trained=worded, settings=SETTINGS)
    for entry in BY_NAME.values():
        task = context.task(entry)
        encoded, roles = task.encode(worded), entry.roles
        for name in (roles.answer, *roles.wrong, *filter(None, (roles.cue, roles.earlier))):
            assert len(encoded.positions(name)) == len(task)
        for i, pair in enumerate(task.pairs):
            token = encoded.prompts[i].strings[encoded.positions(roles.answer)[i]]
            if entry.task in ("ioi", "colored_objects"):
                assert token == pair.answers[0]
            if roles.cue is not None:
                strings = encoded.prompts[i].strings
                cue, first = (encoded.positions(n)[i] for n in (roles.cue, roles.earlier))
                assert first < cue
                assert strings[cue].strip() == strings[first].strip()
        found, held = context.task(entry), context.task(entry, test=True)
        assert {p.clean for p in found.pairs} != {p.clean for p in held.pairs}
    with pytest.raises(InterpError, match="did you mean 'ioi'"):
        entry_named("io")
    with pytest.raises(InterpError, match="--trained"):
        ReuseContext(model=worded, trained=None, settings=SETTINGS).model_of(
            BY_NAME["ioi, trained model"]
        )


def test_choices_are_read_off_the_logits(worded):
    for name in ("ioi", "greater_than", "colored_objects"):
        task = load_task(name, worded, n=12)
        seen, logits = choices(worded, task), worded.last_logits(task.encode(worded).clean)
        for i, pair in enumerate(task.pairs):
            ids = [[worded.token_id(t)[0] for t in texts] for texts in (pair.answers, pair.wrong)]
            best = [max(float(logits[i, t]) for t in side) for side in ids]
            assert seen.right[0, i] == (best[0] > best[1])
            assert seen.top[0, i] == (int(logits[i].argmax()) in ids[0])


def test_a_circuit_s_receivers_are_the_supporting_heads_of_the_stage_before(worded):
    found = _any_circuit(ReuseContext(model=worded, trained=None, settings=SETTINGS))
    movers = heads_of(found, "movers", 1)
    assert found["stages"]["inhibition"]["receivers"] == [f"{head}.q" for head in movers]
    kept = clear_circuit(effects_of(found), found["k"])
    for stage, rows in found["stages"].items():
        assert {f"L{h // 4}H{h % 4}" for h in kept[stage]} == set(clear_heads(found, stage))
        assert set(clear_heads(found, stage)) <= set(rows["heads"])
        assert len(rows["heads"]) <= found["k"]


def test_what_movers_read_and_write_is_what_a_loop_finds(worded):
    context = ReuseContext(model=worded, trained=None, settings=SETTINGS)
    task = context.task(IOI)
    heads = ["L0H1", "L2H3"]
    seen = writes(context, IOI)
    decoder = worded.require_decoder("a test")
    norm, ids = decoder.ln_final, lambda texts: [worded.token_id(text)[0] for text in texts]
    rows = {head: [] for head in heads}
    for pair in task.pairs:
        run = run_with_cache(worded, [pair.clean], sites=["z", "pattern", "resid_post"])
        end = run[2, "resid_post"][0, -1].double()
        end = end - end.mean() if norm.centred else end
        for head in heads:
            layer, index = int(head[1]), int(head[3])
            part = run[layer, "z"][0, -1, index].double()
            part = part @ decoder.blocks[layer].attn.o.weight[8 * index : 8 * index + 8].double()
            part = part - part.mean() if norm.centred else part
            share = part / (end.pow(2).mean() + norm.eps).sqrt() * norm.weight.double()
            logits = decoder.unembed.double() @ share
            logits = logits - logits.mean()
            pattern = run[layer, "pattern"][0, -1, index]
            sides = [float(logits[ids(texts)].mean()) for texts in (pair.answers, pair.wrong)]
            rows[head].append([*sides, float(pattern[-1]), float(pattern[0])])
    assert len(seen) == 12
    for head, x in ((head, seen[head]) for head in heads):
        told = [x["answer"]["mean"], x["wrong"]["mean"], x["self"], x["first"]]
        assert told == pytest.approx(np.mean(rows[head], 0).tolist(), abs=1e-5)


def test_what_a_head_does_in_words():
    x = {"answer": {"mean": -0.2}, "wrong": {"mean": -2.5}, "self": 0.0, "first": 0.2}
    looks = {"answer": 0.05, "wrong": 0.05, "cue": 0.65, "duplicate": 0.9}
    assert in_words(x, looks, 0.1) == "looks at the cue, lowers the wrong answer"
    x = {"answer": {"mean": 1.7}, "wrong": {"mean": 0.6}, "self": 0.5, "first": 0.1}
    assert in_words(x, {"answer": 0.0}, 0.1) == "looks at the last token itself, raises the answer"
    assert in_words(x | {"self": 0.05, "first": 0.0}, {}, 0.1).startswith("looks at nothing named")


def _any_circuit(context):
    """A random model does nothing much: the first task that it tells from its corruption."""
    for entry in context.entries:
        try:
            return circuit(context, entry)
        except InterpError:
            continue
    raise AssertionError


def test_heads_are_chosen_by_what_they_do_in_ioi_alone():
    values = {"movers": [-0.1, 0, 0.2, 0.9, 0.5, -0.7], "inhibition": [0, -0.2, 0, 0.3, 0, 0.1]}
    listed = {"movers": ["L1H1", "L2H0", "L1H0", "L0H0", "L2H1"], "inhibition": ["L1H1", "L0H1"]}
    found = {
        "n_heads": 2,
        "k": 2,
        "stages": {s: {"heads": listed[s], "values": values[s]} for s in values},
    }
    roles = {"L2H0": "suppressor", "L1H0": "mover", "L0H0": "suppressor", "L2H1": "mover"}
    about = {head: {"role": role} for head, role in roles.items()}
    # The most negative head of all, L2H1, raises what it attends to: it is no negative mover.
    assert chosen_heads(found, about) == {
        "inhibition": ["L1H1"], "negative mover": ["L0H0"], "movers": ["L1H0", "L2H1"]
    }  # fmt: skip
    # The four strongest of each stage, by size, none of value zero.
    assert candidates(found) == ["L1H1", "L2H1", "L2H0", "L1H0", "L0H1"]


@pytest.mark.long
def test_the_study_runs_resumes_and_reports(worded, tmp_path, monkeypatch):
    from interp.studies.reuse.steps import circuits, overlap

    # A random model does none of the tasks: let it pass, whatever it does.
    whole = overlap.behaviour

    def passed(context, entries):
        return {n: x | {"verdict": "tends"} for n, x in whole(context, entries).items()}

    monkeypatch.setattr("interp.studies.reuse.study.behaviour", passed)
    monkeypatch.setattr("interp.patching.path.check_gap", lambda one, other: None)
    lines = []
    first = study_reuse(
        worded, worded, settings=SETTINGS, directory=tmp_path / "steps", say=lines.append
    )
    assert any("minutes for the circuits" in line for line in lines)
    assert set(circuits_of(first.results)) == set(BY_NAME)
    shared, same = first.results["overlap"], ["ioi", "ioi, trained model"]
    assert len(shared["pairs"]) >= 3
    assert not {name for row in shared["pairs"] for name in row["pair"]} & {*shared["empty"]}
    for row in shared["pairs"]:
        assert all(row[name]["low"] <= row[name]["value"] <= row[name]["high"] for name in MEASURES)
        assert row["spearman"]["low"] <= row["spearman"]["value"] <= row["spearman"]["high"]
        if row["pair"] == same:  # here one and the same model
            assert row["matched"]["value"] == row["iou"]["value"] == 1.0
            # On the same halves of the same prompts.
            assert row["spearman"]["low"] == pytest.approx(1.0)
    assert claims(first.results)
    saved = write_up(first).save(tmp_path / "report")
    text = saved.read_text()
    for part in ("What holds", "25/32", "0.496", "0.69", "told from outside", "Forget ioi",
                 "The question", "How the model was made", "What it does not show"):  # fmt: skip
        assert part in text
    assert "&gt;" not in text
    for name in shared["empty"]:
        assert f"- {name}: no head is distinguishable" in text
    monkeypatch.setattr(circuits, "path_patching", None)
    monkeypatch.setattr("interp.studies.reuse.study.repair", None)
    again = study_reuse(worded, worded, settings=SETTINGS, directory=tmp_path / "steps")
    assert again.results == first.results
    assert IOI.name in again.results["labels"]


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_adapter_answers_held_out_tables():
    from interp.models.loading import load_model

    model = load_model("colored-objects-smollm2")
    task = load_task("colored_objects", model, n=24, seed=77, split="test")
    assert task.check(model).accuracy.mean >= 0.9
