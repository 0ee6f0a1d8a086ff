"""Direct attribution adds up to the logit difference, in every family, and equals hooks."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.statistics import widened
from interp.engine.architecture import Experts
from interp.overview import single_run
from interp.overview.logit_parts import AnswerParts, direct_attribution
from interp.overview.one_prompt import look
from interp.overview.single_run import run_once
from interp.probing.lens import logit_lens
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import add, zero

PROMPT = (5, 9, 2, 7, 11, 3)


@pytest.mark.parametrize("position", [-1, 2])
def test_parts_add_up_to_the_model_s_own_logits(every_family, position):
    if every_family.decoder is None:
        pytest.skip(str(every_family.engine_reason))
    parts = direct_attribution(every_family, PROMPT, 4, 8, position=position)
    assert parts.total == pytest.approx(parts.logit_difference, abs=2e-5)
    cut = PROMPT if position == -1 else PROMPT[: position + 1]
    logits = widened(every_family.last_logits([cut])[0])
    cap = every_family.decoder.final_softcap
    if cap is not None:
        logits = torch.atanh(logits / cap) * cap
    assert parts.total == pytest.approx(float(logits[4] - logits[8]), abs=2e-4)
    assert sum(part.value for part in parts.parts) == pytest.approx(parts.total, abs=1e-5)


def test_a_head_s_value_is_what_its_output_adds(family):
    """Against the plain definition: the final norm of the stream's parts, through hooks."""
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    decoder, layer, head = family.decoder, 1, 1
    parts = direct_attribution(family, PROMPT, 4, 8)
    last = family.n_layers - 1
    seen = run_with_cache(family, [PROMPT], sites=["z", "resid_post"], layers=[layer, last])
    whole, block = seen[last, "resid_post"][0, -1], decoder.blocks[layer]
    z = seen[layer, "z"][0, -1]
    written = z[head].to(block.attn.o.weight) @ block.attn.W_O[head]
    if block.ln1_post is not None:
        written = block.ln1_post.share(written, block.attn.o(z.flatten()[None])[0])
    share = decoder.ln_final.share(written, whole.to(written))
    logits = (decoder.unembed @ share).double()
    assert parts.heads[layer, head] == pytest.approx(float(logits[4] - logits[8]), abs=2e-5)
    found = parts.writes(layer, head, k=3)
    for side, sign in ((found.promoted, 1), (found.suppressed, -1)):
        expected = sign * (sign * logits).topk(3).values
        np.testing.assert_allclose([t.value for t in side], expected, atol=2e-5)
        assert float(logits[side[0].token]) == pytest.approx(side[0].value, abs=2e-5)


def test_sources_and_neurons_add_up(every_family):
    if every_family.decoder is None:
        pytest.skip(str(every_family.engine_reason))
    parts = direct_attribution(every_family, PROMPT, 4, 8, position=3)
    for layer, head in np.ndindex(parts.heads.shape):
        sources = parts.by_source(layer, head)
        assert sources.sum() == pytest.approx(parts.heads[layer, head], abs=2e-5)
        assert sources[4:] == pytest.approx(0)
    block = every_family.decoder.blocks[1]
    if isinstance(block.mlp, Experts):
        with pytest.raises(InterpError, match="mixture of experts"):
            parts.neurons(1)
        each = parts.experts(1).numpy()
        assert each.sum() == pytest.approx(parts.mlps[1], abs=2e-5)
        seen = run_with_cache(every_family, [PROMPT], sites="expert_out", layers=[1])
        unused = (seen[1, "expert_out"][0, 3] == 0).all(-1).numpy()
        assert 1 <= unused.sum() == (each == 0).sum() < len(each)
        with intervene(every_family, zero("L1E0")), pytest.raises(InterpError, match="not keep"):
            direct_attribution(every_family, PROMPT, 4, 8).experts(1)
    elif block.mlp.down.bias is None and (block.ln2_post is None or block.ln2_post.bias is None):
        assert float(parts.neurons(1).sum()) == pytest.approx(parts.mlps[1], abs=2e-5)
        with pytest.raises(InterpError, match="not a mixture"):
            parts.experts(1)


def test_inside_interventions_the_changed_run_is_read(family_models):
    model = family_models["llama"]
    plain = direct_attribution(model, PROMPT, 4, 8)
    with intervene(model, zero("L0H1")):
        changed = direct_attribution(model, PROMPT, 4, 8)
        logits = model.last_logits([PROMPT])[0]
        patterns = [run_once(model, PROMPT).pattern(layer) for layer in range(model.n_layers)]
    assert changed.total == pytest.approx(float(logits[4] - logits[8]), abs=2e-4)
    assert changed.total == pytest.approx(changed.logit_difference, abs=2e-5)
    assert changed.heads[0, 1] == 0
    with intervene(model, zero("L0.attn_out")):
        without = direct_attribution(model, PROMPT, 4, 8)
        logits = model.last_logits([PROMPT])[0]
    assert without.total == pytest.approx(float(logits[4] - logits[8]), abs=2e-4)
    assert plain.heads[0, 1] != 0
    run = run_once(model, PROMPT)
    torch.testing.assert_close(run.pattern(0), patterns[0], atol=1e-6, rtol=1e-5)


def test_the_engine_s_attention_is_the_model_s(family):
    if family.decoder is None or family.sites["pattern"] is not None:
        pytest.skip("no pattern to compare with")
    run = run_once(family, PROMPT)
    seen = run_with_cache(family, [PROMPT], sites=["pattern"])
    for layer in range(family.n_layers):
        hooked = seen[layer, "pattern"][0].transpose(0, 1)
        torch.testing.assert_close(run.pattern(layer).cpu(), hooked, atol=2e-6, rtol=1e-4)


def test_the_answer_and_the_runner_up_by_default(family_models):
    model = family_models["gpt2"]
    top = model.last_logits([PROMPT])[0].topk(2).indices.tolist()
    parts = direct_attribution(model, PROMPT)
    assert [parts.answer, parts.wrong] == top
    assert parts.total > 0
    assert direct_attribution(model, PROMPT, top[0]).wrong == top[1]
    assert direct_attribution(model, PROMPT, top[1]).wrong == top[0]
    assert parts.top(3)[0].value == max((p.value for p in parts.parts), key=abs)
    assert {part.kind for part in parts.top(5, kind="head")} == {"head"}
    assert len(repr(parts)) < 300
    assert "L0H0" in parts.to_dataframe()["label"].tolist()
    assert len(parts.plot().data) == 2


@pytest.mark.parametrize("site", ["L1.resid_pre", "L1.resid_mid", "L1.resid_post"])
def test_a_change_of_the_stream_is_a_part_of_its_own(family, site):
    """Steering adds to the stream between layers: the parts still add up, and norms are right."""
    if family.decoder is None or family.sites[site.partition(".")[2]] is not None:
        pytest.skip("no such site")
    with intervene(family, add(site, torch.linspace(-1, 1, family.d_model))):
        seen = look(family, PROMPT, 4, 8)
        stream = run_with_cache(family, [PROMPT], sites=["resid_pre", "resid_post"])
        lens = logit_lens(family, [PROMPT], k=1)
    parts = seen.attribution()
    assert parts.total == pytest.approx(parts.logit_difference, abs=5e-5)
    assert max(abs(parts.changes).max(), abs(parts.attention_bias).max()) > 1e-3
    for layer in range(family.n_layers):
        expected = stream[layer, "resid_pre"][0].norm(dim=-1)
        np.testing.assert_allclose(seen.norms[layer], expected, rtol=1e-4)
        assert seen.lens.top(layer)[0].token == lens.top(layer)[0].token


ANSWER, FOIL = (4, 6, 8), (4, 1, 12)


def test_an_answer_s_parts_are_the_sum_over_teacher_forced_passes(family):
    if family.decoder is None:
        pytest.skip(str(family.engine_reason))
    whole, slow = direct_attribution(family, PROMPT, ANSWER, FOIL), 0.0
    assert isinstance(whole, AnswerParts)
    cap = family.decoder.final_softcap
    each = []
    for j, (right, other) in enumerate(zip(ANSWER, FOIL, strict=True)):
        rows = PROMPT + ANSWER[:j]
        logits = widened(family.last_logits([rows])[0])
        logits = logits if cap is None else torch.atanh(logits / cap) * cap
        slow += float(logits[right] - logits[other])
        if right != other:  # a shared token adds nothing
            each.append(direct_attribution(family, rows, right, other))
    assert len(each) == 2
    assert whole.total == pytest.approx(slow, abs=3e-4)
    assert whole.total == pytest.approx(whole.logit_difference, abs=5e-5)
    assert sum(part.value for part in whole.parts) == pytest.approx(whole.total, abs=1e-5)
    for name in ("heads", "mlps", "attention_bias"):
        expected = sum(getattr(one, name) for one in each)
        np.testing.assert_allclose(getattr(whole, name), expected, atol=5e-5)
    sources = whole.by_source(1, 1)
    assert len(sources) == len(PROMPT) + len(ANSWER) - 1
    assert sources.sum() == pytest.approx(whole.heads[1, 1], abs=2e-5)
    expected = sum(one.direction for one in each)
    torch.testing.assert_close(whole.direction, expected)


def test_an_answer_is_compared_with_the_likeliest_other_tokens(family_models):
    model = family_models["llama"]
    parts = direct_attribution(model, PROMPT, ANSWER)
    assert isinstance(parts, AnswerParts)
    assert len(repr(parts)) < 300
    for j, (token, one) in enumerate(zip(ANSWER, parts.each, strict=True)):
        top = model.last_logits([PROMPT + ANSWER[:j]])[0].topk(2).indices.tolist()
        assert (one.answer, one.wrong) == (token, next(t for t in top if t != token))
        assert one.position == len(PROMPT) - 1 + j
    seen = look(model, PROMPT, ANSWER, FOIL)
    assert seen.run.n_tokens == len(PROMPT)
    assert seen.attribution().total == pytest.approx(
        direct_attribution(model, PROMPT, ANSWER, FOIL).total
    )
    summed = sum(one.value for one in seen.neurons(model.decoder.d_mlp * model.n_layers))
    assert summed == pytest.approx(float(seen.attribution().mlps.sum()), abs=1e-4)
    assert np.isfinite([one.score for one in seen.neurons(5, by="answer")]).all()
    assert seen.to_dict()["difference"]["sum_of_parts"] == pytest.approx(seen.attribution().total)


def test_the_lens_names_the_token_that_both_answers_begin_with(family_models):
    model = family_models["llama"]
    shared, both = ((ANSWER, FOIL), ((6, 4), (1, 4)))
    assert look(model, PROMPT, *shared).lens.words == tuple(model.strings([4]))
    assert look(model, PROMPT, *both).lens.words == tuple(model.strings([6, 1]))


def test_answers_that_cannot_be_compared_token_by_token_are_refused(family_models):
    model = family_models["llama"]
    seen = look(model, PROMPT, ANSWER, FOIL)
    with pytest.raises(InterpError, match="3 and 1 tokens.*as many tokens, or none"):
        direct_attribution(model, PROMPT, ANSWER, 4)
    with pytest.raises(InterpError, match="1 and 3 tokens"):
        look(model, PROMPT, wrong=FOIL)
    with intervene(model, zero("L1H0")):
        for refused in (lambda: look(model, PROMPT, ANSWER), seen.attribution):
            with pytest.raises(InterpError, match="3 tokens inside intervene.*first token"):
                refused()


def test_an_answer_runs_with_the_weights_and_the_memory_of_its_prompt(family_models, monkeypatch):
    model = family_models["llama"]
    seen = look(model, PROMPT, ANSWER, FOIL, budget_gb=1.5)
    given, run = [], single_run.run_once
    monkeypatch.setattr(
        single_run, "run_once", lambda *a, budget_gb: given.append(budget_gb) or run(*a)
    )
    seen.attribution()
    assert given == [1.5]
    monkeypatch.setattr(model, "hash", "0" * 64)
    with pytest.raises(InterpError, match="weights"):
        seen.attribution()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answer": 4, "wrong": 4}, "both are the token"),
        ({"answer": ANSWER, "wrong": ANSWER}, "both are the tokens"),
        ({"position": 6}, "token 6 of a prompt.*6 tokens.*0 to 5"),
        ({"position": True}, "position of direct_attribution.*whole number"),
        ({"answer": 10**9}, "vocabulary"),
        ({"answer": ()}, "no tokens"),
    ],
)
def test_bad_input_is_refused(family_models, arguments, message):
    with pytest.raises(InterpError, match=message):
        direct_attribution(family_models["llama"], PROMPT, **arguments)


def test_a_run_over_the_budget_is_refused(family_models):
    with pytest.raises(InterpError, match="over the budget of 1e-06 GB.*shorter prompt"):
        run_once(family_models["llama"], PROMPT, budget_gb=1e-6)


def test_what_does_not_exist_is_refused(family_models):
    parts = direct_attribution(family_models["llama"], PROMPT, 4, 8)
    for refused, message in (
        (lambda: parts.top(kind="heads"), "kind of part 'heads'"),
        (lambda: parts.by_source(99, 0), "layer"),
        (lambda: parts.by_source(0, 99), "head"),
        (lambda: parts.neurons(99), "layer"),
        (lambda: parts.plot(limit=-1), "limit"),
        (lambda: look(family_models["llama"], PROMPT, 4, 4), "both are the token"),
    ):
        with pytest.raises(InterpError, match=message):
            refused()
