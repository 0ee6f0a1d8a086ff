"""A map by position names the tokens; the metric log_prob is the log-probability."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interp
from interp.core.metrics import METRICS, Targets
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching

BY = ("layer", "position")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("method", [activation_patching, attribution_patching])
def test_positions_are_named_by_their_tokens(family_models, method):
    model = family_models["llama"]
    task = interp.pairs([((5, 6, 7), (5, 8, 7), 10, 11), ((5, 6, 9), (5, 8, 9), 10, 11)])
    once = method(model, task, site="resid_pre", by=BY, unit="metric")
    again = method(model, task, site="resid_pre", by=BY, unit="metric")  # from the cache
    five, six, eight = model.strings([5, 6, 8])
    for scores in (once, again):
        assert scores.extra["tokens"] == [five, f"{six}/{eight}", ""]
        labels = scores.plot().layout.xaxis.ticktext
        assert [label.partition(" ")[0] for label in labels] == ["0", "1", "2"]
        assert "/" in labels[1]
    assert "tokens" not in method(model, task, unit="metric").extra


def test_log_prob_is_the_log_probability(family_models):
    model = family_models["llama"]
    task = interp.pairs([((5, 6, 7), (5, 8, 7), (10, 12), 11)]).with_metric("log_prob")
    scores = activation_patching(model, task, unit="metric")
    for prompt, found in (((5, 6, 7), scores.clean), ((5, 8, 7), scores.corrupted)):
        p = model.last_logits([prompt])[0].double().softmax(-1)[torch.tensor([10, 12])].sum()
        np.testing.assert_allclose(found, float(p.log()), rtol=1e-5)


def test_log_prob_of_a_very_unlikely_answer_is_finite():
    logits = torch.tensor([[200.0, 0.0, -5.0]])
    readout = SimpleNamespace(all=lambda: logits)
    targets = Targets(answers=torch.tensor([[1, 2]]), wrong=torch.tensor([[-1]]))
    found = METRICS["log_prob"](readout, targets)
    assert float(found) == pytest.approx(np.log(1 + np.exp(-5)) - 200)
