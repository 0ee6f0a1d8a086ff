"""Attention to chosen tokens: against explicit loops, against planted heads, against controls."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.statistics import ratio_of_means
from interp.heads.attention import attention_to, select_heads, top_heads
from interp.models import batches
from interp.models.loading import load_model
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.tasks.registry import load_task

PROMPTS = [
    (5, 6, 7, 8, 9, 10, 11, 12, 13),
    (11, 12, 13, 14, 15, 16, 17),
    (21, 22, 23, 24, 25, 26, 27, 28, 29, 30),
    (31, 32, 33, 34, 35, 36, 37, 38),
]
QUERIES = [7, 6, 9, 5]
KEYS = [(2, 3), (5,), (1, 6, 8), (4, 0)]


def slowly(model, prompts, queries, keys, reduce):
    """One prompt, layer, head and key at a time; (n, layer, head)."""
    found = np.zeros((len(prompts), model.n_layers, model.n_heads))
    for i, (prompt, query, mine) in enumerate(zip(prompts, queries, keys, strict=True)):
        seen = run_with_cache(model, [prompt], sites=["pattern"])
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                for j in mine:
                    found[i, layer, head] += float(seen[layer, "pattern"][0, query, head, j])
        if reduce == "mean":
            found[i] /= len(mine)
    return found


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_every_family_against_loops(family, reduce):
    expected = slowly(family, PROMPTS, QUERIES, KEYS, reduce)
    found = attention_to(family, PROMPTS, QUERIES, KEYS, reduce=reduce)
    np.testing.assert_allclose(found.samples, expected, atol=2e-6)
    np.testing.assert_allclose(found.values, expected.mean(0), atol=2e-6)
    np.testing.assert_allclose(found.stderr, stats.sem(expected, axis=0), atol=2e-6)
    low, high = found.interval()
    estimate = found.estimate("L2H3")
    assert low[2, 3] == pytest.approx(estimate.low)
    assert (estimate.n, found.n) == (4, 4)
    assert estimate.mean == pytest.approx(expected[:, 2, 3].mean(), abs=1e-6)
    assert estimate.high == pytest.approx(high[2, 3])


def test_uniform_counts_the_keys_a_layer_sees(family):
    """Against the keys that get any attention in a real run: local layers see fewer."""
    found = attention_to(family, PROMPTS, QUERIES, KEYS)
    for i, (prompt, query, mine) in enumerate(zip(PROMPTS, QUERIES, KEYS, strict=True)):
        seen = run_with_cache(family, [prompt], sites=["pattern"])
        for layer in range(family.n_layers):
            visible = seen[layer, "pattern"][0, query, 0] > 0
            expected = float(visible[list(mine)].sum() / visible.sum())
            assert found.uniform[i, layer] == pytest.approx(expected)
    np.testing.assert_allclose(found.chance, found.uniform.mean(0))


def test_local_layers_are_there_to_be_told_apart(family_models):
    uniform = attention_to(family_models["gemma3"], PROMPTS, QUERIES, KEYS).uniform
    assert uniform[0, 0] == 0  # keys 2 and 3 are out of reach of query 7 in a window of 4
    assert uniform[0, 1] == pytest.approx(2 / 8)


def test_the_mean_is_over_every_batch(family_models, monkeypatch):
    model = family_models["llama"]
    together = attention_to(model, PROMPTS, QUERIES, KEYS)
    monkeypatch.setattr(batches, "BATCH_TOKENS", 10)
    apart = attention_to(model, PROMPTS, QUERIES, KEYS)
    np.testing.assert_allclose(apart.samples, together.samples, atol=2e-6)
    assert not np.allclose(apart.values, apart.samples[-1], atol=1e-3)


def test_what_comes_after_the_query_does_not_matter(family):
    cut = [prompt[: query + 1] for prompt, query in zip(PROMPTS, QUERIES, strict=True)]
    whole = attention_to(family, PROMPTS, QUERIES, KEYS).samples
    np.testing.assert_allclose(attention_to(family, cut, QUERIES, KEYS).samples, whole, atol=2e-6)


def test_interventions_are_seen(family_models):
    model = family_models["llama"]
    with intervene(model, [zero("L1H2.pattern")]):
        found = attention_to(model, PROMPTS, QUERIES, KEYS)
    assert (found.samples[:, 1, 2] == 0).all()
    assert (found.samples[:, 1, 1] > 0).all()


# -- planted heads ---------------------------------------------------------------------------


def verification() -> tuple:
    """Prompts of toy-verification, where the result, the bracket and the target are."""
    model, task = load_model("toy-verification"), load_task("toy-verification")
    assert isinstance(task, Task)
    texts = [pair.clean for pair in task.pairs]
    words = [text.split() for text in texts]
    result = [line.index("result") + 1 for line in words]
    target = [line.index("target") + 1 for line in words]
    return model, texts, result, target


def test_the_copier_attends_from_the_result_to_the_target():
    model, texts, result, target = verification()
    found = attention_to(model, texts, result, [[t] for t in target])
    assert found.n == len(texts)
    best = top_heads(found, 2)
    assert (best[0].label, best[0].rank, best[0].of) == ("L0H2", 1, 12)
    assert best[0].value > 0.95 > 0.6 > best[1].value
    assert found.excess[0, 2] > 0.9
    assert select_heads(found, threshold=0.9) == ["L0H2"]
    table = found.to_dataframe().set_index("component")
    assert table.loc["L0H2", "value"] == pytest.approx(best[0].value)
    assert table.loc["L0H2", "chance"] < 0.3


def test_the_mover_attends_from_the_bracket_to_the_result():
    model, texts, result, _ = verification()
    found = attention_to(model, texts, [r + 1 for r in result], [[r] for r in result])
    assert top_heads(found, 1)[0].label == "L2H0"
    assert found.estimate("L2H0").low > 0.95


def test_a_previous_token_head_has_no_excess_at_other_distances():
    model, task = load_model("toy-induction"), load_task("toy-induction")
    texts = [pair.clean for pair in task.pairs]
    last = [len(text.split()) - 1 for text in texts]
    found = attention_to(model, texts, last, [[n - 3] for n in last])
    assert found.values[0, 1] < 0.01
    assert found.excess[0, 1] < 0.01
    right = attention_to(model, texts, last, [[n - 1] for n in last])
    assert right.values[0, 1] > 0.95
    assert right.excess[0, 1] > 0.9


# -- the control -----------------------------------------------------------------------------


def test_a_control_without_choice_is_exact(family_models):
    """Two keys, and exactly two other positions behind the sink."""
    model, prompt = family_models["qwen2"], PROMPTS[0]
    found = attention_to(model, [prompt, prompt], [5, 5], [(2, 3), (1, 3)], band=10)
    others = slowly(model, [prompt, prompt], [5, 5], [(1, 4), (2, 4)], "sum")
    np.testing.assert_allclose(found.control, others, atol=2e-6)
    np.testing.assert_allclose(found.excess, (found.samples - others).mean(0), atol=2e-6)
    paired = stats.sem(found.samples - others, axis=0)
    np.testing.assert_allclose(found.excess_stderr, paired, atol=2e-6)
    shared = ratio_of_means(found.samples - others)
    np.testing.assert_allclose(found.excess_interval(), (shared.low, shared.high), atol=2e-5)
    assert found.widened == 0


def test_control_positions_are_at_like_distances(family_models):
    """A previous-token head gives the control something only where the band lets the one in."""
    model, texts = (
        load_model("toy-induction"),
        [pair.clean for pair in load_task("toy-induction").pairs if len(pair.clean.split()) > 6],
    )
    last = [len(text.split()) - 1 for text in texts]
    keys = [[n - 4] for n in last]
    narrow = attention_to(model, texts, last, keys, draws=200)
    wide = attention_to(model, texts, last, keys, draws=200, band=4)
    assert narrow.control[:, 0, 1].max() < 0.01
    assert wide.control[:, 0, 1].min() > 0.05
    assert (narrow.widened, wide.widened) == (0, 0)
    forced = attention_to(model, texts[:1], last[:1], [[last[0] - 1]], draws=5, band=1.5)
    assert forced.widened == 5

    model, prompt = family_models["llama"], PROMPTS[2]
    found = attention_to(model, [prompt], [9], [[5]], draws=4000)
    alone = slowly(model, [prompt] * 6, [9] * 6, [[j] for j in (1, 2, 3, 4, 6, 7)], "sum")
    np.testing.assert_allclose(found.control[0], alone.mean(0), atol=0.005)


def test_the_control_is_seeded(family_models):
    model = family_models["llama"]

    def control(seed):
        return attention_to(model, PROMPTS, QUERIES, KEYS, draws=3, seed=seed).control

    assert np.array_equal(control(0), control(0))
    assert not np.array_equal(control(0), control(1))


def test_prompts_without_a_control_are_counted(family_models):
    model = family_models["llama"]
    found = attention_to(model, PROMPTS[:3], [3, 6, 9], [(1, 2), (3,), (4,)])
    assert np.isnan(found.control[0]).all()
    assert (found.n, found.n_controlled) == (3, 2)
    kept = attention_to(model, PROMPTS[1:3], [6, 9], [(3,), (4,)], draws=400)
    np.testing.assert_allclose(found.excess, kept.excess, atol=0.1)
    assert not np.isnan(found.excess).any()
    none = attention_to(model, PROMPTS[:1], [3], [(1, 2)])
    assert np.isnan(none.excess).all()
    assert np.isnan(none.stderr).all()
    assert none.interval()[1].max() == math.inf


# -- refusals and selection -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        ([7, 6], [(7,), (1,)], "7 is the query itself"),
        ([7, 6], [(1,), (2, 8)], "it has 7 tokens"),
        ([7, 4], [(1,), (2, 5)], "before the query"),
        ([7, 6], [(1,), (2, 2)], "each key once"),
        ([7, 6], [(1,), (-8,)], "it has 7 tokens"),
        ([9, 6], [(1,), (2,)], "it has 9 tokens"),
        ([-10, 6], [(1,), (2,)], "it has 9 tokens"),
        ([7, 6], [(1,), ()], "1 of them have no key"),
        ([7], [(1,), (2,)], "1 for 2 prompts"),
    ],
)
def test_refusals(family_models, queries, keys, message):
    with pytest.raises(InterpError, match=message):
        attention_to(family_models["llama"], PROMPTS[:2], queries, keys)


def test_prompts_without_keys_are_dropped_on_request(family_models):
    model = family_models["llama"]
    keys = [(2, 3), (), (1, 6, 8), (4, 0)]
    found = attention_to(model, PROMPTS, QUERIES, keys, drop_empty=True)
    expected = attention_to(model, PROMPTS, QUERIES, KEYS).samples[[0, 2, 3]]
    np.testing.assert_allclose(found.samples, expected, atol=2e-6)
    assert (found.n, found.dropped) == (3, 1)
    assert found.kept.tolist() == [0, 2, 3]
    assert found.n_keys.tolist() == [2, 3, 2]
    with pytest.raises(InterpError, match="no key"):
        attention_to(model, PROMPTS, QUERIES, [()] * 4, drop_empty=True)


def test_bad_options(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="reduce"):
        attention_to(model, PROMPTS, QUERIES, KEYS, reduce="most")
    for options in ({"draws": 0}, {"band": 0.5}, {"sinks": -1}):
        with pytest.raises(InterpError, match="a control"):
            attention_to(model, PROMPTS, QUERIES, KEYS, **options)
    with pytest.raises(InterpError, match="3 layers of 4 heads"):
        attention_to(model, PROMPTS, QUERIES, KEYS).estimate("L3H0")


def test_selection():
    density = np.array([[0.1, 0.5, 0.0], [0.3, 0.11, 0.9]])
    assert select_heads(density) == ["L1H2", "L0H1", "L1H0", "L1H1"]
    assert select_heads(density, threshold=0.2) == ["L1H2", "L0H1", "L1H0"]
    assert select_heads(density, most=2) == ["L1H2", "L0H1"]
    assert select_heads(density, threshold=1) == []
    for wrong in (np.zeros(3), torch.full((2, 2), math.nan).numpy()):
        with pytest.raises(InterpError, match="selecting heads"):
            select_heads(wrong)
    with pytest.raises(InterpError, match="at least one"):
        select_heads(density, most=0)
