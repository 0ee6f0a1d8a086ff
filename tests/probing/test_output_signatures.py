"""What the outputs tell: the features, and what a probe must beat to show something internal."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.models.loading import wrap
from interp.probing.class_probes import probe_classes
from interp.probing.output_signatures import output_signature, states_and_signature
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from tests.families import VOCABULARY, tiny

ROWS = [(5, 6, 7, 8, 9), (10, 11), (13,)]


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("llama"), name="signatures")


def test_features_are_those_of_one_prompt_at_a_time(model):
    found = output_signature(model, ROWS, k=4)
    vectors = found.vectors()
    for i, row in enumerate(ROWS):
        logits = model.hf_model(torch.tensor([row])).logits[0].detach().double()
        p = torch.softmax(logits, -1)
        logs, written, ranks = [], [], []
        for at in range(len(row)):
            ordered = sorted(p[at].tolist(), reverse=True)
            np.testing.assert_allclose(found.top[i, at], ordered[:4], rtol=1e-4)
            logs.append(np.log(ordered[:4]))
            if at + 1 < len(row):
                mine = float(p[at, row[at + 1]])
                r = sum(other > mine for other in ordered)
                written.append(np.log(mine))
                ranks.append(2 * (0.5 - r / VOCABULARY))
                assert float(found.written[i, at]) == pytest.approx(mine, rel=1e-4)
                assert float(found.rank[i, at]) == pytest.approx(ranks[-1], abs=1e-9)
        means = [np.mean(part) if part else 0.0 for part in (written, ranks)]
        wanted = [*logs[-1], *np.mean(logs, 0), *means]
        np.testing.assert_allclose(vectors[i], wanted, rtol=1e-3, atol=1e-6)
    assert (found.top[1, 2:] == 0).all()
    table = found.to_dataframe()
    assert len(table) == 8
    assert table["written"].isna().sum() == 3


def test_states_are_those_of_run_with_cache(model):
    states, _ = states_and_signature(model, ROWS, layers=[0, 2], k=3)
    seen = run_with_cache(model, ROWS, sites="resid_post", layers=[0, 2], positions="last")
    for at, layer in enumerate((0, 2)):
        torch.testing.assert_close(states[at], seen[layer, "resid_post"], atol=1e-5, rtol=1e-4)


def test_inside_intervene_the_signature_is_the_changed_one(model):
    plain = output_signature(model, ROWS, k=3)
    with intervene(model, zero("L0.attn_out")):
        changed = output_signature(model, ROWS, k=3)
    assert (plain.top - changed.top).abs().max() > 1e-4


def prompts(n=240, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(map(int, row)) for row in rng.integers(3, VOCABULARY - 1, size=(n, 6))]


def compared(model, rows, labels):
    """Probes of the layers and of the outputs, with the same held-out prompts."""
    states, signature = states_and_signature(model, rows, layers=[0, 1, 2], k=20)
    layers = probe_classes(states, labels, shuffles=19)
    outputs = probe_classes(signature.vectors(), labels, shuffles=19, test=layers.test)
    return layers, outputs


def test_a_function_of_the_outputs_shows_nothing_internal(model):
    rows = prompts()
    likely = output_signature(model, rows, k=2).top
    last = likely[:, -1, 0].log().numpy()
    labels = (last > np.median(last)).tolist()
    layers, outputs = compared(model, rows, labels)
    assert layers.values[2] > 0.7  # a probe alone would have claimed it
    assert layers.p_any == 1 / 20
    assert outputs.low > 0.75
    assert not layers.minus(outputs).better.any()


def hidden_sign():
    """Coordinate 0 of the stream holds the parity of a token, and nothing reads it.

    Tokens 2 i and 2 i + 1 differ in it alone, so that no output depends on the parity.
    """
    hf_model = tiny("llama")
    inner = hf_model.model
    with torch.no_grad():
        table = inner.embed_tokens.weight
        table[1::2] = table[0:-1:2]
        table[:, 0] = torch.where(torch.arange(len(table)) % 2 == 1, 0.5, -0.5)
        head = hf_model.lm_head.weight
        head[1::2] = head[0:-1:2]
        inner.norm.weight[0] = 0
        for layer in inner.layers:
            layer.input_layernorm.weight[0] = 0
            layer.post_attention_layernorm.weight[0] = 0
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
    return wrap(hf_model, name="sign")


def test_what_the_stream_holds_and_no_output_tells_is_internal():
    model, rows = hidden_sign(), prompts()
    labels = [row[-1] % 2 for row in rows]
    layers, outputs = compared(model, rows, labels)
    assert (layers.values == 1).all()
    assert outputs.low < 0.5
    assert outputs.p_any > 0.05
    assert layers.minus(outputs).better.all()
    noise = np.random.default_rng(0).integers(2, size=len(rows)).tolist()
    layers, outputs = compared(model, rows, noise)
    assert not layers.minus(outputs).better.any()


def test_bad_input_is_refused(model):
    calls = (
        lambda: output_signature(model, []),
        lambda: output_signature(model, ROWS, k=0),
        lambda: output_signature(model, ROWS, k=VOCABULARY + 1),
        lambda: output_signature(model, ROWS, k=2.5),
        lambda: output_signature(model, ["a text"]),
        lambda: output_signature(None, ROWS),
        lambda: states_and_signature(model, ROWS, layers=[3], k=2),
    )
    for i, call in enumerate(calls):
        with pytest.raises(InterpError):
            pytest.fail(f"call {i} was accepted: {call()!r:.80}")
    broken = tiny("llama")
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(InterpError, match="not finite"):
        output_signature(wrap(broken, name="broken", check=False), ROWS)
