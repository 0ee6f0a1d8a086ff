"""A head looked at: its attention, and its direct share of the logits."""

import pytest
import torch

from interp.core.errors import InterpError
from interp.heads.direct_attribution import head_logit_attribution
from interp.heads.view import view_head
from interp.heads.weights import head_tokens
from interp.models.loading import load_model, wrap
from interp.overview.logit_parts import direct_attribution
from interp.overview.one_prompt import look
from interp.runs.capture import run_with_cache
from interp.tasks.own_prompts import pairs as own_pairs
from interp.tasks.registry import load_task
from tests.families import tiny


def test_shares_add_up_to_the_logits(family):
    """Heads, MLPs, biases and the embedding together give the final logits exactly."""
    decoder = family.decoder
    if decoder.blocks[0].ln1_post is not None:
        pytest.skip("a post-norm follows attention: heads do not add up")
    prompt = (5, 6, 7, 8)
    seen = run_with_cache(
        family, [prompt], sites=["resid_pre", "resid_post", "attn_out", "mlp_out"], positions="last"
    )
    whole = seen[family.n_layers - 1, "resid_post"][0]
    parts = [seen[0, "resid_pre"][0]]
    for layer in range(family.n_layers):
        parts += [seen[layer, "attn_out"][0], seen[layer, "mlp_out"][0]]
    normed = sum(decoder.ln_final.share(part, whole) for part in parts)
    if decoder.ln_final.bias is not None:
        normed = normed + decoder.ln_final.bias
    torch.testing.assert_close(
        decoder.logits(normed[None])[0], seen.logits[0], atol=2e-5, rtol=1e-4
    )


def test_heads_sum_to_attention(family):
    """z W_O of all heads plus the output bias is attn_out."""
    decoder = family.decoder
    seen = run_with_cache(family, [(5, 6, 7)], sites=["z", "attn_out"], layers=[1])
    attn = decoder.blocks[1].attn
    weight = attn.o.weight.view(attn.n_heads, attn.d_head, -1)
    total = torch.einsum("phd,hdm->pm", seen[1, "z"][0], weight)
    if attn.o.bias is not None:
        total = total + attn.o.bias
    if decoder.blocks[1].ln1_post is not None:
        total = decoder.blocks[1].ln1_post(total)
    torch.testing.assert_close(total, seen[1, "attn_out"][0], atol=2e-5, rtol=0)


@pytest.mark.long
def test_the_sink_takes_what_its_head_does_not_give_to_tokens(family_models):
    """Without the sink the same scores are shared among the tokens alone."""
    model, plain, prompt = family_models["gpt-oss"], tiny("gpt-oss"), (5, 9, 2, 7, 11)
    for layer in plain.model.layers:
        layer.self_attn.sinks.data.fill_(-1e9)
    without = wrap(plain, name="no sinks")
    view, full = (view_head(one, prompt, 0, 1) for one in (model, without))
    assert full.sink is not None
    torch.testing.assert_close(full.sink, torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(view.pattern, full.pattern * (1 - view.sink)[:, None])
    assert 0.1 < view.sink.min() < view.sink.max() < 0.9
    seen = look(model, prompt)
    torch.testing.assert_close(torch.from_numpy(seen.sink(0, 1)), view.sink)
    shares = torch.cat([view.pattern, view.sink[:, None]], 1)
    entropy = torch.special.entr(shares).sum(1).mean()
    assert seen.head_attention("entropy")[0, 1] == pytest.approx(float(entropy), abs=1e-5)
    assert f"sink {view.sink[-1]:.2f}" in repr(view)
    assert "to its sink" in view.plot().layout.title.text
    sinks = model.decoder.blocks[0].attn.sinks
    assert head_tokens(model, 0, 1, 5)[0].sink == float(sinks[1])
    other = family_models["llama"]
    assert view_head(other, prompt, 0, 1).sink is None
    assert look(other, prompt).sink(0, 1) is None
    assert head_tokens(other, 0, 1, 5)[0].sink is None


def test_induction_head_on_the_toy():
    model, task = load_model("toy-induction"), load_task("toy-induction")
    view = view_head(model, task, 1, 2, prompt=3, k=3)
    pair = task.pairs[3]
    words = pair.clean.split()
    cue = words[-1]
    assert view.tokens == tuple(words)
    assert int(view.pattern[-1].argmax()) == words.index(cue) + 1
    assert view.promoted[0][0] == pair.answers[0]
    assert view.direct == pytest.approx(8, abs=0.1)
    gate = view_head(load_model("toy-refusal"), load_task("toy-refusal"), 0, 0)
    assert abs(gate.direct) < 0.01


def test_a_head_is_seen_on_answers_of_several_tokens_without_a_direct_part(family_models):
    model = family_models["llama"]
    rows = [((5, 6, 7, 8), (5, 6, 9, 8), ((10, 12),), ((11, 13),))]
    whole = own_pairs(rows).with_metric("log_prob_diff")
    seen, alone = (view_head(model, one, 1, 1) for one in (whole, rows[0][0]))
    assert seen.direct is None
    assert seen.promoted == alone.promoted
    assert seen.pattern.equal(alone.pattern)


def test_direct_attribution_is_one_number_everywhere(family, monkeypatch):
    """The overview, the scores of a task, the view of a head and the plain definition agree."""
    monkeypatch.setattr("interp.heads.switching.check_gap", lambda one, other: None)
    pairs = [((5, 6, 7, 8), (5, 6, 9, 8), 10, 11), ((20, 21, 22), (23, 24, 25), 30, 31)]
    task, decoder = own_pairs(pairs), family.decoder
    scores = head_logit_attribution(family, task)
    layer, head = 1, 2
    for i, (clean, corrupted, answer, wrong) in enumerate(pairs):
        parts = [direct_attribution(family, rows, answer, wrong) for rows in (clean, corrupted)]
        view = view_head(family, task, layer, head, prompt=i, k=family.d_vocab)
        assert view.direct == pytest.approx(parts[0].heads[layer, head], abs=1e-5)
        own = parts[0].heads - parts[1].heads
        assert scores.effects[i] == pytest.approx(own, abs=1e-5)
        seen = run_with_cache(family, clean, sites=["z", "resid_post"], positions="last")
        z, block = seen[layer, "z"], decoder.blocks[layer]
        share = z[0, head] @ block.attn.W_O[head]
        if block.ln1_post is not None:
            share = block.ln1_post.share(share, block.attn.o(z.flatten(1))[0])
        share = decoder.ln_final.share(share, seen[family.n_layers - 1, "resid_post"][0])
        logits = decoder.unembed @ share
        assert view.direct == pytest.approx(float(logits[answer] - logits[wrong]), abs=1e-5)
        written = dict(view.promoted)
        answer, wrong = family.strings([answer, wrong])
        assert view.direct == pytest.approx(written[answer] - written[wrong], abs=1e-5)


def test_a_head_on_a_text_without_answers(family_models):
    view = view_head(family_models["gemma2"], (5, 6, 7), 0, 0)
    assert view.direct is None
    assert len(view.promoted) == 10
    assert view.pattern.shape == (3, 3)
    assert "attends most to" in repr(view)
    assert len(view.plot().data) == 1
    with pytest.raises(InterpError, match="heads 0 to 3"):
        view_head(family_models["gemma2"], (5, 6, 7), 0, 4)


def test_a_head_by_its_label():
    model, task = load_model("toy-induction"), load_task("toy-induction")
    one, same = view_head(model, task, "L1H2"), view_head(model, task, 1, 2)
    assert torch.equal(one.pattern, same.pattern)
    assert one.promoted == same.promoted
    for label, head, message in (
        ("L1H99", None, "heads 0 to"),
        ("L1.mlp_out", None, "give heads such as"),
        ("L1H2", 2, "whole number"),
        (1, None, "whole number"),
    ):
        with pytest.raises(InterpError, match=message):
            view_head(model, task, label, head)
