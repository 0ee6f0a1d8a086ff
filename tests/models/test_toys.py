"""The planted circuits, checked against plain hooks on the Hugging Face model."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from interp.core.errors import InterpError
from interp.models.toys.build import Toy, save_tokenizer
from interp.models.toys.circuits import TOYS, build_toy
from tests import ROOT

TOLERANCE = 1e-3
BOTH = (1.0, 1.0)
EFFECTS = {
    "toy-induction": {"L0H1": BOTH, "L1H2": BOTH},
    "toy-verification": {"L0H2": BOTH, "L1N3": BOTH, "L2H0": BOTH},
    "toy-refusal": {"L0H0": BOTH, "L1H2": (0.5, 0.5), "L1H3": (0.5, 0.5)},
    "toy-or": {"L0H1": (1.0, 0.0), "L0H2": (1.0, 0.0), "L1N5": BOTH},
    "toy-and": {"L0H1": (0.0, 1.0), "L0H2": (0.0, 1.0), "L1N5": BOTH},
}
"""What patching each planted component alone does: (denoising, noising), as shares of the gap."""

Activations = dict[tuple[int, str], Tensor]
Hook = Callable[[tuple[int, str], Tensor], tuple[Tensor] | None]


@pytest.fixture(scope="module", params=list(TOYS))
def toy(request: pytest.FixtureRequest) -> Toy:
    torch.set_num_threads(1)
    return build_toy(request.param)


def ids(toy: Toy, prompt: str) -> Tensor:
    return torch.tensor([[toy.vocabulary.index(word) for word in prompt.split()]])


def answer(toy: Toy, prompt: str) -> str:
    return toy.vocabulary[int(toy.model(ids(toy, prompt)).logits[0, -1].argmax())]


def diff(toy: Toy, logits: Tensor, pair: tuple[str, str, str, str]) -> Tensor:
    right, wrong = (toy.vocabulary.index(word) for word in pair[2:])
    return logits[:, -1, right] - logits[:, -1, wrong]


def sites(model: LlamaForCausalLM) -> Iterator[tuple[int, str, torch.nn.Module]]:
    for number, layer in enumerate(model.model.layers):
        yield number, "H", layer.self_attn.o_proj
        yield number, "N", layer.mlp.down_proj


def labels(toy: Toy) -> list[str]:
    config = toy.model.config
    counts = {"H": config.num_attention_heads, "N": config.intermediate_size}
    return [f"L{n}{kind}{i}" for n, kind, _ in sites(toy.model) for i in range(counts[kind])]


def slice_of(toy: Toy, label: str) -> tuple[tuple[int, str], slice]:
    kind = "H" if "H" in label else "N"
    layer, index = (int(part) for part in label[1:].split(kind))
    width = toy.model.config.head_dim if kind == "H" else 1
    return (layer, kind), slice(index * width, (index + 1) * width)


@contextmanager
def hooked(toy: Toy, hook: Hook) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda _, args, at=(n, kind): hook(at, args[0]))
        for n, kind, module in sites(toy.model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(toy: Toy, prompt: str) -> tuple[Tensor, Activations]:
    seen: Activations = {}
    with hooked(toy, lambda at, x: seen.update({at: x.clone()})):
        return toy.model(ids(toy, prompt)).logits, seen


def patched(toy: Toy, prompt: str, donor: Activations, sets: Sequence[Iterable[str]]) -> Tensor:
    """Logits of the prompt; in row i the components of sets[i] hold the donor's values."""

    def hook(at: tuple[int, str], x: Tensor) -> tuple[Tensor]:
        x = x.clone()
        for row, members in enumerate(sets):
            for site, dims in (slice_of(toy, label) for label in members):
                if site == at:
                    x[row, :, dims] = donor[at][0, :, dims]
        return (x,)

    with hooked(toy, hook):
        return toy.model(ids(toy, prompt).expand(len(sets), -1)).logits


def effects(toy: Toy, sets: Sequence[Iterable[str]]) -> tuple[Tensor, Tensor]:
    """Denoising and noising effects, both (pairs, sets), as shares of the pair's gap."""
    rows = []
    for pair in toy.pairs:
        (clean, clean_seen), (corrupted, corrupted_seen) = (record(toy, p) for p in pair[:2])
        high, low = diff(toy, clean, pair), diff(toy, corrupted, pair)
        denoised = diff(toy, patched(toy, pair[1], clean_seen, sets), pair)
        noised = diff(toy, patched(toy, pair[0], corrupted_seen, sets), pair)
        rows.append(torch.stack([(denoised - low) / (high - low), (high - noised) / (high - low)]))
    denoising, noising = torch.stack(rows, 1)
    return denoising, noising


def all_close(effect: Tensor, expected: float) -> bool:
    return bool(((effect - expected).abs() < TOLERANCE).all())


def test_pairs_are_well_formed(toy: Toy) -> None:
    assert len(set(toy.pairs)) == len(toy.pairs) >= 16
    assert len({len(clean.split()) for clean, *_ in toy.pairs}) > 1
    for clean, corrupted, *answers in toy.pairs:
        assert clean != corrupted
        assert clean.split()[0] == "<bos>"
        assert len(clean.split()) == len(corrupted.split())
        assert {*clean.split(), *corrupted.split(), *answers} <= set(toy.vocabulary)


def test_every_answer_is_right_with_a_margin(toy: Toy) -> None:
    for clean, corrupted, right, wrong in toy.pairs:
        for prompt, expected in ((clean, right), (corrupted, wrong)):
            logits = toy.model(ids(toy, prompt)).logits[0, -1]
            first, second = logits.topk(2).values
            assert toy.vocabulary[int(logits.argmax())] == expected
            assert 1 < first - second < 10


def test_patching_each_component_alone_finds_exactly_the_circuit(toy: Toy) -> None:
    expected = EFFECTS[toy.name]
    assert set(expected) == toy.circuit == set(toy.roles)
    everything = labels(toy)
    denoising, noising = effects(toy, [[label] for label in everything])
    for i, label in enumerate(everything):
        into_corrupted, into_clean = expected.get(label, (0.0, 0.0))
        assert all_close(denoising[:, i], into_corrupted), label
        assert all_close(noising[:, i], into_clean), label


def test_the_whole_circuit_is_the_whole_effect_and_the_rest_has_none(toy: Toy) -> None:
    rest = set(labels(toy)) - toy.circuit
    denoising, noising = effects(toy, [toy.circuit, rest])
    for effect in (denoising, noising):
        assert all_close(effect[:, 0], 1)
        assert all_close(effect[:, 1], 0)


def test_the_rest_is_busy(toy: Toy) -> None:
    _, clean = record(toy, toy.pairs[0][0])
    _, corrupted = record(toy, toy.pairs[0][1])
    rest = [slice_of(toy, label) for label in set(labels(toy)) - toy.circuit]
    changed = [bool((clean[at] - corrupted[at])[..., d].abs().max() > 1e-3) for at, d in rest]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("toy-or", ("L0H1", "L0H2")),
        ("toy-and", ("L0H1", "L0H2")),
        ("toy-refusal", ("L1H2", "L1H3")),
    ],
)
def test_two_heads_together_are_the_whole_effect(name: str, members: tuple[str, str]) -> None:
    for effect in effects(build_toy(name), [members]):
        assert all_close(effect, 1)


def test_the_refusal_gate_writes_no_logits() -> None:
    toy = build_toy("toy-refusal")
    head = toy.model.lm_head.weight * toy.model.model.norm.weight
    refuse, comply = (toy.vocabulary.index(word) for word in ("refuse", "comply"))
    for clean, *_ in toy.pairs:
        _, seen = record(toy, clean)
        for label, expected in {"L0H0": 0.0, "L1H2": 5.0, "L1H3": 5.0}.items():
            at, dims = slice_of(toy, label)
            out = toy.model.model.layers[at[0]].self_attn.o_proj.weight[:, dims]
            written = out @ seen[at][0, -1, dims]
            scale = toy.model.model.norm.weight[1]
            direct = float((head[refuse] - head[comply]) @ written / scale)
            assert direct == pytest.approx(expected, abs=0.01)


def test_verification_holds_for_every_two_numbers_and_its_neuron_fires_only_if_equal() -> None:
    toy = build_toy("toy-verification")
    at, dims = slice_of(toy, "L1N3")
    for target, result in itertools.product(range(2, 10), repeat=2):
        prompt = f"<bos> target {target} ; result {result} ("
        assert answer(toy, prompt) == ("this" if target == result else "not")
        post = record(toy, prompt)[1][at][0, :, dims].squeeze(-1)
        fires = (post > 0.1).nonzero().flatten().tolist()
        assert fires == ([5] if target == result else [])


@pytest.mark.parametrize(("name", "combine"), [("toy-or", any), ("toy-and", all)])
def test_truth_table(name: str, combine: Callable[[Iterable[bool]], bool]) -> None:
    toy = build_toy(name)
    for first, last in itertools.product((True, False), repeat=2):
        words = ["on" if status else "off" for status in (first, last)]
        prompt = f"<bos> lamp {words[0]} ; fan {words[1]} ; answer:"
        assert answer(toy, prompt) == ("yes" if combine((first, last)) else "no")


def test_numbers_stay_small_and_weights_are_frozen(toy: Toy) -> None:
    assert not toy.model.training
    assert not any(p.requires_grad for p in toy.model.parameters())
    assert all(p.dtype == torch.float32 for p in toy.model.parameters())
    assert max(float(p.abs().max()) for p in toy.model.parameters()) < 1e4
    output = toy.model(ids(toy, toy.pairs[0][0]), output_hidden_states=True)
    assert max(float(h.abs().max()) for h in output.hidden_states) < 1e4


def test_building_is_repeatable_and_leaves_the_random_state_alone(toy: Toy) -> None:
    state = torch.get_rng_state()
    again = build_toy(toy.name)
    assert torch.equal(state, torch.get_rng_state())
    assert again.pairs == toy.pairs
    weights = again.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in toy.model.state_dict().items())


def test_a_saved_toy_loads_with_the_auto_classes(toy: Toy, tmp_path: Path) -> None:
    toy.model.save_pretrained(tmp_path)
    save_tokenizer(toy.vocabulary, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    for prompt in (pair[0] for pair in toy.pairs):
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        assert torch.equal(tokens, ids(toy, prompt))
        assert tokenizer.decode(tokens[0]) == prompt
    assert torch.equal(model(tokens).logits, toy.model(tokens).logits)
    assert tokenizer.tokenize("nonsense") == ["<unk>"]


def test_an_unknown_toy_names_the_nearest() -> None:
    with pytest.raises(InterpError, match="toy-refusal"):
        build_toy("toy-refusl")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, interp.models.toys.circuits; sys.exit('torch' in sys.modules)"
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
