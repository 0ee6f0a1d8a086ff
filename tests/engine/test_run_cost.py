"""The arithmetic of runs equals what torch counts while they run."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.engine.forward import Runner
from interp.engine.restart import baseline
from interp.engine.run_cost import plain_flops, read_flops, restart_flops, text_flops
from interp.models.loading import wrap
from interp.patching.path import path_patching
from interp.patching.path_cost import path_flops, path_operations
from interp.patching.path_spec import PathSpec, lay_out_paths
from interp.runs.kinds import make_ablation
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=160, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config).eval(), name="six layers", check=False)


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    sides = rng.integers(3, 200, (3, 2, LENGTH)).tolist()
    pairs = (
        interp.PromptPair(clean=tuple(a), corrupted=tuple(b), answers=(3,), wrong=(4,))
        for a, b in sides
    )
    return interp.Task(name="random", pairs=tuple(pairs))


def counted(run):
    """The operations of matrix products that torch sees."""
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        run()
    return seen.get_total_flops()


def close(value):
    """Torch does not count the mixing of its fused attention, 3 % here."""
    return pytest.approx(value, rel=0.05)


def test_plain_runs_and_texts(model, task):
    prompts, decoder = [pair.clean for pair in task.pairs], model.decoder
    found = plain_flops(decoder, [LENGTH] * 3)
    assert close(found) == counted(lambda: baseline(Runner(decoder), prompts))
    texts = text_flops(decoder, [LENGTH] * 3, 10)
    seen = counted(lambda: interp.generate(model, prompts, 10))
    assert texts == pytest.approx(seen, rel=0.1)  # the last new token is not run
    assert texts > found


@pytest.mark.parametrize(("layer", "last"), [(3, 2), (0, 1), (4, 2), (1, None)])
def test_restarted_runs(model, task, layer, last):
    prompts, n = [pair.clean for pair in task.pairs], 7
    runs = keep_runs(model, prompts, last=last or 1, whole=last is None)
    zeroed = [make_ablation(model, [f"L{layer}H1"])] * n
    options = {"tokens": [3], "where": last or "all", "runs": runs}
    plain = counted(lambda: ablate(model, prompts, [], **options))
    changed = counted(lambda: ablate(model, prompts, zeroed, **options)) - plain
    found = restart_flops(model.decoder, [LENGTH] * 3, layer=layer, last=last)
    assert n * (found + read_flops(model.decoder, 3)) == close(changed)


@pytest.mark.filterwarnings("ignore:the model does not distinguish")
@pytest.mark.parametrize(
    ("receivers", "positions", "layers"),
    [
        (["logits"], "last", None),
        (["logits"], "all", [2, 3]),
        (["L4H1.q"], "last", None),
        (["L4KV0.k", "L4KV0.v"], "all", range(4)),
        (["L3.mlp_out"], "all", None),
        (["L2H1.q", "L4H0.q"], "all", None),
    ],
)
@pytest.mark.parametrize(
    "others", [{}, {"senders": "mlps"}, {"freeze_mlps": True}], ids=["heads", "mlps", "frozen"]
)
def test_path_patching(model, task, receivers, positions, layers, others):
    options = {"receivers": receivers, "positions": positions, "layers": layers} | others
    sweep = lay_out_paths(model, task, PathSpec(**options))
    lengths = [len(row) for row in sweep.runs.base]
    found = path_operations(model, sweep)
    seen = counted(lambda: path_patching(model, task, **options, unit="metric", cache=False))
    assert found == close(seen)
    free = path_flops(model.decoder, lengths, [[]] * 3, sweep.receivers, sweep.layers)
    assert free == 2 * plain_flops(model.decoder, lengths)  # no token differs
