"""Dropped rank components: by hand, on a planted adapter, and on one that does nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.deltas.rank_dropout import adapter_uncertainty, random_adapter, thinned
from interp.models.loading import plain_view
from interp.models.weight_delta import LowRank, WeightDelta
from tests.models.test_weight_delta import noise

PROMPTS = [(3, 4, 5), (5, 6, 7, 8), (9, 8)]


def adapter(model, scale=0.3) -> WeightDelta:
    """Random factors of rank 4 in every matrix inside layers."""
    return noise(model, scale, 4).only(lambda name: ".layers." in name and "norm" not in name, "a")


def test_a_draw_drops_whole_components_and_keeps_the_mean(family_models):
    delta = adapter(family_models["llama"])
    generator = torch.Generator().manual_seed(0)
    drawn = [thinned(delta, 0.5, generator) for _ in range(400)]
    name = delta.names[0]
    (part,) = delta.low_rank[name]
    parts = [part.left[:, i : i + 1] @ part.right[i : i + 1] for i in range(4)]
    ranks = [len(one.low_rank[name][0].right) for one in drawn]
    assert {*ranks} == {0, 1, 2, 3, 4}
    sums = [
        torch.zeros_like(parts[0]) + sum(2 * m * p for m, p in zip(bits, parts, strict=True))
        for bits in np.ndindex(2, 2, 2, 2)
    ]
    for one in drawn[:10]:
        changed = one.difference(name).float()
        assert any(torch.allclose(changed, x, atol=1e-5) for x in sums)
    mean = torch.stack([one.difference(name) for one in drawn]).mean(0)
    assert float((mean - part.matrix()).norm() / part.matrix().norm()) < 0.15


def test_the_spread_is_that_of_runs_one_by_one(family_models):
    model = family_models["llama"]
    delta = adapter(model)
    found = adapter_uncertainty(model, delta, PROMPTS, rate=0.4, draws=5, seed=3)
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(5):
        with thinned(delta, 0.4, generator).applied(model), torch.no_grad():
            view = plain_view(model)
            logits = [view(torch.tensor([p])).logits[0, -1].double() for p in PROMPTS]
        rows.append(torch.stack(logits).softmax(-1).numpy())
    p = np.stack(rows)  # (draws, prompts, vocabulary)
    entropy = -(p.mean(0) * np.log(p.mean(0))).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)
    each = -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(found.information, entropy - each, atol=1e-5)
    np.testing.assert_allclose(found.variance, p.var(0, ddof=1).sum(-1), rtol=1e-3)
    assert len(found.to_dataframe()) == 3


def test_prompts_that_the_adapter_reads_are_told_from_others(family_models):
    """The planted adapter reads one token's embedding alone; elsewhere it changes nothing."""
    model = family_models["llama"]
    size = len(plain_view(model).get_input_embeddings().weight)
    left = torch.zeros(size, 4)
    left[7] = 1.0
    right = torch.randn(4, model.d_model, generator=torch.Generator().manual_seed(0))
    parts = (LowRank(left=left, right=right),)
    delta = WeightDelta(
        name="planted", base=model.hash, low_rank={"model.embed_tokens.weight": parts}
    )
    prompts = [(i, 3, 7) for i in range(10, 30)] + [(i, 3, 8) for i in range(10, 30)]
    labels = [True] * 20 + [False] * 20
    found = adapter_uncertainty(model, delta, prompts, draws=6)
    for measure in ("information", "variance"):
        assert found.auc(labels, measure).mean == 1
    assert found.information[20:].max() < 1e-6 < found.information[:20].min()
    mixed = found.auc([i % 2 == 0 for i in range(40)])
    assert mixed.low < 0.5 < mixed.high


def test_a_random_adapter_is_as_large(family_models):
    delta = 0.7 * adapter(family_models["llama"])
    other = random_adapter(delta, seed=1)
    assert other.names == delta.names
    for name in delta.names:
        assert float(other.difference(name).norm()) == pytest.approx(
            float(delta.difference(name).norm()), rel=1e-4
        )
        one, two = (x.difference(name).flatten() for x in (other, delta))
        assert abs(float(torch.nn.functional.cosine_similarity(one, two, dim=0))) < 0.3
    assert random_adapter(delta, seed=1).hash == other.hash != random_adapter(delta).hash


def test_refusals(family_models):
    model = family_models["llama"]
    delta = adapter(model)
    dense = WeightDelta(name="d", base=model.hash, dense={"model.norm.weight": torch.ones(1)})
    for given, prompts, options, match in (
        (dense, PROMPTS, {}, "LoRA"),
        (replace(delta, base="another"), PROMPTS, {}, "its base is"),
        (delta, [], {}, "no prompts"),
        (delta, PROMPTS, {"rate": 0.0}, "not inside"),
        (delta, PROMPTS, {"rate": 1.0}, "not inside"),
        (delta, PROMPTS, {"draws": 1}, "one draw"),
    ):
        with pytest.raises(InterpError, match=match):
            adapter_uncertainty(model, given, prompts, **options)
    with pytest.raises(InterpError, match="LoRA"):
        random_adapter(dense)
    found = adapter_uncertainty(model, delta, PROMPTS, draws=2)
    for labels, measure, match in (
        ([True] * 3, "information", "AUC"),
        ([True, False, True], "spread", "no such measure"),
        ([True, False], "information", "label"),
    ):
        with pytest.raises(InterpError, match=match):
            found.auc(labels, measure)
