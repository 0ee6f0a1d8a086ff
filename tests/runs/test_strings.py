"""Probabilities of texts of several tokens under changes, against passes over prompt + text."""

import numpy as np
import pytest

import interp
from interp.core.errors import InterpError
from interp.runs.kinds import zero
from interp.runs.next_tokens import ablate

TEXTS = (" New York", " York", " of the river")


@pytest.mark.long
def test_ablate_gives_the_probability_of_the_whole_text(smollm):
    prompts = ["The largest city of the country is", "He went to", "She lives in"]
    changes = [zero("L20H3"), zero("L0H1"), zero("L5.mlp_out")]
    found = ablate(smollm, prompts, changes, tokens=TEXTS)
    first = ablate(smollm, prompts, changes, tokens=[" York"])
    np.testing.assert_allclose(found.probabilities[..., 1], first.probabilities[..., 0], rtol=1e-4)
    np.testing.assert_allclose(found.kl, first.kl, atol=1e-5)
    assert (found.top == first.top).all()
    assert found.tokens == TEXTS
    for c, change in enumerate([None, *changes]):
        for i, prompt in enumerate(prompts):
            before = smollm.tokenize(prompt).tokens
            for t, text in enumerate(TEXTS):
                added = smollm.token_id(text)
                rows = [(*before, *added[:j]) for j in range(len(added))]
                if change is None:
                    logits = smollm.last_logits(rows)
                else:
                    with interp.intervene(smollm, change):
                        logits = smollm.last_logits(rows)
                logs = logits.double().log_softmax(-1)[range(len(added)), list(added)]
                assert found.probabilities[c, i, t] == pytest.approx(
                    float(logs.sum().exp()), rel=2e-3
                )


def test_a_change_at_one_token_leaves_the_text_alone(smollm):
    """The change of the prompt's last token is no change of the text's own tokens."""
    at_end, everywhere = zero("L20H3", positions="last"), zero("L20H3")
    found = ablate(smollm, ["He went to"], [at_end, everywhere], tokens=[" New York"])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found.probabilities[1], found.probabilities[2], rtol=1e-6)


def test_where_it_does_not_fit_it_is_refused(smollm):
    with pytest.raises(InterpError, match="several tokens"):
        ablate(smollm, ["He went to"], zero("L20H3"), tokens=[" New York"], where=1)
    with pytest.raises(InterpError, match="no tokens"):
        ablate(smollm, ["He went to"], zero("L20H3"), tokens=[""])
