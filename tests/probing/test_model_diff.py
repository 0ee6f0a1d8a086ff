"""Two models compared and blended: planted changes, slow references, what must be refused."""

import math

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.core.statistics import ratio_of_means
from interp.models.language_model import fingerprint
from interp.models.loading import load_model, wrap
from interp.probing.model_diff import blend_weights, compare_activations, compare_weights
from interp.runs.capture import run_with_cache
from tests.families import FAMILIES, tiny

PROMPTS = [(5, 6, 7, 8), (9, 10), (11, 12, 13, 14, 15, 16)]
ATTENTION = (
    "q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "attn.c_proj", "query_key_value", "out_proj",
    "self_attn.dense", "qkv_proj", "Wqkv",
)  # fmt: skip
FUSED = ("phi", "phi3", "opt", "gpt-neo", "gptj", "neox-serial", "neox-no-bias", "bigcode", "bloom",
         "falcon-7b", "falcon-40b", "falcon-11b", "mpt")  # fmt: skip
"""Families whose slices are not written out here."""


def attention_matrices(model):
    """Names of the weight matrices that make q, k, v, and the one after the heads."""
    names = (*ATTENTION, "attention.dense")
    return [n for n in model.state_dict() if n.endswith("weight") and any(a in n for a in names)]


def other(name, seed=1):
    """The tiny model, every weight moved."""
    model = tiny(name)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def wrapped(model, name="other"):
    return wrap(model, name=name, check=False)


@pytest.fixture(scope="module")
def others():
    return {name: wrapped(other(name), f"other-{name}") for name in FAMILIES}


@pytest.fixture(scope="module")
def llama_parts():
    """A llama, and one in which only head L1H2 (d_head 8), its key and neuron L2N7 moved."""
    changed = tiny("llama")
    torch.manual_seed(3)
    layer = changed.model.layers[1].self_attn
    layer.q_proj.weight.data[16:24] += 0.3 * torch.randn(8, 32)
    layer.o_proj.weight.data[:, 16:24] *= 2
    layer.k_proj.weight.data[8:16] *= -1  # key/value head 1 serves heads 2 and 3
    changed.model.layers[2].mlp.down_proj.weight.data[:, 7] *= 1.5
    changed.model.layers[2].mlp.up_proj.weight.data[7] += 1
    return wrapped(tiny("llama"), "base"), wrapped(changed, "changed")


# -- weights -------------------------------------------------------------------------------


def test_only_the_planted_change_shows(llama_parts):
    table = compare_weights(*llama_parts).to_dataframe()
    moved = table[table.change > 0]
    assert set(zip(moved.component, moved.part, strict=True)) == {
        ("L1H2", "q"),
        ("L1H2", "o"),
        ("L1H2", "k"),
        ("L1H3", "k"),
        ("L2N7", "value"),
        ("L2N7", "up"),
    }
    row = table.set_index(["component", "part"])
    assert row.loc[("L1H2", "o"), "norm_difference"] == pytest.approx(1)
    assert row.loc[("L1H2", "o"), "cosine"] == pytest.approx(1)
    assert row.loc[("L1H3", "k"), "cosine"] == pytest.approx(-1)
    assert row.loc[("L1H3", "k"), "change"] == pytest.approx(2)
    assert row.loc[("L1H3", "k"), "norm_difference"] == pytest.approx(0)
    assert row.loc[("L1H3", "k"), "owner"] == 1
    assert row.loc[("L2N7", "value"), "change"] == pytest.approx(0.5)
    assert len(table) == 3 * (4 * 4 + 3 * 48)
    still = table.drop(moved.index)
    assert (still.norm_difference == 0).all()
    np.testing.assert_allclose(still.cosine, 1, atol=1e-12)


def head_matrices(model, name, layer, head):
    """One head's matrices, by hand, from the untouched Hugging Face model."""
    if name == "gpt2":
        attn = model.transformer.h[layer].attn
        q, k, v = (part[:, 8 * head : 8 * head + 8] for part in attn.c_attn.weight.chunk(3, dim=1))
        return {"q": q, "k": k, "v": v, "o": attn.c_proj.weight[8 * head : 8 * head + 8]}
    if name == "neox":
        attn = model.gpt_neox.layers[layer].attention
        begin = 24 * head
        q, k, v = attn.query_key_value.weight[begin : begin + 24].chunk(3)
        return {"q": q, "k": k, "v": v, "o": attn.dense.weight[:, 8 * head : 8 * head + 8]}
    attn, rows = model.model.layers[layer].self_attn, slice(8 * head, 8 * head + 8)
    group = slice(8 * (head // 2), 8 * (head // 2) + 8)
    return {
        "q": attn.q_proj.weight[rows],
        "k": attn.k_proj.weight[group],
        "v": attn.v_proj.weight[group],
        "o": attn.o_proj.weight[:, rows],
    }


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FUSED])
def test_heads_against_slices_by_hand(name, family_models, others):
    found = compare_weights(
        family_models[name], others[name], heads=["L2H3", "L0H1"], neurons=[]
    ).to_dataframe()
    assert len(found) == 8
    for row in found.itertuples():
        layer, head = int(row.component[1]), int(row.component[3])
        a, b = (head_matrices(m, name, layer, head)[row.part] for m in (tiny(name), other(name)))
        a, b = a.detach().double().flatten(), b.detach().double().flatten()
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-9)
        assert row.change == pytest.approx(float((b - a).norm() / a.norm()))
        assert row.norm_difference == pytest.approx(float(b.norm() / a.norm() - 1), abs=1e-9)


def test_neurons_against_slices_by_hand(others, family_models):
    found = compare_weights(
        family_models["qwen3"], others["qwen3"], heads=[], neurons=["L1N40"]
    ).to_dataframe()
    mlps = [m.model.layers[1].mlp for m in (tiny("qwen3"), other("qwen3"))]
    hand = {
        "gate": [mlp.gate_proj.weight[40] for mlp in mlps],
        "up": [mlp.up_proj.weight[40] for mlp in mlps],
        "value": [mlp.down_proj.weight[:, 40] for mlp in mlps],
    }
    assert list(found.part) == ["gate", "up", "value"]
    for part, cosine in zip(found.part, found.cosine, strict=True):
        assert cosine == pytest.approx(
            float(torch.cosine_similarity(*hand[part], dim=0).detach()), abs=1e-6
        )


def test_no_up_without_a_gate(family_models, others):
    found = compare_weights(family_models["gpt2"], others["gpt2"], heads=[])
    assert set(found.part) == {"gate", "value"}


def test_zero_vectors():
    """Where the base is zero a cosine is undefined, and a change 0 or infinite."""
    models = [tiny("llama"), tiny("llama")]
    for model in models:
        model.model.layers[1].self_attn.o_proj.weight.data[:, :16] = 0
    models[1].model.layers[1].self_attn.o_proj.weight.data[0, 0] = 1
    found = compare_weights(*map(wrapped, models), neurons=[])
    row = found.to_dataframe().set_index(["component", "part"])
    assert row.loc[("L1H0", "o"), "change"] == math.inf
    assert row.loc[("L1H1", "o"), "change"] == 0
    assert math.isnan(row.loc[("L1H1", "o"), "cosine"])
    with pytest.raises(InterpError, match="largest change inf"):
        found.null(["L1H0"], draws=10)


# -- the null ------------------------------------------------------------------------------


def test_null_finds_a_planted_selection():
    changed = tiny("llama")
    for layer in range(3):
        changed.model.layers[layer].self_attn.q_proj.weight.data[8:16] *= 1.2
        changed.model.layers[layer].mlp.gate_proj.weight.data[[3, 5]] *= 1.2
    found = compare_weights(wrapped(tiny("llama")), wrapped(changed))
    null = found.null([f"L{layer}H1" for layer in range(3)], draws=2000)
    assert set(null) == {"q", "k", "v", "o"}
    assert null["q"].selected == pytest.approx(0.2)
    assert null["q"].mean == pytest.approx(0.05, abs=0.005)
    assert null["q"].share == pytest.approx(1 / 64, abs=0.01)  # exactly one of 4^3 selections
    assert null["v"].share == 1
    neurons = found.null(["L0N3", "L1N5", "L2N3"], draws=2000)
    assert neurons["gate"].share < 0.002
    assert neurons["value"].share == 1
    assert set(neurons) == {"gate", "up", "value"}


def test_null_is_honest_about_a_random_selection(family_models, others):
    """p of a selection that means nothing is not small: over selections it is uniform."""
    found = compare_weights(family_models["llama"], others["llama"], heads=[])
    rng = np.random.default_rng(0)
    p = [
        found.null([f"L1N{i}" for i in rng.choice(48, 3, False)], draws=200)["up"].share
        for _ in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.1) < 0.25


def test_null_by_enumeration(family_models, others):
    found = compare_weights(family_models["llama"], others["llama"], neurons=[])
    change = found.change[(found.part == "q") & (found.layer == 2)]
    pairs = [(change[i] + change[j]) / 2 for i in range(4) for j in range(i)]
    mine = (change[0] + change[3]) / 2
    exact = np.mean([pair >= mine - 1e-12 for pair in pairs])
    null = found.null(["L2H0", "L2H3"], draws=4000)["q"]
    assert null.selected == pytest.approx(mine)
    assert null.mean == pytest.approx(np.mean(pairs), rel=0.01)
    assert null.share == pytest.approx(exact, abs=0.03)
    # Keys: heads 0 and 1 share key/value head 0, which counts once, against head 1's.
    keys = found.change[(found.part == "k") & (found.layer == 2)]
    null = found.null(["L2H0", "L2H1"], draws=4000)["k"]
    assert null.selected == pytest.approx(keys[0])
    assert null.mean == pytest.approx((keys[0] + keys[2]) / 2, rel=0.01)


def test_null_refusals(llama_parts):
    found = compare_weights(*llama_parts, heads=["L0H1", "L0H3"])
    for wrong in (["L0H1", "L0N1"], [], ["L0.z"], ["L0.mlp_out"], ["L0H1.q"]):
        with pytest.raises(InterpError, match="heads only or neurons only"):
            found.null(wrong, draws=5)
    with pytest.raises(InterpError, match="compare the whole layer"):
        found.null(["L0H2"], draws=5)
    assert found.null(["L0H1", "L0H3"], draws=5)["q"].share == 1
    only_heads = compare_weights(*llama_parts, neurons=[])
    with pytest.raises(InterpError, match="compared: q, k, v, o"):
        only_heads.null(["L0N1"], draws=5)


def test_weights_refusals(family_models, others):
    llama = family_models["llama"]
    with pytest.raises(InterpError, match="family llama and mistral"):
        compare_weights(llama, others["mistral"])
    with pytest.raises(InterpError, match="n_kv_heads 2 and 4"):
        compare_weights(llama, others["neox"])
    with pytest.raises(InterpError, match="dtype torch.float32 and torch.float64"):
        compare_weights(llama, wrapped(tiny("llama", torch.float64)))
    for wrong in ("L0H4", "L3H0", "L0H0.q", "L0N1"):
        with pytest.raises(InterpError):
            compare_weights(llama, others["llama"], heads=[wrong])
    with pytest.raises(InterpError, match="no heads and no neurons"):
        compare_weights(llama, others["llama"], heads=[], neurons=[])
    blind = wrapped(tiny("llama"))
    blind.decoder, blind.engine_reason = None, "spread over several devices"
    with pytest.raises(InterpError, match="spread over"):
        compare_weights(llama, blind)


# -- activations ---------------------------------------------------------------------------


def test_activations_against_whole_runs(family, others):
    """Cut prompts give what Hugging Face gives at that position of the whole prompt."""
    name = family.name.removeprefix("tiny-")
    places, layers = [2, 0, -2], [0, 2]
    found = compare_activations(
        family, others[name], PROMPTS, places, sites=["resid_pre", "z"], layers=layers
    )
    assert found.cosine.shape == (3, 2, 2)
    for i, (prompt, place) in enumerate(zip(PROMPTS, places, strict=True)):
        whole = [
            run_with_cache(m, [prompt], sites=["resid_pre", "z"]) for m in (family, others[name])
        ]
        for s, site in enumerate(["resid_pre", "z"]):
            for at, layer in enumerate(layers):
                a, b = (acts[layer, site][0, place].flatten().double() for acts in whole)
                assert found.cosine[i, s, at] == pytest.approx(
                    float(a @ b / (a.norm() * b.norm())), abs=1e-5
                )
                assert found.relative[i, s, at] == pytest.approx(
                    float((b - a).norm() / a.norm()), rel=1e-4
                )
        with torch.no_grad():
            p, q = (
                m(torch.tensor([prompt])).logits[0, place].double().softmax(-1)
                for m in (tiny(name), other(name))
            )
        assert found.kl[i] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)


def test_activation_table_has_all_samples(family_models, others):
    found = compare_activations(family_models["llama"], others["llama"], PROMPTS, sites=["z"])
    table = found.to_dataframe()
    assert list(table.layer) == [0, 1, 2]
    assert (table.n == 3).all()
    np.testing.assert_allclose(table.cosine, found.cosine[:, 0].mean(0))
    expected = found.relative[:, 0].std(0, ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(table.relative_stderr, expected)
    shared = ratio_of_means(found.relative[:, 0])
    np.testing.assert_array_equal(
        table[["relative_low", "relative_high"]].T, [shared.low, shared.high]
    )
    assert found.kl_mean.n == 3
    assert found.kl_mean.mean == pytest.approx(found.kl.mean())
    one = compare_activations(family_models["llama"], others["llama"], PROMPTS[:1])
    assert one.to_dataframe().cosine_stderr.isna().all()


def test_a_planted_change_shows_from_its_layer_on(llama_parts):
    base, _ = llama_parts
    changed = tiny("llama")
    changed.model.layers[1].mlp.down_proj.weight.data *= 3
    found = compare_activations(base, wrapped(changed), PROMPTS, sites=["resid_mid", "resid_post"])
    mid, post = found.relative.mean(0)
    assert (mid[:2] == 0).all()
    assert mid[2] > 0.01
    assert post[0] == 0
    assert (post[1:] > 0.01).all()
    assert (found.kl > 0).all()
    same = compare_activations(base, base, PROMPTS)
    assert (same.relative == 0).all()
    assert (same.kl == 0).all()


def test_named_positions_of_a_task(toy):
    task = Task(
        name="t",
        pairs=tuple(
            PromptPair(clean=f"<bos> a b {x} a", answers=("b",), positions={"x": x}) for x in "cd"
        ),
    )
    named = compare_activations(toy, load_model("toy-induction"), task, "x")
    assert (named.relative == 0).all()
    counted = compare_activations(toy, load_model("toy-induction"), task, [3, 3])
    np.testing.assert_array_equal(named.cosine, counted.cosine)


@pytest.mark.long
def test_activation_refusals(family_models, others, toy):
    llama, its_other = family_models["llama"], others["llama"]
    for positions in ("all", [0], [0, 9, 0], "paren"):
        with pytest.raises(InterpError):
            compare_activations(llama, its_other, PROMPTS, positions)
    with pytest.raises(InterpError):
        compare_activations(llama, its_other, [])
    with pytest.raises(InterpError, match="pre_linear"):
        compare_activations(family_models["gpt2"], others["gpt2"], PROMPTS, sites=["pre_linear"])
    reader = load_model("toy-induction", check=False)
    reader.tokenizer = load_model("toy-or", check=False).tokenizer
    with pytest.raises(InterpError, match="the tokens differ"):
        compare_activations(toy, reader, ["<bos> a b"])


# -- blending ------------------------------------------------------------------------------


def hf_hash(model):
    return fingerprint(model.state_dict(), model.config.to_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_alpha_0_is_the_base_and_1_copies_all_attention_matrices(name, family_models, others):
    """Theorems, against a model assembled from the two state dicts."""
    base, actor = family_models[name], others[name]
    assert blend_weights(base, actor, None, 0.0, check=False).hash == base.hash
    whole = blend_weights(base, actor, None, 1.0)
    mixed, theirs = tiny(name), other(name).state_dict()
    state = mixed.state_dict()
    names = attention_matrices(mixed)
    assert names
    mixed.load_state_dict(state | {n: theirs[n] for n in names})
    assert whole.hash == hf_hash(mixed)
    assert whole.hash not in (base.hash, actor.hash)
    with torch.no_grad():
        expected = torch.stack([mixed(torch.tensor([p])).logits[0, -1] for p in PROMPTS])
    torch.testing.assert_close(whole.last_logits(PROMPTS), expected, atol=2e-5, rtol=0)
    offered = [{site for site, why in x.sites.items() if why is None} for x in (whole, base)]
    assert offered[0] == offered[1]
    assert (whole.decoder is None) == (base.decoder is None)


@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3"])
def test_one_group_of_heads_and_no_others(name, family_models, others):
    base, actor = family_models[name], others[name]
    before = base.hash, hf_hash_of(base), hf_hash_of(actor)
    heads = ["L1H2", "L1H3"] if name == "qwen3" else ["L1H2"]
    blended = blend_weights(base, actor, heads, 2.0)
    moved = compare_weights(base, blended).to_dataframe()
    full = compare_weights(base, actor).to_dataframe()
    assert set(moved[moved.change > 0].component) == set(heads)
    here = moved.component.isin(heads)
    np.testing.assert_allclose(moved.change[here], 2 * full.change[here], rtol=1e-5)
    assert before == (base.hash, hf_hash_of(base), hf_hash_of(actor))
    assert "2 (other" in blended.name


def hf_hash_of(model):
    """The weights a wrapped model holds now."""
    return fingerprint(dict(model.hf_model.state_dict()), {})


def test_blending_the_planted_difference_gives_the_other_model(llama_parts):
    base, changed = llama_parts
    blended = blend_weights(base, changed, ["L1H2", "L1H3"], 1.0)
    left = compare_weights(blended, changed).to_dataframe()
    assert set(left[left.change > 0].component) == {"L2N7"}


def test_shared_keys_are_refused_or_said(llama_parts):
    base, changed = llama_parts
    with pytest.raises(InterpError, match="not given: L1H3;.*shared_kv=True"):
        blend_weights(base, changed, ["L1H2"], 1.0)
    blended = blend_weights(base, changed, ["L1H2"], 1.0, shared_kv=True)
    moved = compare_weights(base, blended, neurons=[]).to_dataframe()
    moved = moved[moved.change > 0]
    assert set(zip(moved.component, moved.part, strict=True)) == {
        ("L1H2", "q"),
        ("L1H2", "o"),
        ("L1H2", "k"),
        ("L1H3", "k"),
    }


def test_blending_leaves_the_random_state_alone(llama_parts):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    blend_weights(*llama_parts, None, 0.5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.long
def test_blended_toy_loses_its_head():
    """The verification toy without its mover's weights forgets; the actor's give them back."""
    broken = load_model("toy-verification", check=False)
    whole = load_model("toy-verification")
    attn = broken.decoder.blocks[2].attn
    attn.o.weight.zero_()
    attn.v.weight.zero_()
    broken = wrap(unwrap(broken), broken.tokenizer, name="broken", check=False)
    prompt = "<bos> target 3 ; result 3 ("
    this = whole.token_id("this")[0]
    tokens = [whole.tokenize(prompt).tokens]
    assert int(whole.last_logits(tokens).argmax()) == this
    assert int(broken.last_logits(tokens).argmax()) != this
    healed = blend_weights(broken, whole, ["L2H0", "L2H1"], 1.0)
    assert int(healed.last_logits(tokens).argmax()) == this
    assert blend_weights(broken, whole, None, 1.0).hash == whole.hash
    assert healed.tokenizer is broken.tokenizer


def unwrap(model):
    """The Hugging Face model of a toy whose weights were edited, anew."""
    fresh = load_model("toy-verification", check=False)
    held = model.hf_model.state_dict()
    new = type(fresh.hf_model)(fresh.hf_model.config)
    clean = {name.replace("._original_component", ""): w for name, w in held.items()}
    new.load_state_dict({name: clean[name] for name in new.state_dict()})
    return new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_copy_computes_the_same_in_other_types(dtype):
    base = wrapped(tiny("llama", dtype))
    copied = blend_weights(base, wrapped(other("llama").to(dtype)), None, 0.0, check=False)
    assert copied.hash == base.hash
    torch.testing.assert_close(
        copied.last_logits(PROMPTS), base.last_logits(PROMPTS), atol=1e-6, rtol=0
    )


def test_blending_refusals(llama_parts, others):
    base, changed = llama_parts
    with pytest.raises(InterpError, match="differ in family"):
        blend_weights(base, others["mistral"], None, 1.0)
    for heads, alpha in (([], 1.0), (None, math.nan), (["L0H9"], 1.0), (["L0N1"], 1.0)):
        with pytest.raises(InterpError):
            blend_weights(base, changed, heads, alpha)
    edited = wrapped(tiny("llama"))
    edited.decoder.blocks[0].attn.q.weight[0, 0] += 1
    with pytest.raises(InterpError, match="have changed since loading"):
        blend_weights(edited, changed, None, 1.0)
