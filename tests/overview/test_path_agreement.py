"""Composition against path effects: a path that is planted, and correlations by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from interp.core.errors import InterpError
from interp.heads.composition import head_composition
from interp.models.loading import load_model
from interp.overview.path_agreement import composition_agreement
from interp.patching.path import path_patching
from interp.tasks.own_prompts import pairs as own_pairs
from interp.tasks.registry import load_task


def test_the_planted_path_is_predicted():
    """Of the four senders the previous-token head alone has an effect, and the largest score."""
    model, task = load_model("toy-induction"), load_task("toy-induction", n=8)
    found = composition_agreement(model, task, ["L1H2"])
    assert found.receivers == ("L1H2.q", "L1KV1.k", "L1KV1.v")
    effects = path_patching(
        model, task, receivers=["L1KV1.k"], layers=[0], freeze_mlps=True, unit="metric"
    ).values.ravel()
    made = head_composition(model).values[1, 0, :, 1]
    score = np.sqrt(np.square(made[:, 2:]).mean(1))
    assert int(np.abs(effects).argmax()) == int(score.argmax()) == 1
    assert found.spearman[1] == pytest.approx(spearmanr(score, np.abs(effects)).statistic)
    other = np.sqrt(np.square(made[:, :2]).mean(1))
    assert found.control[1] == pytest.approx(spearmanr(other, np.abs(effects)).statistic)
    assert found.senders.tolist() == [4, 4, 4]
    assert np.isnan(found.spearman).tolist() == [True, False, True]  # nothing goes through q or v
    assert found.mean().n == 1


@pytest.mark.filterwarnings("ignore:the model does not distinguish")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_means_over_receivers(family_models, name):
    model = family_models[name]
    pairs = [((5, 6, 7, 8), (5, 9, 7, 8), 10, 11), ((20, 21, 22, 8), (20, 23, 22, 8), 30, 31)]
    found = composition_agreement(model, own_pairs(pairs), ["L2H1", "L1H0"])
    assert len(found.receivers) == 6
    assert found.mean("q").n == 2
    assert found.mean().n == 6
    assert found.mean("k").mean == pytest.approx(found.spearman[[1, 4]].mean())
    assert found.beyond_control("v").mean == pytest.approx(
        (found.spearman - found.control)[[2, 5]].mean()
    )
    assert (np.abs(found.spearman) <= 1).all()
    assert "n=6 receivers" in repr(found)
    assert len(found.to_dataframe()) == 6


def test_heads_without_senders_are_refused(family_models):
    task = own_pairs([((5, 6), (7, 6), 10, 11)])
    for heads in (["L0H1"], ["L1H9"], []):
        with pytest.raises(InterpError):
            composition_agreement(family_models["llama"], task, heads)
