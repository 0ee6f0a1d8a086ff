"""Slices: the linkage by hand, planted groups, a valid null, and tasks that can be loaded."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import interp
from interp.core.errors import InterpError
from interp.models.loading import wrap
from interp.probing.slices import slice_prompts, slice_states
from tests.families import random_task, tiny


def planted(seed=0, n=60, shift=2.0):
    """Two groups of like states; in the first, a third with states of its own scores high."""
    rng = np.random.default_rng(seed)
    states = 0.6 * rng.standard_normal((n, 8))
    first, high = np.arange(n) < n // 2, np.arange(n) < n // 6
    states[first, 0] += 3
    states[~first, 0] -= 3
    states[high, 1] += shift
    return states, rng.normal(0, 0.1, n) + high, high


def by_hand(states, scores, weight, cut):
    """Average linkage, step by step over all pairs of clusters."""
    unit = states - states.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    gap = np.abs(scores[:, None] - scores) / (scores.max() - scores.min())
    apart = weight * (1 - unit @ unit.T) / 2 + (1 - weight) * gap
    clusters = [[i] for i in range(len(states))]
    while len(clusters) > 1:
        far = {
            (a, b): apart[np.ix_(clusters[a], clusters[b])].mean()
            for a in range(len(clusters))
            for b in range(a)
        }
        (a, b), least = min(far.items(), key=lambda item: item[1])
        if least > cut:
            break
        clusters[b] += clusters.pop(a)
    return {frozenset(one) for one in clusters}


@pytest.mark.parametrize(("weight", "cut"), [(0.5, 0.25), (0.8, 0.1), (1.0, 0.2)])
def test_slices_are_those_of_average_linkage_by_hand(weight, cut):
    states, scores, _ = planted(n=24)
    found = slice_states(states, scores, weight=weight, cut=cut, draws=1)
    sets = {frozenset(found.members(k)) for k in range(len(found.p))}
    assert sets == by_hand(states, scores, weight, cut)
    assert 1 < len(sets) < 24
    for k in range(len(found.p)):
        own = scores[found.members(k)]
        assert found.excess[k] == pytest.approx((own - scores.mean()).sum())
    assert (np.diff(np.abs(found.excess)) <= 0).all()
    unit = states - states.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    apart = (1 - unit @ unit.T) / 2
    for k, own in enumerate(map(found.members, range(len(found.p)))):
        gains = []
        for i in own:
            inside = [apart[i, j] for j in own if j != i]
            outside = [
                apart[i, j] for j in range(24) if j not in own and found.alone[j] == found.alone[i]
            ]
            gains.append(np.mean(outside) - np.mean(inside) if inside and outside else 0)
        assert found.coherence[k] == pytest.approx(np.mean(gains))


def test_a_planted_slice_is_found_and_matched():
    states, scores, high = planted()
    found = slice_states(torch.from_numpy(states), scores, draws=99)
    match = found.matched(high)
    assert match.slice == 0
    assert match.purity.mean == match.recall.mean == 1
    assert match.null.share <= 0.05 < match.null.high + 0.05
    assert found.p[0] <= 0.05
    table = found.to_dataframe()
    assert table["n"].sum() == 60
    assert table["alone"][0] < 0.5
    assert len(found.plot().data) > 0


@pytest.mark.long
def test_p_is_valid_where_scores_are_dealt_within_clusters():
    """States of two clusters with other mean scores: within a cluster nothing is to be found."""
    rng, hits = np.random.default_rng(5), {0.05: 0, 0.2: 0}
    for seed in range(200):
        states, _, _ = planted(seed=seed, n=24, shift=0.0)
        scores = (np.arange(24) < 12) + rng.exponential(size=24)
        least = slice_states(states, scores, draws=39, seed=seed).p.min()
        for level in hits:
            hits[level] += least <= level
    for level, count in hits.items():
        assert binomtest(count, 200, level).pvalue > 1e-3, (level, count)


def test_a_slice_that_states_alone_make_is_not_credited_to_the_scores():
    states, _, _ = planted(shift=0.0)
    found = slice_states(states, (np.arange(60) < 30).astype(float), draws=19)
    assert found.to_dataframe()["alone"].tolist() == [1.0, 1.0]
    assert found.p.min() == 1


def test_a_slice_of_a_task_is_kept_and_loaded_by_name():
    model, task = wrap(tiny("llama"), name="tiny", check=False), random_task()
    found = slice_prompts(model, task, layer=1, draws=3)
    encoded = task.encode(model)
    logits = model.tail_logits(encoded.clean)
    each = torch.arange(len(task))
    ids = [encoded.targets.answers[:, 0], encoded.targets.wrong[:, 0]]
    np.testing.assert_allclose(found.scores, logits[each, ids[0]] - logits[each, ids[1]], atol=1e-5)
    states = interp.run_with_cache(
        model, task, sites="resid_post", layers=[1], positions="last"
    )["L1.resid_post"]  # fmt: skip
    same = slice_states(states, found.scores, draws=3)
    assert (same.of == found.of).all()
    kept = interp.tasks.save_task(found.task(0), "slice")
    assert kept.pairs == tuple(task.pairs[i] for i in found.members(0))
    assert interp.load_task(kept.name).pairs == kept.pairs
    rows = [pair.clean for pair in task.pairs]
    own = slice_prompts(model, rows, found.scores, layer=1, draws=3).task(0, answers=5, wrong=6)
    assert own.pairs[0].answers == (5,)
    assert own.metric.name == "logit_diff"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [1.0] * 60}, "scores that differ"),
        ({"scores": [1.0, 2.0]}, "a score for each"),
        ({"states": np.full((60, 8), np.nan)}, "not finite"),
        ({"weight": 0.0}, "weight"),
        ({"cut": 0.0}, "cut"),
        ({"draws": 0}, "draws"),
        ({"prompts": ["one"]}, "one prompt a row"),
    ],
)
def test_bad_input_is_refused(change, words):
    states, scores, _ = planted()
    given = {"states": states, "scores": scores} | change
    with pytest.raises(InterpError, match=words):
        slice_states(given.pop("states"), given.pop("scores"), **given)


def test_what_a_result_cannot_give_is_refused():
    states, scores, _ = planted()
    found = slice_states(states, scores, draws=1)
    with pytest.raises(InterpError, match="no prompt is in it"):
        found.matched([False] * 60)
    with pytest.raises(InterpError, match=r"slice \[99\]"):
        found.members(99)
    with pytest.raises(InterpError, match="only states"):
        found.task(0)
    texts = slice_states(states, scores, draws=1, prompts=["a"] * 60)
    with pytest.raises(InterpError, match="give answers="):
        texts.task(0)
    with pytest.raises(InterpError, match="give scores="):
        slice_prompts(wrap(tiny("llama"), name="tiny", check=False), [(1, 2)] * 4)
