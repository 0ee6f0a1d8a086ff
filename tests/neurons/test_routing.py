"""Route shares equal a count by Hugging Face's router, and differences find what is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.neurons.routing import RouteShares, route_shares
from interp.runs.hooks import intervene
from interp.runs.kinds import exclude
from tests.families import EXPERTS, tiny

PROMPTS = [tuple((11 * i + 5 * n) % 90 + 3 for i in range(n)) for n in (9, 5, 12)]


def counted(name, places):
    """(uses, weights) of every prompt, layer and expert, token by token, by the model's router."""
    hf, layers = tiny(name), 3
    used, weighed = (np.zeros((len(PROMPTS), layers, 4)) for _ in range(2))
    for layer, block in enumerate(hf.model.layers):
        router = getattr(block.mlp, "router", None) or block.mlp.gate

        def keep(module, args, out, layer=layer):
            for token in places(len(out[2])):
                for expert, weight in zip(out[2][token], out[1][token], strict=True):
                    used[number, layer, expert] += 1
                    weighed[number, layer, expert] += float(weight)

        router.register_forward_hook(keep)
    for number, prompt in enumerate(PROMPTS):  # noqa: B007 - the hook reads it
        with torch.no_grad():
            hf(torch.tensor([prompt]))
    return used, weighed


@pytest.mark.parametrize("name", EXPERTS)
def test_equals_a_count_by_the_models_own_router(family_models, name):
    model = family_models[name]
    for positions, places in (("all", range), ("last", lambda n: [n - 1])):
        found = route_shares(model, PROMPTS, positions=positions)
        used, weighed = counted(name, places)
        assert np.array_equal(found.used, used)
        np.testing.assert_allclose(found.weighed, weighed, atol=1e-6)
        assert found.tokens.tolist() == [len(places(len(prompt))) for prompt in PROMPTS]
    whole = route_shares(model, PROMPTS, layers=[1])
    assert whole.uniform == 0.5
    np.testing.assert_allclose(whole.share.values.sum(), 2)
    np.testing.assert_allclose(whole.share.values, counted(name, range)[0][:, [1]].sum(0) / 26)
    assert whole.estimate("L1E3").mean == pytest.approx(whole.share.values[0, 3])
    assert whole.to_dataframe()["component"].tolist() == ["L1E0", "L1E1", "L1E2", "L1E3"]


def test_inside_interventions_the_changed_run_is_read(family_models):
    model = family_models["mixtral"]
    with intervene(model, exclude("L1E2")):
        found = route_shares(model, PROMPTS)
    assert not found.used[:, 1, 2].any()
    assert (found.used.sum(2) == 2 * found.tokens[:, None]).all()
    assert np.array_equal(found.used[:, 0], route_shares(model, PROMPTS).used[:, 0])


def invented(rng, n, chance):
    """Prompts of 5 to 20 tokens, each of which uses one of the experts with these chances."""
    tokens = rng.integers(5, 21, n)
    used = np.stack([[rng.multinomial(size, row) for row in chance] for size in tokens])
    used = used.astype(float)
    return RouteShares(
        used=used, weighed=used, tokens=tokens, layers=tuple(range(len(chance))), per_token=1
    )


def test_a_planted_difference_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    even = np.full((2, 4), 0.25)
    moved = even.copy()
    moved[1] = [0.55, 0.15, 0.15, 0.15]
    found = invented(rng, 20, moved).minus(invented(rng, 15, even), draws=200)
    assert found.p[1, 0] == pytest.approx(1 / 201)
    assert found.low[1, 0] < 0.3 < found.high[1, 0]
    assert found.low[1, 0] > 0.1
    assert found.p[0].min() > 0.05
    assert "L1E0" in repr(found)
    assert "L1E0" in found._repr_html_().partition("</tr>")[2].partition("</tr>")[0]
    smallest, inside = [], []
    for _ in range(60):
        null = invented(rng, 20, even).minus(invented(rng, 15, even), draws=99)
        smallest.append(null.p.min())
        inside.append((null.low <= 0) & (null.high >= 0))
    assert 0 < np.mean(np.array(smallest) <= 0.2) < 0.35
    assert 0.88 < np.mean(inside) < 0.99


def test_the_intervals_and_deals_of_prompts_of_unequal_length():
    """A share counts tokens, not prompts; deals keep whole prompts together."""
    base = invented(np.random.default_rng(0), 2, np.full((1, 2), 0.5))
    long = replace(base, used=np.array([[[90.0, 10]], [[0, 10]]]), tokens=np.array([100, 10]))
    np.testing.assert_allclose(long.share.values, [[90 / 110, 20 / 110]])
    short = replace(base, used=np.array([[[4.0, 6]], [[5, 5]]]), tokens=np.array([10, 10]))
    found = long.minus(short, draws=400)
    np.testing.assert_allclose(found.values[0, 0], 90 / 110 - 9 / 20)
    ends = [0 / 10 - 5 / 10, 90 / 100 - 4 / 10]  # one prompt of each side drawn twice
    np.testing.assert_allclose([found.low[0, 0], found.high[0, 0]], ends, atol=1e-9)


def test_figures_and_refusals(family_models):
    model = family_models["qwen2-moe"]
    found = route_shares(model, PROMPTS)
    assert found.n_experts == 4, "the shared expert is left out"
    for shown in (found, found.minus(found, draws=20)):
        figure = shown.plot()
        assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (
            "expert", "layer",
        )  # fmt: skip
        assert shown.to_dataframe().shape[0] == 12
    for label in ("L1E4", "L7E0", "L1H0", "L1.expert_out", "L1E0.router"):
        with pytest.raises(InterpError, match="give an expert"):
            found.estimate(label)
    with pytest.raises(InterpError, match="same layers"):
        found.minus(route_shares(model, PROMPTS, layers=[0]))
    with pytest.raises(InterpError, match="two prompts"):
        found.minus(route_shares(model, PROMPTS[:1]))
    with pytest.raises(InterpError, match="draws"):
        found.minus(found, draws=0)
    with pytest.raises(InterpError, match="not a mixture of experts"):
        route_shares(family_models["gpt2"], PROMPTS)
