"""Every site that a tiny random model of each family offers, against plain hooks on its modules."""

import json
from functools import cache, partial

import pytest
import torch
import transformers

from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.engine.layout import Layout
from interp.models import checks
from interp.models.families import read_architecture
from interp.models.loading import FAMILY_TABLE, known_families, load_model
from interp.runs.hooks import intervene
from interp.runs.kinds import exclude, zero
from tests.families import EXPERTS, FAMILIES, LONGROPE, OTHERS, record, tiny, wrapped
from tests.plain import PARTS, Plain

TOKENS = [5, 36, 30, 44, 20, 61, 7, 81, 13]
OTHER = [9, 12, 77, 3, 52, 8, 41, 66, 30]
LAYER = 1


@cache
def loaded(name):
    """A model, or why it is refused."""
    return wrapped(name)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def swapped(model, site, values):
    """Logits of TOKENS with a site set to other values, through our hooks."""
    return checks._run(model, TOKENS, [], {(LAYER, site): values})[1]


def at_layer(hooked, tokens, change=None):
    """(sites of the layer, logits) of a `Plain`; `change` is a site and its new value."""
    edits = {} if change is None else {(LAYER, change[0]): lambda _: change[1]}
    seen, logits = hooked.run(tokens, edits)
    return {site: value for (layer, site), value in seen.items() if layer == LAYER}, logits


@pytest.mark.parametrize("name", [name for name in PARTS if name != "falcon-rw"])
@pytest.mark.filterwarnings("ignore:A hook on")
def test_every_offered_site_is_what_plain_hooks_see_and_change(name):
    model = loaded(name)
    plain = partial(at_layer, Plain(name, tiny(name), model))
    offered = [site for site, why in model.sites.items() if why is None]
    (here, logits), (there, _) = plain(TOKENS), plain(OTHER)
    found, own_logits = checks._run(model, TOKENS, [(LAYER, site) for site in offered])
    close(own_logits, logits)
    for site in offered:
        assert site in here, f"no plain hook for {site}"
        close(found[LAYER, site], here[site].reshape(found[LAYER, site].shape))
        if site == "resid_mid":
            change = ("attn_out", there[site].view_as(here["resid_pre"]) - here["resid_pre"])
        elif site == "pattern":
            v = here["v"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
            change = ("z", torch.einsum("bhqk,bkhd->bqhd", there["pattern"], v))
        else:
            change = (site, there[site])
        new = plain(TOKENS, change)[1]
        assert (new - logits).abs().max() > 1e-4
        values = there[site].reshape(found[LAYER, site].shape)
        close(swapped(model, site, values), new)


@pytest.mark.parametrize("name", EXPERTS)
def test_removed_and_excluded_experts_are_those_of_plain_runs(name):
    """For every expert: zero keeps the routing weights, exclude makes the router choose anew.

    Without an expert that no token uses, only routers whose weights do not add up to 1 change.
    """
    model = loaded(name)
    plain = partial(at_layer, Plain(name, tiny(name), model))
    here, logits = plain(TOKENS)
    used = []
    for number in range(model.n_experts):
        rest, allowed = here["expert_out"].clone(), here["router"].clone()
        rest[:, :, number], allowed[:, :, number] = 0, -torch.inf
        _, removed = plain(TOKENS, ("expert_out", rest))
        without, excluded = plain(TOKENS, ("router", allowed))
        assert not without["expert_out"][:, :, number].any()
        for make, expected in ((zero, removed), (exclude, excluded)):
            with intervene(model, make(f"L{LAYER}E{number}")):
                close(model.last_logits([TOKENS]), expected[:, -1])
        used.append(bool(here["expert_out"][:, :, number].any()))
        shared = model.decoder.blocks[LAYER].mlp.shared and number == model.n_experts - 1
        chooses = not shared and (used[-1] or name in ("olmoe", "qwen2-moe"))
        assert ((removed - excluded).abs().max() > 1e-4) == chooses
        assert ((removed - logits).abs().max() > 1e-4) == used[-1]
    assert sum(used) > 2


def test_layers_without_experts_have_no_expert_sites():
    """Experts in some layers only are no components; the rest of the model is."""
    config = FAMILIES["qwen3-moe"]()
    config.mlp_only_layers = [0]
    model = load_model(transformers.AutoModelForCausalLM.from_config(config))
    assert model.n_experts == 0
    assert model.sites["expert_out"] == "layers differ in their experts"
    assert loaded("gpt2").sites["router"] == "the MLP is not a mixture of experts"
    for label, message in (("L1E0", "layers differ"), ("L1.router", "layers differ")):
        with pytest.raises(InterpError, match=message), intervene(model, zero(label)):
            pass


@pytest.mark.parametrize("name", OTHERS)
def test_table_of_families_is_what_they_are(name):
    rows = {row["name"]: row for row in known_families()}
    assert list(rows) == [*FAMILIES, *OTHERS]
    assert rows[name] == record(name, loaded(name))


@pytest.mark.long
def test_table_of_engine_families(family_models):
    rows = {row["name"]: row for row in known_families()}
    for name in FAMILIES:
        assert rows[name] == record(name, family_models[name])
        assert rows[name]["runs"] == "engine"
    assert json.loads(FAMILY_TABLE.read_text())["families"] == known_families()


def test_refused_families_say_why():
    refused = {
        row["name"]: row["missing"][""] for row in known_families() if row["runs"] == "refused"
    }
    assert set(refused) == {"falcon-rw", "mamba"}
    assert "no attention heads" in refused["mamba"]


def test_eager_attention_adds_the_bias_of_falcon_twice():
    """The reason why it is refused; the engine agrees with the attention that adds it once."""
    import transformers as t

    eager = tiny("falcon-rw")
    plain = t.AutoModelForCausalLM.from_config(OTHERS["falcon-rw"](), attn_implementation="sdpa")
    plain.load_state_dict(eager.state_dict())
    decoder, layout = read_architecture(eager), Layout.of_prompts([TOKENS])
    runner = Runner(decoder)
    with torch.no_grad():
        x = runner.embed([TOKENS], layout)
        for layer in range(len(decoder.blocks)):
            x = runner.block(layer, x, layout)
        own = decoder.logits(decoder.ln_final(x))
        once, twice = (model.eval()(torch.tensor([TOKENS])).logits[0] for model in (plain, eager))
    close(own, once)
    assert (twice - once).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", ["phi3-longrope", "llama-longrope", "recurrent-gemma", "opt", "mpt"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_mixed_lengths_give_what_each_prompt_gives_alone(name, side):
    """Longrope's angles depend on a pass's longest prompt, RecurrentGemma's state on padding."""
    model, reference = loaded(name), tiny(name)
    prompts = [tuple((7 * i + n) % 90 + 3 for i in range(n)) for n in (5, 12, 30, 16, 17, 6)]
    with torch.no_grad():
        expected = torch.stack([reference(torch.tensor([p])).logits[0, -1] for p in prompts])
    close(model.last_logits(prompts, padding_side=side), expected)


def test_longrope_has_no_fast_engine_and_says_so():
    model = loaded("llama-longrope")
    assert "depend on the length" in model.engine_reason
    assert "run separately" in repr(model)


def test_dynamic_rotary_refuses_what_depends_on_earlier_runs():
    import transformers as t

    config = OTHERS["llama-longrope"]()
    config = t.LlamaConfig(
        **{**config.to_dict(), "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0,
            "original_max_position_embeddings": LONGROPE["original_max_position_embeddings"],
        }}
    )  # fmt: skip
    model = load_model(t.LlamaForCausalLM(config))
    assert model.tokenize([5] * 16)
    with pytest.raises(InterpError, match="between 1 and 16"):
        model.tokenize([5] * 17)


@pytest.mark.parametrize("name", ["opt", "gptj", "bigcode", "gpt-neo", "bloom"])
def test_prompts_too_long_or_empty(name):
    model = loaded(name)
    with pytest.raises(InterpError, match=r"0 tokens; write (between 1 and 64|at least 1)"):
        model.tokenize([])
    if name != "bloom":
        assert model.last_logits([model.tokenize([5] * 64).tokens]).shape == (1, model.d_vocab)
        with pytest.raises(InterpError, match="between 1 and 64"):
            model.tokenize([5] * 65)


@pytest.mark.parametrize(
    ("name", "length", "noted"),
    [
        ("mistral", 16, 0),
        ("gemma3", 16, 0),
        ("phi3-longrope", 28, 0),
        ("starcoder2", 20, 0),
        ("gpt-neo", 20, 0),
    ],
)
def test_check_prompt_reaches_past_windows_and_switches(name, length, noted):
    config = {**FAMILIES, **OTHERS}[name]()
    tokens, notes = checks.check_prompt(config, 10**5)
    assert len(tokens) == length
    assert len(notes) == noted


def test_windows_too_long_to_check_are_said():
    config = FAMILIES["mistral"]()
    config.sliding_window, config.max_position_embeddings = 4096, 32768
    tokens, notes = checks.check_prompt(config, 7 * 10**9)
    assert len(tokens) < 4096
    assert "sliding_window of 4096" in notes[0]
    assert len(checks.check_prompt(config, 10**8)[0]) > 4096
