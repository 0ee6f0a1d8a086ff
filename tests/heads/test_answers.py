"""Direct attribution of answers of several tokens, against plain gradients and passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.heads import switching
from interp.heads.direct_attribution import head_logit_attribution
from tests.answers import several, string
from tests.families import random_task, tiny
from tests.plain import Plain


@pytest.mark.parametrize("metric", ["log_prob_diff", "log_prob_diff_per_token"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_terms_are_gradients_times_what_heads_write(name, metric, family_models, monkeypatch):
    """The gradient of log P with respect to the final norm's output, by autograd, norm frozen."""
    monkeypatch.setattr(switching, "check_gap", lambda *ends: None)
    model, task = family_models[name], several(random_task(lengths=(7, 6)), metric)
    found = head_logit_attribution(model, task)
    plain = Plain(name, tiny(name), model)
    decoder = model.decoder
    last = model.n_layers - 1

    def written(tokens, token):
        """(layer, head) what each head adds to log P(token) at the end of a prompt, and the sum."""
        seen, _ = plain.run(tokens)
        final = seen[last, "resid_post"][0, -1]
        out = decoder.ln_final(final[None])[0].detach().requires_grad_()
        logits = out @ decoder.unembed.T
        logs = logits.log_softmax(-1)
        (gradient,) = torch.autograd.grad(logs[token], out)
        read = decoder.ln_final.reader(final[None], gradient[None].detach())[0]
        heads = np.zeros((model.n_layers, model.n_heads))
        for layer in range(model.n_layers):
            outputs = decoder.blocks[layer].attn.head_outputs(seen[layer, "z"][0, -1:])
            heads[layer] = (outputs[:, 0].double() @ read).detach().numpy()
        above = logits[token] - (logs.exp() * logits).sum()
        bias = decoder.ln_final.bias
        if bias is not None:
            above = above - bias @ gradient
        return heads, float(above)

    for i, pair in enumerate(task.pairs):
        total, ends = np.zeros((2, model.n_layers, model.n_heads)), np.zeros(2)
        for side, prompt in enumerate((pair.clean, pair.corrupted)):
            for answers, sign in ((pair.answers, 1), (pair.wrong, -1)):
                for answer in map(string, answers):
                    share = sign / len(answers)
                    share /= len(answer) if metric.endswith("per_token") else 1
                    for j, token in enumerate(answer):
                        heads, above = written((*prompt, *answer[:j]), token)
                        total[side] += share * heads
                        ends[side] += share * above
        np.testing.assert_allclose(found.effects[i], total[0] - total[1], atol=1e-5)
        assert found.clean[i] == pytest.approx(ends[0], abs=1e-4)
        assert found.corrupted[i] == pytest.approx(ends[1], abs=1e-4)
    assert found.metric == f"{metric}, linearised"


def test_one_token_answers_are_the_logit_difference(family_models, monkeypatch):
    monkeypatch.setattr(switching, "check_gap", lambda *ends: None)
    task = random_task()
    logits = head_logit_attribution(family_models["llama"], task)
    same = head_logit_attribution(family_models["llama"], task.with_metric("log_prob_diff"))
    np.testing.assert_allclose(same.effects, logits.effects, atol=1e-12)


def test_strings_without_wrong_answers_are_refused(family_models):
    task = several(metric="log_prob")
    alone = replace(task, pairs=tuple(replace(pair, wrong=()) for pair in task.pairs))
    with pytest.raises(InterpError, match="no wrong"):
        head_logit_attribution(family_models["llama"], alone)
