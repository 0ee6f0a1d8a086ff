"""A weight delta changes the model as copied weights do, and is taken off to the last bit."""

import gc

import pytest
import torch
from torch import nn

import interp
from interp.core.errors import InterpError
from interp.models import registry
from interp.models.checkpoints import merge_adapter
from interp.models.loading import plain_hash, plain_view, unwrapped, wrap
from interp.models.modules import tensors_of
from interp.models.weight_delta import LowRank, WeightDelta, load_delta
from interp.patching.activation import activation_patching
from interp.runs.kinds import zero
from tests.families import random_task

PROMPTS = [(3, 4, 5, 6, 7), (5, 6, 7)]


def held(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model.hf_model).items()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def noise(model, scale=0.05, rank=2, seed=0) -> WeightDelta:
    """Random changes: low rank for matrices, dense for vectors."""
    generator = torch.Generator().manual_seed(seed)
    low, dense = {}, {}

    def drawn(*shape):
        return torch.randn(shape, generator=generator) * scale

    for name, tensor in plain_view(model).named_parameters():
        if tensor.dim() == 2:
            low[name] = (
                LowRank(left=drawn(len(tensor), rank), right=drawn(rank, tensor.shape[1])),
            )
        else:
            dense[name] = drawn(*tensor.shape)
    return WeightDelta(name="noise", base=model.hash, low_rank=low, dense=dense)


def by_hand(model, delta):
    """A copy of the model, changed one tensor after the other."""
    copy = unwrapped(model)
    for name, tensor in copy.named_parameters():
        if name in delta.low_rank:
            tensor.data += sum(part.matrix() for part in delta.low_rank[name])
        else:
            tensor.data.copy_(tensor.double() + delta.dense[name].double())
    return wrap(copy, name="by hand")


def test_changes_every_family_as_a_changed_copy_and_restores_its_bits(every_family):
    model = every_family
    delta, before = noise(model), held(model)
    facts = (model.name, model.hash, model.hf_model, model.decoder)
    plain = model.last_logits(PROMPTS)
    reference = by_hand(model, delta)
    task = random_task()
    with delta.applied(model) as changed:
        assert changed is model
        assert model.name.endswith(" + noise")
        assert model.hash == reference.hash
        torch.testing.assert_close(model.last_logits(PROMPTS), reference.last_logits(PROMPTS))
        if model.decoder is not None:
            ours, theirs = (
                activation_patching(m, task, site="resid_pre", by="layer", unit="metric")
                for m in (model, reference)
            )
            assert torch.equal(torch.from_numpy(ours.effects), torch.from_numpy(theirs.effects))
            assert ours.provenance.model_hash == reference.hash
    low = delta.only(lambda name: name in delta.low_rank, "matrices")
    for _ in range(2):  # the second time its hash is not computed again
        with low.applied(model):
            assert model.hash == plain_hash(plain_view(model)) != facts[1]
    assert same(before, held(model))
    assert (model.name, model.hash, model.hf_model, model.decoder) == facts
    assert torch.equal(model.last_logits(PROMPTS), plain)
    assert not torch.allclose(plain, reference.last_logits(PROMPTS), atol=1e-3)


@pytest.mark.long
def test_large_changes_and_every_dtype_come_off_too(family_models):
    from tests.families import tiny

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = wrap(tiny("llama", dtype), name=f"tiny-{dtype}")
        before = held(model)
        for scale in (1e-4, 1.0, 1e4):
            with noise(model, scale).applied(model):
                assert not same(before, held(model))
            assert same(before, held(model))


def test_an_error_inside_or_half_way_leaves_the_model_as_it_was(family_models, monkeypatch):
    model = family_models["llama"]
    delta, before, name = noise(model), held(model), model.name
    with pytest.raises(ZeroDivisionError), delta.applied(model):
        1 / 0  # noqa: B018
    assert same(before, held(model))
    assert model.name == name
    calls, real = [], LowRank.matrix

    def fails(self):
        calls.append(self)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(LowRank, "matrix", fails)
    with pytest.raises(KeyboardInterrupt), delta.applied(model):
        raise AssertionError("it was interrupted before")
    assert len(calls) > 6
    assert same(before, held(model))
    assert model.name == name


def test_lost_bits_are_said(family_models, monkeypatch):
    model = family_models["gpt2"]
    delta, real, calls = noise(model), LowRank.matrix, []
    keep = held(model)

    def other(self):
        calls.append(self)
        return real(self) * (1 if len(calls) <= len(delta.low_rank) else 1.5)

    monkeypatch.setattr(LowRank, "matrix", other)
    with pytest.raises(InterpError, match="other bits"), delta.applied(model):
        pass
    for name, tensor in tensors_of(model.hf_model).items():
        tensor.copy_(keep[name])


@pytest.mark.long
def test_low_rank_keeps_a_quarter_of_a_copy(family_models, monkeypatch):
    """What is held inside the block for a changed tensor is one byte a number, and few values."""
    model = family_models["llama"]
    weight = tensors_of(model.hf_model)["model.layers.0.mlp.up_proj.weight"]
    delta = noise(model, 1e-3).only(lambda name: name == "model.layers.0.mlp.up_proj.weight", "one")
    before = weight.clone()

    def copies() -> int:
        gc.collect()
        return sum(
            torch.is_tensor(x) and x.shape == before.shape and torch.equal(x.float(), before)
            for x in gc.get_objects()
        )

    known = copies()
    with delta.applied(model):
        assert not torch.equal(weight, before)
        assert copies() < known  # the weight itself has changed, and no copy of it was made
    assert copies() == known


def test_arithmetic(family_models):
    model = family_models["llama"]
    a, b = noise(model, seed=1), noise(model, seed=2)
    for name in a.names:
        left, right = a.difference(name), b.difference(name)
        torch.testing.assert_close((a + b).difference(name), left + right)
        torch.testing.assert_close((a - b).difference(name), left - right)
        torch.testing.assert_close((0.5 * a).difference(name), 0.5 * left)
        torch.testing.assert_close((-a).difference(name), -left)
        assert bool(((a - a).difference(name) == 0).all())
    assert len({a.hash, b.hash, (a + b).hash, (2 * a).hash}) == 4
    assert (1.0 * a).hash == a.hash
    part = a.only(lambda name: ".mlp." in name, "MLPs")
    assert part.names
    assert all(".mlp." in name for name in part.names)


@pytest.mark.long
def test_the_difference_of_two_models_gives_the_other_to_the_bit(family_models):
    model = family_models["qwen3"]
    for scale in (1e-6, 0.05, 100.0):
        other = by_hand(model, noise(model, scale))
        delta = WeightDelta.between(model, other)
        with delta.applied(model):
            assert model.hash == other.hash
    assert WeightDelta.between(model, model).names == ()
    with pytest.raises(InterpError, match="absent or unlike"):
        WeightDelta.between(model, family_models["llama"])


def test_saved_and_loaded(family_models, tmp_path):
    model = family_models["llama"]
    delta = noise(model)
    loaded = load_delta(delta.save(tmp_path / "delta"), model)
    assert loaded.hash == delta.hash
    assert loaded.names == delta.names
    with pytest.raises(InterpError, match="its base is"):
        load_delta(tmp_path / "delta.safetensors", family_models["gpt2"])
    with pytest.raises(InterpError):
        load_delta(tmp_path / "absent", model)


def test_refusals(family_models):
    model, other = family_models["llama"], family_models["gpt2"]
    delta = noise(model)
    with pytest.raises(InterpError, match="its base is"), delta.applied(other):
        pass
    with (
        pytest.raises(InterpError, match="its base is"),
        delta.applied(model),
        delta.applied(model),
    ):
        pass
    with pytest.raises(InterpError, match="its base is"):
        delta + noise(other)
    with interp.intervene(model, zero("L0H0")), pytest.raises(InterpError, match="inside interv"):
        delta.applied(model).__enter__()
    with pytest.raises(InterpError, match="does not change it"):
        delta.difference("nothing")
    with pytest.raises(InterpError, match="finite"):
        delta * float("nan")
    wrong = WeightDelta(name="x", base=model.hash, dense={"lm_head.weight": torch.zeros(2)})
    absent = WeightDelta(name="x", base=model.hash, dense={"nowhere": torch.zeros(2)})
    bridged = WeightDelta(
        name="x", base=other.hash, dense={"transformer.h.0.attn.o.weight": torch.zeros(32, 32)}
    )
    _ = other.bridge  # it adds names of its own
    with pytest.raises(InterpError, match="no tensor of this name"), bridged.applied(other):
        pass
    for bad in (wrong, absent):
        with pytest.raises(InterpError, match="it has shape"), bad.applied(model):
            pass
    with pytest.raises(InterpError, match="NaN"):
        WeightDelta(name="x", base=model.hash, dense={"y": torch.tensor([torch.nan])})


@pytest.fixture
def adapter(family_models, tmp_path):
    """A random LoRA adapter of a tiny model, with another rank in one layer, and its base."""
    from peft import LoraConfig, get_peft_model

    model = family_models["llama"]
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"],
        rank_pattern={"model.layers.1.self_attn.q_proj": 4},
    )  # fmt: skip
    adapted = get_peft_model(unwrapped(model), config)
    for name, tensor in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(tensor, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_an_adapter_s_delta_gives_what_peft_merges_to_the_bit(adapter):
    model, folder = adapter
    merged = wrap(merge_adapter(unwrapped(model), folder, torch.float32), name="merged")
    delta = load_delta(folder, model)
    assert not delta.dense
    assert "rank 4 at most" in repr(delta)
    with delta.applied(model):
        assert model.hash == merged.hash


def test_other_adapters_are_refused(family_models, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = family_models["llama"]
    for number, options in enumerate(
        ({"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]})
    ):
        config = LoraConfig(r=2, target_modules=["q_proj"], **options)
        folder = tmp_path / str(number)
        get_peft_model(unwrapped(model), config).save_pretrained(folder)
        with pytest.raises(InterpError, match="as a weight delta"):
            load_delta(folder, model)


@pytest.mark.long
@pytest.mark.slow
def test_a_shipped_adapter_gives_the_shipped_model(smollm):
    before = smollm.hash
    delta = load_delta("refusal-smollm2", smollm)
    with delta.applied(smollm):
        assert smollm.hash == interp.load_model("refusal-smollm2", check=False).hash
    assert smollm.hash == before
    with pytest.raises(InterpError, match="whole model"):
        load_delta("countdown-tiny", smollm)
    assert all(
        load_delta(name, smollm).card
        for name in registry.organisms()
        if registry.base_of(name) is not None
    )
