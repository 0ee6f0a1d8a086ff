"""GLU neurons: against loops over neurons and samples, and the toys' answer key."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import mannwhitneyu
from torch.nn import functional as F

import interp.neurons.glu as glu_module
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.models.loading import load_model, wrap
from interp.neurons.glu import (
    GluActivations,
    glu_activations,
    glu_vectors,
    label_contrast,
    opposed_neurons,
    rank_glu,
    rank_null,
)
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.tasks.registry import load_task

GATED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2"]
PROMPTS = [(5, 6, 7, 8, 9, 10), (11, 12, 13), (20, 21, 22, 23, 24), (30, 31)]
PLACES = [3, -1, 2, 0]
NEURONS = ["L2N5", (0, 47), "L2N0", (1, 13)]


@pytest.fixture(scope="module")
def verification():
    return load_model("toy-verification")


@pytest.fixture(scope="module")
def verdict(verification):
    """The direction that "this" is read from, and "not" against."""
    this, no = (verification.token_id(word)[0] for word in ("this", "not"))
    return verification.decoder.unembed[this] - verification.decoder.unembed[no]


@pytest.fixture(scope="module")
def biased():
    """A Llama whose MLPs have biases and a GELU."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=20, mlp_bias=True, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return wrap(model.eval(), name="biased-llama")


def random_directions(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.n_layers, model.d_model, generator=generator)


# -- vectors and activations -----------------------------------------------------------------


def slow_factors(model, prompt, place, layer, index):
    """gate, up and what is written, from the weights of one neuron and the stream it reads."""
    block, neuron = model.decoder.blocks[layer], glu_vectors(model, layer, index)
    mid = run_with_cache(model, [prompt], sites=["resid_mid"], layers=[layer])
    x = mid[layer, "resid_mid"][0, place]
    x = x if block.ln2 is None else block.ln2(x[None])[0]
    gate, up = float(neuron.gate @ x), float(neuron.up @ x)
    gate += 0.0 if neuron.gate_bias is None else float(neuron.gate_bias)
    up += 0.0 if neuron.up_bias is None else float(neuron.up_bias)
    return gate, up


def activate(model, gate):
    gate = torch.tensor(gate)
    tanh = model.family.startswith("gemma") or model.name.startswith("biased")
    return float(F.gelu(gate, approximate="tanh") if tanh else F.silu(gate))


@pytest.mark.parametrize("name", [*GATED, "biased"])
def test_activations_equal_a_loop(family_models, biased, name):
    """From the weights of one neuron: SiLU or GELU, biases, norm before the MLP or none."""
    model = biased if name == "biased" else family_models[name]
    neurons = ["L1N5", (0, 19), "L1N0"] if name == "biased" else NEURONS
    found = glu_activations(model, PROMPTS, PLACES, neurons)
    for column, neuron in enumerate(found.neurons):
        for row, (prompt, place) in enumerate(zip(PROMPTS, PLACES, strict=True)):
            gate, up = slow_factors(model, prompt, place, neuron.layer, neuron.index)
            assert float(found.up[row, column]) == pytest.approx(up, abs=1e-4)
            gate = activate(model, gate)
            assert float(found.gate[row, column]) == pytest.approx(gate, abs=1e-4)
            assert float(found.product[row, column]) == pytest.approx(gate * up, abs=2e-4)


@pytest.mark.parametrize("name", GATED)
def test_activations_equal_the_sites(family_models, name):
    model = family_models[name]
    found = glu_activations(model, PROMPTS, PLACES, NEURONS)
    sites = ["pre", "pre_linear", "post"]
    seen = run_with_cache(model, PROMPTS, sites=sites, positions=PLACES)
    for column, neuron in enumerate(found.neurons):
        pre, linear, post = (seen[neuron.layer, site][:, neuron.index] for site in sites)
        act = model.decoder.blocks[neuron.layer].mlp.act
        torch.testing.assert_close(found.gate[:, column], act(pre), rtol=0, atol=0)
        torch.testing.assert_close(found.up[:, column], linear, rtol=0, atol=0)
        torch.testing.assert_close(found.product[:, column], post, rtol=0, atol=0)
    torch.testing.assert_close(found.gate * found.up, found.product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "biased"])
def test_neurons_sum_to_the_mlp(family_models, biased, name):
    """sum_i h_i v_i, plus the output bias, is mlp_out."""
    model = biased if name == "biased" else family_models[name]
    every = [(1, index) for index in range(model.d_mlp)]
    found = glu_activations(model, PROMPTS, PLACES, every)
    out = run_with_cache(model, PROMPTS, sites=["mlp_out"], layers=[1], positions=PLACES)
    written = found.product @ glu_vectors(model, 1).value
    bias = model.decoder.blocks[1].mlp.down.bias
    written = written if bias is None else written + bias
    torch.testing.assert_close(written, out[1, "mlp_out"], atol=2e-5, rtol=1e-4)


def test_one_neuron_is_a_row_of_the_layer(family_models, biased):
    for model in (family_models["qwen2"], biased):
        layer, one = glu_vectors(model, 1), glu_vectors(model, 1, 7)
        assert layer.gate.shape == (model.d_mlp, model.d_model)
        for part in ("gate", "up", "value"):
            assert torch.equal(getattr(layer, part)[7], getattr(one, part))
    assert torch.equal(layer.up_bias[7], one.up_bias)


def test_activations_of_a_changed_run(verification):
    texts = ["<bos> target 3 ; result 3 (", "<bos> target 4 ; result 3 ("]
    plain = glu_activations(verification, texts, [5, 5], ["L1N3"])
    assert plain.product[:, 0].tolist() == pytest.approx([16, 0], abs=0.1)
    with intervene(verification, [zero("L0H2")]):
        changed = glu_activations(verification, texts, [5, 5], ["L1N3"])
    assert abs(float(changed.product[0, 0]) - 16) > 1
    with intervene(verification, [zero("L1N3")]):
        silenced = glu_activations(verification, texts, [5, 5], ["L1N3"])
    assert silenced.product.abs().max() == 0
    assert torch.equal(silenced.gate, plain.gate)


# -- ranking -----------------------------------------------------------------------------------


def slow_rank(model, directions, layers, mode, k, metric, sign):
    """The recipe, a neuron at a time: {neuron: (score, direction layer)}, best kept, in order."""
    best = {}
    for p in layers:
        for layer in range(model.n_layers):
            if layer != p if mode == "same_layer" else layer > p:
                continue
            scores = []
            for index, value in enumerate(model.decoder.blocks[layer].mlp.down.weight):
                score = float(value @ directions[p])
                if metric == "cosine":
                    score /= float(value.norm() * directions[p].norm())
                scores.append((sign * score, index))
            for score, index in sorted(scores, reverse=True)[:k]:
                if score > best.get((layer, index), (-np.inf, 0))[0]:
                    best[layer, index] = score, p
    return sorted(best.items(), key=lambda entry: -entry[1][0])


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["same_layer", "all_below"])
@pytest.mark.parametrize("sign", [1, -1])
def test_ranking_equals_a_loop(family_models, mode, metric, sign):
    model = family_models["qwen2"]
    directions = random_directions(model)
    found = rank_glu(model, directions, layers=[1, 2], mode=mode, k=7, metric=metric, sign=sign)
    slow = slow_rank(model, directions, [1, 2], mode, 7, metric, sign)
    assert [(n.layer, n.index) for n in found] == [neuron for neuron, _ in slow]
    assert [n.direction_layer for n in found] == [p for _, (_, p) in slow]
    assert [sign * n.score for n in found] == pytest.approx([s for _, (s, _) in slow], abs=1e-5)
    assert len({(n.layer, n.index) for n in found}) == len(found)
    if mode == "same_layer":
        assert len(found) == 14
        assert all(n.layer == n.direction_layer for n in found)
    else:
        assert {n.layer for n in found} == {0, 1, 2}
        assert len(found) < 5 * 7
    cut = rank_glu(
        model, directions, layers=[1, 2], mode=mode, k=7, metric=metric, sign=sign, first=5
    )
    assert cut == found[:5]


def test_forms_of_directions_agree(family_models):
    model = family_models["llama"]
    one = random_directions(model)[0]
    forms = [one, one.repeat(3, 1), dict.fromkeys(range(3), one)]
    assert len({tuple(rank_glu(model, form, k=3)) for form in forms}) == 1
    only = rank_glu(model, {1: one}, k=3)
    assert only == rank_glu(model, one, layers=[1], k=3)
    assert {n.layer for n in only} == {1}


def test_equality_neuron_is_found_by_the_verdict(verification, verdict):
    for mode in ("same_layer", "all_below"):
        first, second = rank_glu(verification, verdict, mode=mode, k=4)[:2]
        assert (first.layer, first.index) == (1, 3)
        assert first.score > 0.7
        assert abs(second.score) < 0.3
    last = rank_glu(verification, -verdict, k=4, sign=-1)[0]
    assert (last.layer, last.index) == (1, 3)


def test_a_planted_direction_beats_turned_ones_and_a_random_one_does_not(family_models):
    model = family_models["llama"]
    values = [glu_vectors(model, layer).value for layer in range(3)]
    planted = {layer: rows[:3].sum(0) for layer, rows in enumerate(values)}
    options = {"k": 3, "draws": 200}
    found = rank_null(model, planted, **options)
    assert found.share < 0.01
    assert found.selected > found.high
    flipped = {layer: -w for layer, w in planted.items()}
    assert rank_null(model, flipped, sign=-1, **options).share < 0.01
    by_chance = [rank_null(model, random_directions(model, seed), **options) for seed in range(8)]
    assert sum(null.share > 0.1 for null in by_chance) >= 5
    # The best of many neurons: far above zero for a random direction too.
    assert all(null.low > 0.15 for null in by_chance)


@pytest.mark.parametrize("mode", ["same_layer", "all_below"])
def test_null_selects_as_the_ranking_does(family_models, monkeypatch, mode):
    monkeypatch.setattr(glu_module, "BLOCK", 500)
    model = family_models["llama"]
    directions = random_directions(model)
    options = {"mode": mode, "k": 5, "first": 8, "layers": [0, 2], "sign": -1, "metric": "dot"}
    null = rank_null(model, directions, draws=30, seed=1, **options)
    found = rank_glu(model, directions, **options)
    assert null.selected == pytest.approx(-np.mean([n.score for n in found]), rel=1e-5)
    assert null.draws == 30
    assert null == rank_null(model, directions, draws=30, seed=1, **options)
    monkeypatch.setattr(glu_module, "BLOCK", 2**24)
    whole = rank_null(model, directions, draws=30, seed=1, **options)
    assert whole.mean == pytest.approx(null.mean, rel=1e-5)


def test_turned_directions_keep_lengths_and_angles(family_models, monkeypatch):
    model, kept = family_models["llama"], []
    pool = glu_module._pool
    monkeypatch.setattr(
        glu_module, "_pool", lambda m, turned, *a: kept.append(turned) or pool(m, turned, *a)
    )
    directions = random_directions(model)
    directions[2] = 2 * directions[0]
    rank_null(model, directions, metric="dot", k=2, draws=100)
    (turned,) = kept
    gram = directions @ directions.T
    torch.testing.assert_close(turned @ turned.mT, gram.expand(101, 3, 3), rtol=1e-4, atol=1e-3)
    # No preferred side: the mean over draws vanishes in every coordinate.
    error = turned[1:].std(0) / 10
    assert float((turned[1:].mean(0) / error).abs().max()) < 5


# -- opposed_neurons -----------------------------------------------------------------------


@pytest.mark.parametrize("block", [3, 2**24])
def test_antipodes_equal_a_loop(family_models, monkeypatch, block):
    monkeypatch.setattr(glu_module, "BLOCK", block)
    model = family_models["llama"]
    left = [(0, 1), (2, 5), (1, 7), (0, 40)]
    right = [(1, 2), (0, 3), (2, 6), (1, 7), (0, 9), (2, 10)]
    found = opposed_neurons(model, left, right, k=9, draws=5)
    values = [glu_vectors(model, layer).value for layer in range(3)]
    slow = {
        (a, b): float(F.cosine_similarity(values[a[0]][a[1]], values[b[0]][b[1]], dim=0))
        for a in left
        for b in right
    }
    order = sorted(slow, key=slow.__getitem__)[:9]
    assert [((a.layer, a.index), (b.layer, b.index)) for a, b, _ in found.pairs] == order
    assert [c for *_, c in found.pairs] == pytest.approx([slow[pair] for pair in order], abs=1e-6)
    lowest = [min(slow[a, b] for b in right) for a in left]
    assert found.cosine.tolist() == pytest.approx(lowest, abs=1e-6)
    assert found.null.selected == pytest.approx(-np.mean(lowest), abs=1e-6)


@pytest.fixture(scope="module")
def opposed():
    """A Llama in which neuron i + 20 of layer 1 writes against neuron i of layer 0."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=60,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    down = [layer.mlp.down_proj.weight for layer in model.model.layers]
    down[1].data[:, 20:30] = -3 * down[0].data[:, :10] + 0.01 * torch.randn(32, 10)
    return wrap(model.eval(), name="opposed")


@pytest.mark.long
def test_planted_antipodes_against_their_null(opposed):
    left, right = [f"L0N{i}" for i in range(10)], [f"L1N{i}" for i in range(20, 30)]
    found = opposed_neurons(opposed, left, right, draws=200)
    assert {(a.index, b.index) for a, b, _ in found.pairs} == {(i, i + 20) for i in range(10)}
    assert found.null.share < 0.01
    assert found.null.low > 0.1  # opposite by chance: that is why there is a null
    others = opposed_neurons(opposed, [(0, i) for i in range(10, 20)], right, draws=200)
    assert others.null.share > 0.05


def test_opposition_by_selection_goes_with_the_direction(family_models):
    """Neurons selected along w and -w are opposite; without w they are as others are."""
    model = family_models["llama"]
    w = random_directions(model)[0]
    valid, invalid = (rank_glu(model, w, k=12, sign=sign) for sign in (1, -1))
    assert opposed_neurons(model, valid, invalid).null.share < 0.01
    both = torch.stack([w, -w])
    assert opposed_neurons(model, valid, invalid, without=both).null.share > 0.05
    alone, doubled = (opposed_neurons(model, valid, invalid, without=x, draws=3) for x in (w, both))
    torch.testing.assert_close(alone.cosine, doubled.cosine)
    zero_removed = opposed_neurons(
        model, valid, invalid, without=torch.zeros(model.d_model), draws=3
    )
    torch.testing.assert_close(
        zero_removed.cosine, opposed_neurons(model, valid, invalid, draws=3).cosine
    )


# -- contrast ----------------------------------------------------------------------------------


def planted(gate, up):
    neurons = tuple(Component(0, "post", i) for i in range(gate.shape[1]))
    return GluActivations(neurons=neurons, gate=gate, up=up, product=gate * up)


@pytest.fixture
def noisy():
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    labels = [1] * 20 + [0] * 30
    return planted(gate + 1, up + 0.5 * gate), labels


def test_contrast_equals_a_loop(noisy):
    activations, labels = noisy
    found = label_contrast(activations, labels)
    assert found.n == (30, 20)
    sides = [np.array(labels) == c for c in (0, 1)]
    for i in range(6):
        a, b = activations.gate[:, i].numpy(), activations.up[:, i].numpy()
        off, on = ((a * b)[side] for side in sides)
        means = found.mean[:, i].tolist()
        assert means == pytest.approx([off.mean(), on.mean()], abs=1e-12)
        assert float(found.difference[i]) == pytest.approx(on.mean() - off.mean(), abs=1e-12)
        welch = np.sqrt(on.var(ddof=1) / 20 + off.var(ddof=1) / 30)
        assert float(found.stderr[i]) == pytest.approx(welch, rel=1e-9)
        auc = mannwhitneyu(on, off).statistic / 600
        assert float(found.auc[i]) == pytest.approx(auc, abs=1e-12)
        wins = (on[:, None] > off).astype(float)
        delong = np.sqrt(wins.mean(1).var(ddof=1) / 20 + wins.mean(0).var(ddof=1) / 30)
        assert float(found.auc_stderr[i]) == pytest.approx(delong, rel=1e-9)
        (a0, a1), (b0, b1) = ([x[side].mean() for side in sides] for x in (a, b))
        c0, c1 = (np.cov(a[side], b[side], ddof=0)[0, 1] for side in sides)
        parts = [(a1 - a0) * (b0 + b1) / 2, (b1 - b0) * (a0 + a1) / 2, c1 - c0]
        assert found.parts[:, i].tolist() == pytest.approx(parts, abs=1e-12)


def test_parts_sum_to_the_difference(noisy, family_models):
    activations, labels = noisy
    found = label_contrast(activations, labels)
    torch.testing.assert_close(found.parts.sum(0), found.difference, rtol=0, atol=1e-12)
    model = family_models["gemma2"]
    real = glu_activations(model, PROMPTS, PLACES, NEURONS)
    found = label_contrast(real, [True, False, True, False])
    torch.testing.assert_close(found.parts.sum(0), found.difference, rtol=0, atol=1e-12)
    product = real.product.double()
    plain = product[[0, 2]].mean(0) - product[[1, 3]].mean(0)
    torch.testing.assert_close(found.difference, plain, rtol=0, atol=1e-5)


def weighted_parts(a, b, sides, weights):
    """The three parts with weighted means, weights summing to 1 within each class."""
    (a0, a1), (b0, b1), (m0, m1) = (
        [float((x[side] * w).sum()) for side, w in zip(sides, weights, strict=True)]
        for x in (a, b, a * b)
    )
    gate, up = (a1 - a0) * (b0 + b1) / 2, (b1 - b0) * (a0 + a1) / 2
    return np.array([gate, up, m1 - a1 * b1 - m0 + a0 * b0])


def test_errors_of_the_parts_equal_numerical_influences(noisy):
    """Each sample's weight is nudged: the parts' derivatives give their errors."""
    activations, labels = noisy
    found = label_contrast(activations, labels)
    sides = [np.array(labels) == c for c in (0, 1)]
    for i in range(6):
        a, b = activations.gate[:, i].numpy(), activations.up[:, i].numpy()
        even = [np.full(side.sum(), 1 / side.sum()) for side in sides]
        variance = np.zeros(3)
        for c, side in enumerate(sides):
            slopes = []
            for sample in range(side.sum()):
                ends = []
                for nudge in (1e-4, -1e-4):
                    weights = list(even)
                    weights[c] = (1 - nudge) * even[c]
                    weights[c][sample] += nudge
                    ends.append(weighted_parts(a, b, sides, weights))
                slopes.append((ends[0] - ends[1]) / 2e-4)
            variance += np.var(slopes, axis=0, ddof=1) / side.sum()
        assert found.parts_stderr[:, i].tolist() == pytest.approx(np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("part", range(3))
def test_each_planted_part_is_named(part):
    """A difference planted in the gate, in the up factor, or in how they go together."""
    generator = torch.Generator().manual_seed(part)
    n = 400
    a, b = torch.randn(2, n, 1, generator=generator, dtype=torch.float64) * 0.3
    labels = torch.arange(n) % 2
    on = labels[:, None].double()
    gate, up = [(a + 2 * on, b + 1), (a + 1, b + 2 * on), (a, on * a * 10 + b)][part]
    found = label_contrast(planted(gate, up), labels)
    assert int(found.parts.abs().argmax()) == part
    z = found.parts[:, 0] / found.parts_stderr[:, 0]
    assert float(z[part]) > 5
    rest = [i for i in range(3) if i != part]
    assert float(z[rest].abs().max()) < 3.5
    shuffled = labels[torch.randperm(n, generator=generator)]
    nothing = label_contrast(planted(gate, up), shuffled)
    assert float((nothing.difference / nothing.stderr).abs().max()) < 3.5
    assert float((nothing.auc - 0.5).abs().max()) < 0.15


def test_ties_count_half():
    gate = torch.tensor([[1.0], [1.0], [1.0], [1.0], [0.0]])
    found = label_contrast(planted(gate, torch.ones(5, 1)), [1, 1, 0, 0, 0])
    assert float(found.auc) == pytest.approx((4 * 0.5 + 2) / 6)


def test_contrast_of_the_equality_neuron(verification):
    """It tells valid from invalid perfectly; a neuron that was not planted does not."""
    pairs = load_task("toy-verification", verification).pairs
    prompts = [pair.clean for pair in pairs] + [pair.corrupted for pair in pairs]
    labels = [1] * len(pairs) + [0] * len(pairs)
    result = [len(prompt.split()) - 2 for prompt in prompts]
    found = label_contrast(glu_activations(verification, prompts, result, ["L1N3", "L1N0"]), labels)
    assert float(found.auc[0]) == 1
    assert float(found.difference[0]) == pytest.approx(16, abs=1)
    assert 0.2 < float(found.auc[1]) < 0.8


# -- refusals ----------------------------------------------------------------------------------


def test_models_without_a_gate_or_known_parts_are_refused(family_models, verification):
    opaque = replace(verification, decoder=None, engine_reason="spread over several devices")
    for model, reason in (
        (family_models["gpt2"], "no gate"),
        (family_models["neox"], "no gate"),
        (opaque, "spread over several devices"),
    ):
        w = torch.ones(model.d_model)
        for call in (
            lambda m: glu_vectors(m, 0),
            lambda m: glu_activations(m, [(1, 2)], [0], ["L0N0"]),
            lambda m, w=w: rank_glu(m, w, k=2),
            lambda m, w=w: rank_null(m, w, k=2),
            lambda m: opposed_neurons(m, ["L0N0"], ["L0N1"], k=1),
        ):
            with pytest.raises(InterpError, match=reason):
                call(model)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_post_norms_are_refused_where_v_stands_for_a_write(family_models, name):
    model = family_models[name]
    with pytest.raises(InterpError, match="no summand"):
        rank_glu(model, torch.ones(model.d_model), k=2)
    with pytest.raises(InterpError, match="no summand"):
        opposed_neurons(model, ["L0N0"], ["L0N1"], k=1)


def test_a_pair_alone_is_one_neuron(family_models):
    model = family_models["llama"]
    one = glu_activations(model, PROMPTS, "last", (1, 3))
    torch.testing.assert_close(
        one.product, glu_activations(model, PROMPTS, "last", ["L1N3"]).product
    )
    with pytest.raises(InterpError, match="names no neuron"):
        glu_activations(model, PROMPTS, "last", [1, 3])


def test_bad_input_is_refused(family_models, noisy):
    model = family_models["llama"]
    w = random_directions(model)
    for neurons in ([], ["L0N0", (0, 0)], ["L0H0"], ["L0.post"], ["L0N0.pre"]):
        with pytest.raises(InterpError, match="each once"):
            glu_activations(model, PROMPTS, PLACES, neurons)
    for neuron in ("L9N0", (0, 48)):
        with pytest.raises(InterpError, match="choose from these"):
            glu_activations(model, PROMPTS, PLACES, [neuron])
    with pytest.raises(InterpError, match="choose from these"):
        glu_vectors(model, 0, 48)
    with pytest.raises(InterpError, match="inside the prompt"):
        glu_activations(model, PROMPTS, [9, 0, 0, 0], ["L0N0"])
    refused = {
        "all": "not one per prompt",
        (-1,) * 5: "5 for 4 prompts",
        (0,) * 3: "3 for 4 prompts",
    }
    for places, message in refused.items():
        with pytest.raises(InterpError, match=message):
            glu_activations(model, PROMPTS, places, ["L0N0"])
    with pytest.raises(InterpError, match="over the budget"):
        glu_activations(model, PROMPTS, PLACES, ["L0N0"], budget_gb=1e-9)
    bad = [w[:2], torch.zeros(3, 32), torch.full((32,), float("nan")), torch.ones(5), {}]
    for directions in bad:
        with pytest.raises(InterpError, match="the direction of layer 0"):
            rank_glu(model, directions, k=2)
    with pytest.raises(InterpError, match="the direction of layer 0"):
        rank_glu(model, {1: w[1]}, layers=[0, 1], k=2)
    for options in ({"k": 0}, {"k": 49}, {"k": 2, "sign": 0}, {"k": 2, "first": 7}):
        with pytest.raises(InterpError, match="use k in that range|choose fewer"):
            rank_glu(model, w, **options)
    with pytest.raises(InterpError, match="same_layer"):
        rank_glu(model, w, k=2, mode="same")
    with pytest.raises(InterpError, match="cosine"):
        rank_glu(model, w, k=2, metric="cos")
    with pytest.raises(InterpError, match="1 x 1 pairs"):
        opposed_neurons(model, ["L0N0"], ["L0N1"])
    with pytest.raises(InterpError, match="projecting out"):
        opposed_neurons(model, ["L0N0"], ["L0N1"], k=1, without=torch.ones(5))
    activations, labels = noisy
    for wrong in (labels[:-1], [1] + [0] * 49, ["valid"] * 50, [2] * 25 + [0] * 25):
        with pytest.raises(InterpError, match="labels"):
            label_contrast(activations, wrong)


def test_a_neuron_by_its_label(family_models):
    model = family_models["llama"]
    assert torch.equal(glu_vectors(model, "L1N7").value, glu_vectors(model, 1, 7).value)
    for label, message in (("L1N9999", "neurons 0 to"), ("L1H2", "give neurons such as")):
        with pytest.raises(InterpError, match=message):
            glu_vectors(model, label)
    with pytest.raises(InterpError, match="whole number"):
        glu_vectors(model, "L1N7", 7)
