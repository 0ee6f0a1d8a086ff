"""Heads to GLU neurons: against explicit loops, captured runs, and the planted copier."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from interp.core.errors import InterpError
from interp.models.loading import load_model
from interp.neurons.from_heads import head_glu_scores, head_weights
from interp.neurons.silencing import activation_delta
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import add, mean, resample, zero
from interp.tasks.registry import load_task

PROMPTS = [
    (5, 6, 7, 8, 9, 10),
    (11, 12, 13, 14),
    (21, 22, 23, 24, 25),
    (31, 32, 33, 34, 35, 36),
    (41, 42, 43),
]
AT = [4, 3, 2, 5, 1]
GATED = ["llama", "mistral", "qwen2", "qwen3"]
POST_NORMS = ["gemma2", "gemma3", "olmo2"]
HEADS = ["L0H0", "L1H3", "L2H1"]
NEURONS = ["L1N5", "L0N7", "L2N0", "L1N40"]


@pytest.fixture(params=GATED)
def gated(request, family_models):
    return family_models[request.param]


def heads_of(model):
    return [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]


def row(model, label, part):
    """A neuron's weight row and bias, in float64."""
    layer, number = (int(x) for x in label[1:].split("N"))
    linear = getattr(model.decoder.blocks[layer].mlp, part)
    bias = 0.0 if linear.bias is None else float(linear.bias[number])
    return linear.weight[:, number].double(), bias


# -- weights ----------------------------------------------------------------------------------


def test_weights_make_the_captured_head_outputs(family):
    """pattern (x W_V + b_V) is z; z W_O over all heads, with the output bias, is attn_out."""
    seen = run_with_cache(
        family, PROMPTS[:1], sites=["resid_pre", "q", "k", "v", "pattern", "z", "attn_out"]
    )
    for layer, block in enumerate(family.decoder.blocks):
        stream, attn = seen[layer, "resid_pre"][0], block.attn
        x = stream if block.ln1 is None else block.ln1(stream)
        total = torch.zeros_like(stream) if attn.o.bias is None else attn.o.bias
        for head in range(attn.n_heads):
            w = head_weights(family, f"L{layer}H{head}")
            group = head * attn.n_kv_heads // attn.n_heads
            made = {}
            for name, site, at in (("Q", "q", head), ("K", "k", group), ("V", "v", group)):
                bias = getattr(w, f"b_{name}")
                made[site] = x @ getattr(w, f"W_{name}") + (0 if bias is None else bias)
                torch.testing.assert_close(
                    made[site], seen[layer, site][0, :, at], atol=2e-5, rtol=1e-4
                )
            z = seen[layer, "pattern"][0, :, head] @ made["v"]
            torch.testing.assert_close(z, seen[layer, "z"][0, :, head], atol=2e-5, rtol=1e-4)
            total = total + z @ w.W_O
        out = total if block.ln1_post is None else block.ln1_post(total)
        torch.testing.assert_close(out, seen[layer, "attn_out"][0], atol=5e-5, rtol=1e-4)


def test_folded_weights_read_the_stream(family):
    """The same projections from the stream divided by its scale alone."""
    seen = run_with_cache(family, PROMPTS[:1], sites=["resid_pre", "q", "k", "v"], layers=[1])
    stream, norm = seen[1, "resid_pre"][0], family.decoder.blocks[1].ln1
    if norm is None:
        scaled = stream
    else:
        spread = stream - stream.mean(-1, keepdim=True) if norm.centred else stream
        scaled = stream / (spread.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    for head in range(family.n_heads):
        w = head_weights(family, f"L1H{head}", fold_norm=True)
        group = head * family.n_kv_heads // family.n_heads
        for name, site, at in (("Q", "q", head), ("K", "k", group), ("V", "v", group)):
            bias = getattr(w, f"b_{name}")
            made = scaled @ getattr(w, f"W_{name}") + (0 if bias is None else bias)
            torch.testing.assert_close(made, seen[1, site][0, :, at], atol=5e-5, rtol=1e-4)
    if norm is not None:
        plain = head_weights(family, "L1H0")
        assert not torch.allclose(plain.W_V, head_weights(family, "L1H0", fold_norm=True).W_V)


# -- modes that read weights -------------------------------------------------------------------


def test_diag_is_the_released_einsum(family_models):
    model = family_models["qwen2"]
    found = head_glu_scores(model, HEADS, NEURONS, mode="diag")
    attn = [block.attn for block in model.decoder.blocks]
    layers, heads, d_head, d = 3, 4, 8, 32
    w_o = torch.stack([a.o.weight.view(heads, d_head, d) for a in attn])
    w_v = torch.stack([a.v.weight.view(d, 2, d_head).repeat_interleave(2, 1) for a in attn])
    w_v = w_v.transpose(1, 2)
    assert w_v.shape == (layers, heads, d, d_head)
    ov = torch.einsum("lnhm,lnmh->lnm", w_o, w_v).double()
    for j, head in enumerate(HEADS):
        vector = ov[int(head[1]), int(head[3])]
        expected = []
        for i, neuron in enumerate(NEURONS):
            if int(neuron[1]) < int(head[1]):
                assert math.isnan(found.values[i, j])
                continue
            gate, up = (float(vector @ row(model, neuron, part)[0]) for part in ("gate", "up"))
            expected.append(gate / (1 + math.exp(-gate)) * up)
            assert found.values[i, j] == pytest.approx(expected[-1], rel=1e-6)
            assert found.gate[i, j] == pytest.approx(gate, rel=1e-6)
        assert found.head_values[j] == pytest.approx(np.mean(expected))
        if len(expected) > 1:
            assert found.head_stderr[j] == pytest.approx(stats.sem(expected))
    assert found.excluded.tolist() == [0, 1, 3]
    assert found.n is None
    assert found.samples == {}


def test_ov_is_the_whole_composition(gated):
    """Against d_model x d_model matrices, entry by entry."""
    found = head_glu_scores(gated, HEADS, NEURONS, mode="ov")
    other = head_glu_scores(gated, HEADS, NEURONS, mode="frobenius")
    np.testing.assert_allclose(found.values, other.values * math.sqrt(32))
    np.testing.assert_allclose(found.head_values, other.head_values * math.sqrt(32))
    for j, head in enumerate(HEADS):
        layer = int(head[1])
        plain, block = head_weights(gated, head), gated.decoder.blocks[layer]
        whole = (block.ln1.weight[:, None] * plain.W_V @ plain.W_O).double()
        for i, neuron in enumerate(NEURONS):
            if int(neuron[1]) < layer:
                continue
            squares = []
            for part in ("gate", "up"):
                reads = row(gated, neuron, part)[0]
                reads = gated.decoder.blocks[int(neuron[1])].ln2.weight.double() * reads
                total = sum(float(line @ reads) ** 2 for line in whole)
                squares.append(total / float(whole.pow(2).sum() * reads.pow(2).sum()))
            assert other.gate[i, j] == pytest.approx(math.sqrt(squares[0]), rel=1e-5)
            assert other.up[i, j] == pytest.approx(math.sqrt(squares[1]), rel=1e-5)
            assert other.values[i, j] == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-5)


def test_ov_of_random_neurons_is_chance(gated):
    every = [f"L2N{i}" for i in range(gated.d_mlp)]
    found = head_glu_scores(gated, heads_of(gated)[:4], every, mode="ov")
    np.testing.assert_allclose((found.values**2).mean(), 1, atol=0.15)


def test_ov_of_the_copier_by_hand():
    """Its OV map is one outer product, size to target: |OV r| / |OV| is |r_target|."""
    model = load_model("toy-verification")
    found = head_glu_scores(model, ["L0H2", "L0H3"], ["L1N3"], mode="frobenius")
    gate = np.array([256, -256, 400, (16 - 400) / 256])  # target, size, number, const
    up = np.array([-8, 8, 1 / 256])
    assert found.gate[0, 0] == pytest.approx(256 / np.linalg.norm(gate), rel=1e-5)
    assert found.up[0, 0] == pytest.approx(8 / np.linalg.norm(up), rel=1e-5)
    assert found.values[0, 1] == 0  # an unplanted head writes nothing a planted neuron reads


# -- layer order and refusals ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["diag", "ov", "frobenius", "activation"])
def test_layer_order(family_models, mode):
    model = family_models["llama"]
    options = {"prompts": PROMPTS, "positions": AT} if mode == "activation" else {}
    neurons = ["L0N1", "L1N1", "L2N1"]
    found = head_glu_scores(model, HEADS, neurons, mode=mode, **options)
    assert found.reached.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    for array in (found.values, found.gate, found.up):
        assert (np.isnan(array) == ~found.reached).all()
    assert found.excluded.tolist() == [0, 1, 2]
    for j in range(3):
        assert found.head_values[j] == pytest.approx(found.values[j:, j].mean())
    early = head_glu_scores(model, HEADS, ["L0N1"], mode=mode, **options)
    assert np.isnan(early.head_values).tolist() == [False, True, True]
    assert [head for head, *_ in early.ranking()] == ["L0H0"]
    ranked = [value for _, value, _ in found.ranking()]
    assert ranked == sorted(ranked, reverse=True)
    assert len(ranked) == 3
    table = found.to_dataframe()
    line = table[(table["head"] == "L1H3") & (table["neuron"] == "L2N1")]
    assert line["value"].item() == found.values[2, 1]


def test_parallel_blocks_do_not_hear_their_own_heads(family_models):
    model = replace(family_models["llama"], parallel=True)
    found = head_glu_scores(model, HEADS, ["L0N1", "L1N1", "L2N1"], mode="ov")
    assert found.reached.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("name", POST_NORMS)
def test_post_norms(family_models, name):
    """Only the formula that is no composition, and exact ablation, are offered."""
    model = family_models[name]
    for mode in ("ov", "frobenius", "activation"):
        with pytest.raises(InterpError, match="no summand"):
            head_glu_scores(model, HEADS, NEURONS, mode=mode)
    assert np.isfinite(head_glu_scores(model, ["L0H0"], NEURONS, mode="diag").values).all()
    found = activation_delta(model, PROMPTS, AT, ["L2N1"], ["L0H0"], draws=0)
    assert found.change[0] != 0


def test_models_it_does_not_fit(family_models):
    for name in ("gpt2", "neox"):
        with pytest.raises(InterpError, match="no gate"):
            head_glu_scores(family_models[name], HEADS, NEURONS, mode="ov")
    bare = replace(family_models["llama"], decoder=None, engine_reason="never seen")
    for call in (
        lambda: head_weights(bare, "L0H0"),
        lambda: head_glu_scores(bare, HEADS, NEURONS, mode="diag"),
    ):
        with pytest.raises(InterpError, match="never seen"):
            call()


def test_bad_calls(family_models):
    model = family_models["llama"]
    data = {"prompts": PROMPTS, "positions": AT}
    for heads, neurons, options, message in (
        (HEADS, NEURONS, {"mode": "full"}, "no such name"),
        (HEADS, NEURONS, {"mode": "activation", **data, "norm": "none"}, "no such name"),
        (HEADS, NEURONS, {"mode": "ov", **data}, "reads weights only"),
        (HEADS, NEURONS, {"mode": "activation"}, "give prompts"),
        (HEADS, NEURONS, {"mode": "activation", **data, "positions": "all"}, "no such position"),
        (HEADS, NEURONS, {"mode": "activation", **data, "positions": [0]}, "one for each prompt"),
        (HEADS, NEURONS, {"mode": "activation", **data, "labels": [True] * 5}, "both classes"),
        (
            HEADS,
            NEURONS,
            {"mode": "activation", **data, "labels": [True, False]},
            "labels of shape",
        ),
        (NEURONS, NEURONS, {"mode": "ov"}, "give heads"),
        (HEADS, HEADS, {"mode": "ov"}, "give neurons"),
        ([], NEURONS, {"mode": "ov"}, "give heads"),
        (["L0H1", "L0H1"], NEURONS, {"mode": "ov"}, "each once"),
        (["L0H4"], NEURONS, {"mode": "ov"}, "heads 0 to 3"),
        (HEADS, ["L0N48"], {"mode": "ov"}, "neurons 0 to 47"),
    ):
        with pytest.raises(InterpError, match=message):
            head_glu_scores(model, heads, neurons, **options)


# -- real head outputs -------------------------------------------------------------------------


def silu(x):
    return x / (1 + math.exp(-x))


def slowly(model, heads, neurons):
    """One sample, head and neuron at a time: the four contributions."""
    sites = ["z", "resid_mid"]
    names = ("gate", "up", "frozen", "recomputed")
    found = {name: np.full((len(PROMPTS), len(neurons), len(heads)), math.nan) for name in names}
    for s, (prompt, at) in enumerate(zip(PROMPTS, AT, strict=True)):
        seen = run_with_cache(model, [prompt], sites=sites)
        for j, head in enumerate(heads):
            layer, number = int(head[1]), int(head[3])
            z = seen[layer, "z"][0, at, number].double()
            written = z @ head_weights(model, head).W_O.double()
            for i, neuron in enumerate(neurons):
                if int(neuron[1]) < layer:
                    continue
                whole = seen[int(neuron[1]), "resid_mid"][0, at].double()
                norm = model.decoder.blocks[int(neuron[1])].ln2
                (g, b), (u, c) = row(model, neuron, "gate"), row(model, neuron, "up")

                def scaled(x, by, norm=norm):
                    return x / math.sqrt(float((by * by).mean()) + norm.eps) * norm.weight.double()

                def h(x, b=b, c=c, g=g, u=u):
                    return silu(float(x @ g) + b) * (float(x @ u) + c)

                x, share = scaled(whole, whole), scaled(written, whole)
                without = whole - written
                values = {
                    "gate": float(share @ g),
                    "up": float(share @ u),
                    "frozen": h(x) - h(x - share),
                    "recomputed": h(x) - h(scaled(without, without)),
                }
                for name, value in values.items():
                    found[name][s, i, j] = value
    return found


def test_contributions_against_loops(gated):
    expected = slowly(gated, HEADS, NEURONS)
    for norm in ("frozen", "recomputed"):
        found = head_glu_scores(
            gated, HEADS, NEURONS, mode="activation", prompts=PROMPTS, positions=AT, norm=norm
        )
        for name, values in expected.items():
            np.testing.assert_allclose(found.samples[name], values, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found.values, expected[norm].mean(0), atol=1e-6)
        np.testing.assert_allclose(found.stderr, stats.sem(expected[norm], axis=0), atol=1e-6)
        np.testing.assert_allclose(found.gate, expected["gate"].mean(0), atol=1e-6)
        heads = [expected[norm][:, found.reached[:, j], j].mean(1) for j in range(3)]
        np.testing.assert_allclose(found.head_values, np.mean(heads, 1), atol=1e-6)
        np.testing.assert_allclose(found.head_stderr, stats.sem(heads, axis=1), atol=1e-6)
        assert found.n == 5


def test_labels_set_valid_against_invalid(family_models):
    labels = np.array([True, False, True, False, True])
    found = head_glu_scores(
        family_models["llama"], HEADS, NEURONS, mode="activation",
        prompts=PROMPTS, positions=AT, labels=labels.tolist(),
    )  # fmt: skip
    every = found.samples["frozen"]
    for i, j in np.argwhere(found.reached):
        valid, invalid = every[labels, i, j], every[~labels, i, j]
        assert found.values[i, j] == pytest.approx(valid.mean() - invalid.mean())
        welch = stats.ttest_ind(valid, invalid, equal_var=False)
        assert found.values[i, j] / found.stderr[i, j] == pytest.approx(welch.statistic)


def test_without_a_head_is_what_ablating_it_gives(gated):
    """In the head's own layer the direct path is the only one: zero ablation at that token."""
    neurons = [f"L1N{i}" for i in range(gated.d_mlp)]
    found = head_glu_scores(
        gated, ["L1H3"], neurons, mode="activation",
        prompts=PROMPTS, positions=AT, norm="recomputed",
    )  # fmt: skip
    delta = activation_delta(
        gated, PROMPTS, AT, neurons, ["L1H3"], positions_of_ablation="read", draws=0
    )
    np.testing.assert_allclose(
        found.samples["recomputed"][..., 0], delta.before - delta.after, atol=1e-5
    )
    assert np.abs(delta.change).max() > 0.01


def test_summands_of_all_heads_complete_the_gate(gated):
    """Heads, the embedding and earlier MLPs give the captured gate and linear part, bias aside."""
    heads = heads_of(gated)[:8]
    found = head_glu_scores(
        gated, heads, ["L1N9"], mode="activation", prompts=PROMPTS, positions=AT
    )
    sites = ["resid_pre", "mlp_out", "resid_mid", "pre", "pre_linear"]
    seen = run_with_cache(gated, PROMPTS, sites=sites, positions=AT)
    rest = (seen[0, "resid_pre"] + seen[0, "mlp_out"]).double()
    for block in gated.decoder.blocks[:2]:
        rest = rest + (0 if block.attn.o.bias is None else block.attn.o.bias.double())
    share = gated.decoder.blocks[1].ln2.share(rest, seen[1, "resid_mid"].double())
    for part, weight, site in (("gate", "gate", "pre"), ("up", "up", "pre_linear")):
        reads, bias = row(gated, "L1N9", weight)
        total = found.samples[part][:, 0].sum(1) + (share @ reads).numpy() + bias
        np.testing.assert_allclose(total, seen[1, site][:, 9], atol=1e-5)


# -- the planted pair --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """toy-verification with valid (target = result) and invalid prompts, read at the result."""
    model, task = load_model("toy-verification"), load_task("toy-verification")
    texts = [p.clean for p in task.pairs] + [p.corrupted for p in task.pairs]
    at = [text.split().index("result") + 1 for text in texts]
    return model, texts, at, [True] * len(task.pairs) + [False] * len(task.pairs)


def test_the_copier_feeds_the_equality_neuron(planted):
    model, texts, at, labels = planted
    neurons = [f"L{layer}N{i}" for layer in range(3) for i in range(8)]
    found = head_glu_scores(
        model, heads_of(model), neurons, mode="activation",
        prompts=texts, positions=at, labels=labels,
    )  # fmt: skip
    i, j = np.unravel_index(np.nanargmax(found.values), found.values.shape)
    assert (found.neurons[i], found.heads[j]) == ("L1N3", "L0H2")
    assert found.values[i, j] == pytest.approx(16, abs=0.1)
    others = np.delete(found.values.ravel(), i * len(found.heads) + j)
    assert np.nanmax(others) < 1
    assert found.ranking()[0][0] == "L0H2"
    assert found.n == len(texts)


def test_ablating_the_copier_silences_it(planted):
    model, texts, at, _ = planted
    half = len(texts) // 2
    found = activation_delta(model, texts[:half], at[:half], ["L1N3"], ["L0H2"])
    assert found.before.min() > 15
    assert np.abs(found.after).max() < 0.01
    assert found.silenced.tolist() == [1]
    assert found.total_silenced.mean == 1
    assert found.total.n == half
    assert found.null.draws == 3  # the three other heads of the layer, each once
    assert found.null.selected == pytest.approx(16, abs=0.1)
    assert abs(found.null.high) < 0.01
    assert found.null.share == found.null_silenced.share == 0.25
    assert found.null_silenced.mean == 0
    other = activation_delta(model, texts[:half], at[:half], ["L1N3"], ["L0H3"])
    assert abs(other.change[0]) < 0.01
    assert other.silenced.tolist() == [0]
    assert other.null.share > 0.25


# -- ablation ----------------------------------------------------------------------------------


def ablated_slowly(model, interventions, neurons):
    """Each prompt in a pass of its own; only for interventions that know no prompt numbers."""
    found = np.zeros((len(PROMPTS), len(neurons)))
    for s, (prompt, at) in enumerate(zip(PROMPTS, AT, strict=True)):
        with intervene(model, interventions(at)):
            seen = run_with_cache(model, [prompt], sites=["post"])
        for i, neuron in enumerate(neurons):
            layer, number = (int(x) for x in neuron[1:].split("N"))
            found[s, i] = float(seen[layer, "post"][0, at, number])
    return found


def test_delta_against_one_pass_per_prompt(family):
    heads = ["L0H1", "L1H2"]
    before = ablated_slowly(family, lambda at: [], NEURONS)
    for where in ("all", "read", "first"):
        at_all = where != "read"
        found = activation_delta(
            family, PROMPTS, AT, NEURONS, heads, positions_of_ablation=where, draws=0
        )
        after = ablated_slowly(
            family,
            lambda at, where=where, at_all=at_all: [
                zero(head, positions=where if at_all else [at]) for head in heads
            ],
            NEURONS,
        )
        np.testing.assert_allclose(found.before, before, atol=2e-5)
        np.testing.assert_allclose(found.after, after, atol=2e-5)
        np.testing.assert_allclose(found.change, (before - after).mean(0), atol=2e-5)
        np.testing.assert_allclose(found.stderr, stats.sem(before - after, axis=0), atol=2e-5)
        mean_per_sample = (before - after)[:, found.reached].mean(1)
        assert found.reached.tolist() == [True, not family.parallel, True, True]
        assert (found.change[~found.reached] == 0).all()
        assert found.total.mean == pytest.approx(mean_per_sample.mean(), abs=2e-5)
        assert found.null is None
        assert found.ablated_at == ((where if at_all else AT),) * 2
        assert found.read_at == tuple(AT)
        assert "zero L0H1" in found.ablated


def test_where_heads_are_ablated_makes_a_difference(family_models):
    model = family_models["llama"]
    all_tokens, read = (
        activation_delta(
            model, PROMPTS, AT, ["L2N1", "L2N4"], ["L0H1"], positions_of_ablation=where, draws=0
        )
        for where in ("all", "read")
    )
    assert np.abs(all_tokens.after - read.after).max() > 1e-3


def test_silencing_is_counted(family_models):
    model, every = family_models["llama"], [f"L2N{i}" for i in range(48)]
    found = activation_delta(
        model, PROMPTS, AT, every, ["L0H1", "L2H0"], fraction=0.5, floor=0.05, draws=0
    )
    shares = []
    for i in range(48):
        active = [s for s in range(5) if abs(found.before[s, i]) > 0.05]
        off = [s for s in active if abs(found.after[s, i]) < 0.5 * abs(found.before[s, i])]
        assert found.n_active[i] == len(active)
        expected = len(off) / len(active) if active else math.nan
        assert found.silenced[i] == pytest.approx(expected, nan_ok=True)
    for s in range(5):
        active = np.abs(found.before[s]) > 0.05
        off = active & (np.abs(found.after[s]) < 0.5 * np.abs(found.before[s]))
        shares.append(off.sum() / active.sum())
    assert 0 < np.mean(shares) < 1
    assert found.total_silenced.mean == pytest.approx(np.mean(shares))
    table = found.to_dataframe().set_index("neuron")
    assert table.loc["L2N3", "change"] == found.change[3]
    nothing = activation_delta(model, PROMPTS, AT, every, ["L0H1"], floor=1e6, draws=2)
    assert nothing.total_silenced is None
    assert nothing.null_silenced is None
    assert np.isnan(nothing.silenced).all()


def test_kinds_are_those_of_interventions(family_models):
    model = family_models["qwen2"]
    same = [tuple(range(k, k + 6)) for k in (5, 15, 25, 35)]
    at = [5, 4, 5, 3]
    for kind, make in (
        ("mean", lambda head: mean(model, head, same)),
        ("resample", lambda head: resample(model, head, same, n=4, seed=3)),
        ("zero", zero),
    ):
        made = [make(head) for head in ("L0H1", "L1H2")]
        found = activation_delta(
            model, same, at, NEURONS, ["L0H1", "L1H2"], kind=kind, seed=3, draws=2
        )
        direct = activation_delta(model, same, at, NEURONS, changes=made)
        np.testing.assert_array_equal(found.after, direct.after)
        assert direct.null is None
        assert found.null.draws == 2
        assert np.abs(found.change).max() > 1e-3


def test_random_sets_are_other_heads_of_the_same_layers(family_models):
    """All nine sets of one other head in each of two layers, against direct ablations."""
    model = family_models["llama"]
    found = activation_delta(model, PROMPTS, AT, ["L1N5", "L2N0"], ["L0H1", "L1H2"], draws=60)
    effects = []
    for first in (0, 2, 3):
        for second in (0, 1, 3):
            other = activation_delta(
                model, PROMPTS, AT, ["L1N5", "L2N0"], [f"L0H{first}", f"L1H{second}"], draws=0
            )
            effects.append(other.total.mean)
    assert found.null.draws == 9
    assert found.null.mean == pytest.approx(np.mean(effects))
    beaten = sum(effect >= found.total.mean for effect in effects)
    assert found.null.share == pytest.approx((1 + beaten) / 10)
    few = [
        activation_delta(model, PROMPTS, AT, ["L2N0"], ["L0H1", "L1H2"], draws=6, seed=s).null
        for s in (0, 0, 1)
    ]
    assert few[0].draws == few[2].draws == 6  # sets that come again are drawn again
    assert few[0] == few[1] != few[2]


def test_neurons_before_the_ablation_are_in_no_total(family_models):
    model = family_models["llama"]
    found = activation_delta(model, PROMPTS, AT, ["L0N1", "L1N1", "L2N1"], ["L1H2"], draws=0)
    assert found.reached.tolist() == [False, True, True]
    assert found.change[0] == 0
    assert found.total.mean == pytest.approx(found.change[1:].mean())
    vector = torch.ones(32)
    late = activation_delta(
        model, PROMPTS, AT, ["L0N1", "L1N1"], changes=[add("L0.mlp_out", vector)]
    )
    assert late.reached.tolist() == [False, True]
    own = activation_delta(model, PROMPTS, AT, ["L1N1", "L1N2"], changes=[zero("L1N1")])
    assert own.reached.tolist() == [True, False]
    assert own.after[:, 0].tolist() == [0] * 5
    with pytest.raises(InterpError, match="all precede it"):
        activation_delta(model, PROMPTS, AT, ["L0N1"], ["L1H2"])


def test_bad_ablations(family_models):
    model = family_models["llama"]
    for options in ({}, {"heads": ["L0H0"], "changes": [zero("L0H0")]}):
        with pytest.raises(InterpError, match="both or neither"):
            activation_delta(model, PROMPTS, AT, NEURONS, **options)
    with pytest.raises(InterpError, match="no such name"):
        activation_delta(model, PROMPTS, AT, NEURONS, ["L0H0"], kind="noise")
    for options in ({"kind": "mean"}, {"positions_of_ablation": "read"}):
        with pytest.raises(InterpError, match="its own kind and positions"):
            activation_delta(model, PROMPTS, AT, NEURONS, changes=[zero("L0H0")], **options)
    every = activation_delta(model, PROMPTS, AT, NEURONS, heads_of(model))
    assert every.null is not None
    assert every.null.share == 1
    with pytest.raises(InterpError, match="inside the prompt"):
        activation_delta(model, PROMPTS, [9] * 5, NEURONS, ["L0H0"])
    with pytest.raises(InterpError, match="no such position"):
        activation_delta(model, PROMPTS, "all", NEURONS, ["L0H0"])
