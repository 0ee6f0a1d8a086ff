"""Every result shows a line, a table and, if it has a figure, a figure."""

import re

import numpy as np
import pytest
import torch

import interp
from interp.models.unembedding import Token
from interp.plots.tables import MOST, Listing
from interp.runs.kinds import add, zero

PAIRS = [((5, 6, 7, 8), (5, 6, 9, 8), 10, 11), ((20, 21, 22), (23, 24, 25), 30, 31)]
ROW = (5, 9, 2, 7, 11, 3)


@pytest.fixture(scope="module")
def task():
    return interp.pairs(PAIRS)


RESULTS = {
    "activation_patching": lambda m, t: interp.activation_patching(m, t, unit="metric"),
    "attribution_patching": lambda m, t: interp.attribution_patching(m, t, unit="metric"),
    "direct_attribution": lambda m, t: interp.direct_attribution(m, ROW, 4, 8),
    "its top": lambda m, t: interp.direct_attribution(m, ROW, 4, 8).top(20),
    "ablate": lambda m, t: interp.ablate(m, t, [zero("L0H1")], tokens=[5, 6]),
    "find_circuit": lambda m, t: interp.find_circuit(m, t.first(1)),
    "circuit": lambda m, t: interp.find_circuit(m, t.first(1)).circuit(20),
    "logit_lens": lambda m, t: interp.logit_lens(m, ROW),
    "look": lambda m, t: interp.look(m, ROW),
    "neurons": lambda m, t: interp.look(m, ROW).neurons(3),
    "run_with_cache": lambda m, t: interp.run_with_cache(m, ROW),
    "scan": lambda m, t: interp.scan(m, ROW, answer=4, wrong=8, k=3, draws=2),
    "scan_heads": lambda m, t: interp.heads.scan_heads(
        m, t.with_metric("log_odds").first(1), interp.heads.switch_off(m)
    ),
    "top_tokens": lambda m, t: interp.top_tokens(m, ROW, 3),
    "view_head": lambda m, t: interp.view_head(m, t, "L1H2"),
    "view_neuron": lambda m, t: interp.view_neuron(m, "L1N2", ROW),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RESULTS)
def test_it_shows_a_line_and_a_table(family_models, task, name):
    found = RESULTS[name](family_models["llama"], task)
    assert "\n" not in repr(found)
    assert len(repr(found)) < 500
    shown = found._repr_html_()
    assert "<table" in shown
    assert 1 < shown.count("<tr") <= 1 + max(MOST, 3)
    if hasattr(found, "plot"):
        assert found.plot().to_json()


def test_the_strongest_rows_come_first(family_models, task):
    scores = interp.activation_patching(family_models["llama"], task, unit="metric")
    order = np.argsort(-np.abs(scores.values), axis=None, kind="stable")
    labels = re.findall(r"<td>(L\dH\d)</td>", scores._repr_html_())
    cells = [divmod(int(at), scores.values.shape[1]) for at in order[:MOST]]
    assert labels == [scores.label(cell) for cell in cells]


def test_a_gap_of_zero_leaves_the_line_alone(family_models):
    same = interp.pair(ROW, ROW, 4, 8)
    with pytest.warns(UserWarning, match="does not distinguish"):
        scores = interp.activation_patching(
            family_models["llama"], same, unit="metric", direction="noise"
        )
    assert "Scores(" in interp.results.Scores(**vars(scores) | {"unit": "gap"})._repr_html_()


def test_a_listing_names_and_cuts():
    tokens = [Token(i, f" t{i}", i / 10) for i in range(20)]
    found = Listing(tokens, "probability")
    assert repr(found).startswith("[␣t0 0.000, ␣t1 0.100")
    assert repr(found).endswith("and 8 more]")
    assert repr(found[1:3]) == "[␣t1 0.100, ␣t2 0.200]"
    assert found.to_dataframe()["probability"].tolist() == [i / 10 for i in range(20)]
    assert "␣t3" in found._repr_html_()
    assert list(found.plot().data[0].x) == [i / 10 for i in range(20)]


def test_inputs_print_in_one_line(task):
    for one in (task, add("L1.resid_post", torch.ones(32)), zero("L0H1")):
        assert len(repr(one)) < 250
