"""Where along the prompt edges act: on a toy with a closed form, and against a plain loop."""

from dataclasses import replace

import numpy as np
import pytest

from interp.circuits.model_graph import graph_of
from interp.circuits.positions import edge_positions as module
from interp.circuits.positions.edge_positions import edge_positions
from interp.circuits.scoring.score_edges import score_edges
from interp.core.errors import InterpError
from interp.models.loading import load_model
from interp.tasks.registry import load_task
from tests.families import random_task

EDGES = ("L0H1->L1KV1.k", "L1H2->logits", "input->L1H2.q", "L0H0->L1H2.q")


def named_pairs(n=8):
    """Induction pairs with the letters that followed marked."""
    task = load_task("toy-induction", n=n)
    pairs = tuple(
        replace(pair, positions={"right": pair.answers[0], "wrong": pair.wrong[0], "start": 1})
        for pair in task.pairs
    )
    return replace(task, pairs=pairs)


def test_the_previous_token_head_acts_where_the_letters_followed():
    model, names = load_model("toy-induction"), ["start", "right", "wrong", "last"]
    found = edge_positions(model, named_pairs(), EDGES, positions=names)
    assert found.values.shape == (4, 4)
    keys, logits, query, nothing = found.values
    # The key of the right letter no longer says that the cue came before it, that of the wrong
    # one says so too: each alone halves the attention, and at both the answer is swapped.
    assert keys[[0, 3]] == pytest.approx([0, 0], abs=1e-3)
    assert (keys[1:3] > 0.2).all()
    assert found.whole[0] == pytest.approx(1, abs=0.02)
    assert logits == pytest.approx([0, 0, 0, found.whole[1]], abs=1e-3)
    assert found.whole[1] == pytest.approx(1, abs=0.02)
    # Both prompts end in the same cue: nothing to tell.
    assert query == pytest.approx([0, 0, 0, 0], abs=1e-3)
    assert nothing == pytest.approx([0, 0, 0, 0], abs=1e-3)
    assert "L0H1->L1KV1.k" in str(found)
    table = found.to_dataframe()
    assert len(table) == 4 * 5
    one = found.estimate("L0H1->L1KV1.k", "right")
    row = table[(table["edge"] == "L0H1->L1KV1.k") & (table["position"] == "right")].iloc[0]
    assert (row["mean"], row["low"], row["n"]) == (one.mean, one.low, 8)


@pytest.fixture
def any_gap(monkeypatch):
    monkeypatch.setattr("interp.circuits.trials.trials.check_gap", lambda one, other: None)
    monkeypatch.setattr("interp.circuits.scoring.score_edges.check_gap", lambda one, other: None)


@pytest.mark.parametrize("ablation", ["counterfactual", "resample", "zero", "mean"])
def test_every_token_at_once_is_the_exact_edge_score(family_models, ablation, any_gap):
    model, task = family_models["gemma2"], random_task((8, 8, 8))
    rng, graph = np.random.default_rng(1), graph_of(model)
    chosen = rng.permutation(np.argwhere(graph.allowed))[:12]
    labels = [graph.label(int(w), int(r)) for w, r in chosen]
    options = {"ablation": ablation}
    if ablation == "mean":
        options["reference"] = random_task((6, 7), seed=3)
    found = edge_positions(model, task, labels, **options)
    exact = score_edges(model, task, method="exact", per_prompt=True, **options).per_prompt
    expected = np.stack([exact[:, w, r] for w, r in chosen], 1)
    np.testing.assert_allclose(found.lost_whole, expected, atol=2e-5)
    assert found.positions == tuple(map(str, range(8)))
    if ablation == "counterfactual":
        assert np.abs(found.lost[..., :2]).max() < 1e-5  # before the first difference
    # What reads at the last token alone acts there alone.
    at_logits = [place for place, label in enumerate(labels) if label.endswith("logits")]
    for place in at_logits:
        np.testing.assert_allclose(found.lost[:, place, -1], found.lost_whole[:, place], atol=2e-5)
    assert np.abs(found.lost).max() > 1e-3


def test_cut_into_batches_nothing_changes(family_models, any_gap, monkeypatch):
    model, task = family_models["llama"], random_task()
    labels = ["input->logits", "L0H0->L1KV0.k", "L0.mlp_out->L2H1.q", "L1H3->L2.mlp_out"]
    options = {"positions": ["changed", "last"]}
    whole = edge_positions(model, task, labels, **options)
    monkeypatch.setattr(module, "BATCH", 3)
    again = edge_positions(model, task, labels, **options)
    np.testing.assert_allclose(whole.lost, again.lost, atol=1e-5)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ((), {}, "no edges, or a repeated one"),
        (("L0H0->logits", "L0H0->logits"), {}, "no edges, or a repeated one"),
        (("L2H0->L1H0.q",), {}, "L2H0->L1H0.q"),
        (("L0H0->logits",), {}, "7 to 9 tokens"),
        (("L0H0->logits",), {"positions": []}, "positions=\\[\\]: no position"),
        (("L0H0->logits",), {"positions": "nowhere"}, "this prompt has"),
        (("L0H0->logits",), {"positions": "last", "ablation": "mean"}, "no reference prompts"),
    ],
)
def test_what_is_refused(family_models, any_gap, edges, options, message):
    with pytest.raises(InterpError, match=message):
        edge_positions(family_models["llama"], random_task(), edges, **options)


def test_what_was_not_measured_is_named(family_models, any_gap):
    found = edge_positions(
        family_models["llama"], random_task(), ["L0H0->logits"], positions="last"
    )
    for edge, place in (("L0H1->logits", "last"), ("L0H0->logits", "changed")):
        with pytest.raises(InterpError, match="not measured"):
            found.estimate(edge, place)
