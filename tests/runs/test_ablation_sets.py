"""Growing sets of ablated components: a slow loop, planted pairs, and what is refused."""

from itertools import combinations

import numpy as np
import pytest

import interp
from interp.core.errors import InterpError
from interp.models.loading import load_model
from interp.runs.ablation_sets import (
    AblatedSets,
    ablation_curve,
    greedy_order,
    smallest_sets,
    smallest_size,
)
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.stored_runs import site_values
from interp.tasks.registry import load_task
from tests.families import random_task

ORDER = ["L1H2", "L0H1", "L2H3", "L0H0"]


def prompts_of(task):
    return [pair.clean for pair in task.pairs]


def looped(sets, labels):
    """disabled and log-odds by hooks, all prompts anew for one set."""
    made = make_ablation(sets.model, labels, sets.kind, values=sets.values)
    with intervene(sets.model, made.last(sets.where)):
        logs = sets.model.last_logits(sets.prompts).double().log_softmax(-1)
    odds = logs[:, sets.tokens[0]] - logs[:, sets.tokens[1]]
    return (logs.argmax(-1) == sets.tokens[1]).numpy(), odds.numpy()


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def sets(request, family_models):
    """A family's model; the failure's token is what it says most often with a head zeroed."""
    model, prompts = family_models[request.param], prompts_of(random_task())
    with intervene(model, [interp.runs.kinds.zero("L1H2")]):
        top = model.last_logits(prompts).argmax(-1).tolist()
    return AblatedSets(model=model, prompts=prompts, tokens=(5, max(top, key=top.count)), where=2)


def test_curve_and_greedy_order_are_those_of_a_slow_loop(sets):
    curve = ablation_curve(sets, ORDER, draws=2, sizes=[2], seed=3)
    assert curve.order == tuple(ORDER)
    for size in range(1, 5):
        disabled, odds = looped(sets, ORDER[:size])
        assert curve.disabled[size - 1].mean == disabled.mean()
        assert curve.disabled[size - 1].n == len(sets.prompts)
        assert curve.log_odds[size - 1].mean == pytest.approx(odds.mean(), abs=1e-4)
    assert max(share.mean for share in curve.disabled) > 0
    assert list(curve.null) == [2]
    drawn = interp.runs.kinds.random_like(sets.model, ORDER[:2], 2, seed=3)
    assert curve.null[2].tolist() == [looped(sets, labels)[0].mean() for labels in drawn]
    left, slow = list(ORDER), []
    while left:
        best = min(left, key=lambda label: looped(sets, [*slow, label])[1].mean())
        slow.append(left.pop(left.index(best)))
    assert greedy_order(sets, ORDER, 4) == slow
    assert greedy_order(sets, ORDER, 2) == slow[:2]
    drawn = np.array([1, 1, 3])
    first = min(ORDER, key=lambda label: looped(sets, [label])[1][drawn].mean())
    assert greedy_order(sets, ORDER, 1, drawn=drawn) == [first]


def test_values_other_than_zero(family_models):
    model, prompts = family_models["llama"], prompts_of(random_task())
    values = site_values(model, prompts, [(0, "z"), (1, "z"), (2, "z")], last=1)
    values = {at: value.mean(0, keepdim=True) for at, value in values.items()}
    sets = AblatedSets(model=model, prompts=prompts, tokens=(5, 6), kind="mean", values=values)
    curve = ablation_curve(sets, ORDER)
    for size in range(1, 5):
        _, odds = looped(sets, ORDER[:size])
        assert curve.log_odds[size - 1].mean == pytest.approx(odds.mean(), abs=1e-4)


def toy_sets(name):
    model, task = load_model(name), load_task(name)
    yes, no = (model.single_token(word) for word in ("yes", "no"))
    prompts = [model.tokenize(pair.clean).tokens for pair in task.pairs]
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(model.n_heads)]
    return AblatedSets(model=model, prompts=prompts, tokens=(yes, no), where="all"), heads


def test_two_that_stand_in_for_each_other_are_found_together():
    """toy-or: either detector is enough, so that only both together are needed."""
    sets, heads = toy_sets("toy-or")
    curve = ablation_curve(sets, ["L0H1", "L1H0", "L0H2"], draws=5)
    assert [share.mean for share in curve.disabled] == [0, 0, 1]
    assert curve.smallest == 3
    assert all((drawn == 0).all() for size, drawn in curve.null.items() if size < 3)
    table = curve.to_dataframe()
    assert table["added"].tolist() == ["L0H1", "L1H0", "L0H2"]
    assert table["disabled"].tolist() == [0, 0, 1]
    assert smallest_sets(sets, heads) == [("L0H1", "L0H2")]
    assert ablation_curve(sets, greedy_order(sets, ["L0H2", "L0H1"], 2)).smallest == 2
    assert smallest_sets(sets, [head for head in heads if head != "L0H1"]) == []
    disabled, _ = sets(list(combinations(heads, 2)))
    pairs = [pair for pair, row in zip(combinations(heads, 2), disabled, strict=True) if row.all()]
    assert pairs == [("L0H1", "L0H2")]


def test_either_of_two_that_are_both_needed_is_enough():
    sets, heads = toy_sets("toy-and")
    assert set(smallest_sets(sets, heads)) == {("L0H1",), ("L0H2",)}
    order = greedy_order(sets, heads, 3)
    assert order[0] in ("L0H1", "L0H2")
    assert ablation_curve(sets, order).smallest == 1


def test_the_smallest_set_is_of_the_prompts_drawn():
    def sets(tried):
        disabled = np.array([["L0H1" in labels, "L0H2" in labels] for labels in tried])
        return disabled, -disabled.astype(float)

    heads = ["L0H0", "L0H1", "L0H2"]
    assert smallest_sets(sets, heads) == [("L0H1", "L0H2")]
    assert smallest_sets(sets, heads, drawn=np.array([1, 1])) == [("L0H2",)]


def test_each_set_is_run_once(monkeypatch):
    sets, heads = toy_sets("toy-and")
    ran, inner = [], interp.runs.ablation_sets.ablate
    monkeypatch.setattr(
        interp.runs.ablation_sets, "ablate", lambda *a, **k: ran.extend(a[2]) or inner(*a, **k)
    )
    greedy_order(sets, heads, 2)
    assert len(ran) == 8 + 7
    ablation_curve(sets, ["L0H1", "L0H2"])
    sets([["L0H2", "L0H1"]])
    assert len(ran) <= 8 + 7 + 2


def test_the_least_size_that_is_enough():
    assert smallest_size([0.2, 0.94, 0.95, 0.9]) == 3
    assert smallest_size([0.2, 0.94], enough=0.9) == 2
    assert smallest_size([0.2]) is None


def test_bad_input(family_models):
    model, prompts = family_models["llama"], prompts_of(random_task())
    sets = AblatedSets(model=model, prompts=prompts, tokens=(5, 6))
    for bad in (
        lambda: AblatedSets(model=model, prompts=[], tokens=(5, 6)),
        lambda: AblatedSets(model=model, prompts=prompts, tokens=(5, 5)),
        lambda: ablation_curve(sets, []),
        lambda: ablation_curve(sets, ["L0H1", "L0H1"]),
        lambda: ablation_curve(sets, ["L0H1"], draws=2, sizes=[2]),
        lambda: ablation_curve(sets, ["L7H1"]),
        lambda: greedy_order(sets, [], 2),
        lambda: greedy_order(sets, ["L0H1", "L0H1"], 2),
        lambda: greedy_order(sets, ["L0H1"], 0),
        lambda: smallest_sets(sets, ["L0H1", "L0H1"]),
        lambda: smallest_sets(sets, ORDER, limit=5),
        lambda: smallest_sets(sets, []),
    ):
        with pytest.raises(InterpError):
            bad()
