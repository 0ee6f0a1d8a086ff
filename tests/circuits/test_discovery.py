import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.learned_masks import HIGH, LOW, TEMPERATURE, _Gates, learn_mask
from interp.circuits.discovery.redundancy import redundancy
from interp.circuits.ground_truth.recovery import SEARCHES, edge_ground_truth, recover_edges
from interp.circuits.ranking import greedy_edges, ranked, top_edges
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.engine.edges.graph import Graph
from interp.models.compiled import load_compiled
from interp.models.loading import load_model, wrap
from interp.models.toys.circuits import build_toy
from tests.circuits.test_acdc import PLANTED, toy_task
from tests.families import random_task, tiny

GRAPH = Graph(n_layers=2, n_heads=2, n_kv_heads=1)


@dataclass
class Made:
    graph: Graph
    signed: np.ndarray


def made(seed=0, graph=GRAPH):
    values = np.random.default_rng(seed).normal(size=graph.shape)
    return Made(graph, np.where(graph.allowed, values, 0))


def paths(graph, mask):
    """Edges on a path from the input to the logits, by listing the paths."""
    found = np.zeros_like(mask)

    def walk(writer, taken):
        for reader in np.flatnonzero(mask[writer]):
            here = [*taken, (writer, reader)]
            if graph.readers[reader] == "logits":
                for edge in here:
                    found[edge] = True
            for following in np.flatnonzero(graph.feeds[reader]):
                walk(following, here)

    walk(0, [])
    return found


# -- top-n and greedy ----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["absolute", "signed"])
def test_top_n_takes_the_best(by):
    scores = made()
    for n in (1, 7, GRAPH.n_edges):
        mask = top_edges(scores, n, by=by, connected=False)
        values = np.abs(scores.signed) if by == "absolute" else scores.signed
        assert mask.sum() == n
        assert not (mask & ~GRAPH.allowed).any()
        rest = values[GRAPH.allowed & ~mask]
        assert not len(rest) or values[mask].min() >= rest.max()


@pytest.mark.parametrize("search", [top_edges, greedy_edges])
def test_connected_circuits_are_connected_and_as_large_as_asked(search):
    for seed, n in itertools.product(range(4), (1, 3, 8, 20, GRAPH.n_edges)):
        mask = search(made(seed), n)
        assert mask.sum() <= n
        np.testing.assert_array_equal(mask, paths(GRAPH, mask))
    assert search(made(), GRAPH.n_edges).sum() == GRAPH.n_edges


def test_no_longer_list_of_best_edges_fits():
    """Against every prefix of the ranking, one by one."""
    for seed, n in itertools.product(range(5), (2, 5, 11)):
        scores, best = made(seed), np.zeros(GRAPH.shape, bool)
        order = ranked(scores)
        for length in range(len(order) + 1):
            prefix = np.zeros(GRAPH.shape, bool)
            prefix[tuple(order[:length].T)] = True
            if (whole := paths(GRAPH, prefix)).sum() <= n:
                best = whole
        np.testing.assert_array_equal(top_edges(scores, n), best)


def test_greedy_follows_the_logits_back():
    """A strong edge counts only once its reader's head is in the circuit."""
    signed = np.zeros(GRAPH.shape)
    for label, value in {
        "L1H0->logits": 0.5,
        "input->L1H0.q": 0.4,
        "input->L0H1.q": 9.0,
        "L0H1->logits": 0.1,
    }.items():
        signed[GRAPH.edge(label)] = value
    assert GRAPH.labels(greedy_edges(Made(GRAPH, signed), 2)) == ["input->L1H0.q", "L1H0->logits"]
    assert set(GRAPH.labels(greedy_edges(Made(GRAPH, signed), 4))) == {
        "L1H0->logits",
        "input->L1H0.q",
        "input->L0H1.q",
        "L0H1->logits",
    }
    # By score alone, the strong edge is taken first and completed last.
    assert "input->L0H1.q" in GRAPH.labels(top_edges(Made(GRAPH, signed), 3, connected=False))


def test_equal_scores_go_in_causal_order():
    flat = Made(GRAPH, GRAPH.allowed.astype(float))
    labels = GRAPH.labels(top_edges(flat, 5, connected=False))
    assert labels == GRAPH.labels(GRAPH.mask())[:5]


def test_bad_scores_are_refused():
    for n in (0, GRAPH.n_edges + 1):
        with pytest.raises(InterpError, match="a circuit of"):
            top_edges(made(), n)
    with pytest.raises(InterpError, match="shape"):
        top_edges(Made(GRAPH, np.zeros((2, 2))), 1)
    broken = made()
    broken.signed[GRAPH.edge("input->logits")] = np.nan
    with pytest.raises(InterpError, match="1 scores are not finite"):
        greedy_edges(broken, 1)


# -- truth and recovery --------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_the_truth_is_what_the_program_says(name):
    compiled = load_compiled(name, check=False)
    truth = edge_ground_truth(compiled.model, compiled.task)
    assert set(truth.circuit.edges()) == set(PLANTED[name].split())
    for ablation in ("counterfactual", "zero"):
        found = edge_ground_truth(compiled.model, compiled.task.first(6), ablation=ablation)
        assert not (found.mask & ~wired(compiled.model, found.graph)).any()
    # Against nothing at all, positions and constants matter too.
    assert found.mask.sum() > truth.mask.sum()


def wired(model, graph):
    """Edges whose reader's weights see what the writer's weights write, from the weights alone."""
    decoder, mask = model.decoder, np.zeros(graph.shape, bool)
    tokens, places = torch.arange(model.d_vocab), torch.arange(decoder.max_positions)
    grid = torch.cartesian_prod(tokens, places)
    writes = [decoder.embed(grid[:, 0], grid[:, 1])]
    reads = []
    for block in decoder.blocks:
        attn, mlp = block.attn, block.mlp
        writes += list(attn.o.weight.unflatten(0, (attn.n_heads, attn.d_head)))
        writes.append(mlp.down.weight)
        for part in (attn.q, attn.k, attn.v):
            reads += list(part.weight.unflatten(1, (-1, attn.d_head)).transpose(0, 1))
        reads.append(mlp.gate.weight)
    reads.append(decoder.unembed.T)
    for writer, reader in np.argwhere(graph.allowed):
        mask[writer, reader] = bool((writes[writer] @ reads[reader]).abs().max() > 1e-6)
    return mask


@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean"])
def test_truth_is_one_edge_at_a_time(ablation):
    model = wrap(tiny("llama"), None, name="llama", check=False)
    task = random_task((5, 6))
    reference = random_task((6, 5), seed=9) if ablation == "mean" else None
    options = {"ablation": ablation, "reference": reference}
    truth, trials = (
        edge_ground_truth(model, task, **options),
        Trials(model, task, TrialOptions(**options)),
    )
    whole, empty = trials.ends()
    for edge in np.random.default_rng(0).permutation(np.argwhere(trials.graph.allowed))[:6]:
        mask = trials.graph.mask()
        mask[tuple(edge)] = False
        effect = (whole - trials.values(mask[None])[0]) / (whole - empty).mean()
        assert truth.signed[tuple(edge)] == pytest.approx(effect.mean(), abs=1e-4)
        assert truth.absolute[tuple(edge)] == pytest.approx(np.abs(effect).mean(), abs=1e-4)


# Edges that a gradient sees (above a hundredth of the gap), of those in PLANTED: by method EAP,
# EAP-IG-inputs, EAP-IG-activations, clean-corrupted.
SEEN = {
    "reverse": ("all",) * 4,
    "frac_prevs": ("all",) * 4,
    "hist": (
        "L0.mlp_out->logits",
        "L0.mlp_out->logits",
        "L0H0->L0.mlp_out L0.mlp_out->logits",
        "L0.mlp_out->logits",
    ),
    "sort": (
        "input->L1KV0.v L1H0->logits",
        "input->L1KV0.v L1H0->logits",
        "L0.mlp_out->L1KV0.k input->L1KV0.v L1H0->logits",
        "input->L1KV0.v L1H0->logits",
    ),
    "counting_sort": (
        "L0.mlp_out->L1.mlp_out L1.mlp_out->L2.mlp_out L2.mlp_out->logits",
        "L0.mlp_out->L1.mlp_out L1.mlp_out->L2.mlp_out L2.mlp_out->logits",
        "L0H0->L0.mlp_out L0H1->L0.mlp_out L0.mlp_out->L1.mlp_out L1.mlp_out->L2.mlp_out "
        "L2.mlp_out->logits",
        "L0.mlp_out->L1.mlp_out L1.mlp_out->L2.mlp_out L2.mlp_out->logits",
    ),
}
SCORERS = ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "clean-corrupted")
# Precision = recall at the truth's size; below the edges seen the order is rounding, so that one
# edge more or less may be found by luck. None: no connected circuit of that size.
AT_TRUTH = {
    "reverse": (1, 1, 1, 1),
    "frac_prevs": (1, 1, 1, 1),
    "hist": (2 / 4, 2 / 4, 3 / 4, 2 / 4),
    "sort": (4 / 6, 1, 5 / 6, 4 / 6),
    "counting_sort": (2 / 7, 2 / 7, None, 2 / 7),
}


@pytest.mark.parametrize("name", PLANTED)
def test_edge_scorers_see_the_compiled_edges_that_are_not_saturated(name):
    """Of the planted edges each scorer sees those pinned, no false ones, and 0 at the others."""
    compiled = load_compiled(name, check=False)
    task, true = compiled.task.first(24), set(PLANTED[name].split())
    exact = score_edges(compiled.model, task, method="exact")
    for method, seen in zip(SCORERS, SEEN[name], strict=True):
        scores = score_edges(compiled.model, task, method=method)
        wanted = true if seen == "all" else set(seen.split())
        assert set(scores.graph.labels(np.abs(scores.signed) > 0.01)) == wanted, method
        missed = np.array([scores.graph.edge(edge) for edge in sorted(true - wanted)], dtype=int)
        for place in map(tuple, missed):
            assert abs(scores.signed[place]) < 1e-4  # saturated: no gradient, not a small one
            assert abs(exact.signed[place]) > 0.25


@pytest.mark.parametrize("name", PLANTED)
def test_recovery_of_compiled_programs_by_edge_scorers(name):
    """The table that `interp circuit recover` prints for the programs."""
    compiled = load_compiled(name, check=False)
    methods = [*SCORERS, "information-flow-routes"]
    result = recover_edges(compiled.model, compiled.task.first(24), methods=methods)
    assert result.truth == len(PLANTED[name].split())
    for method, expected in zip(SCORERS, AT_TRUTH[name], strict=True):
        found = result.of_method(method)
        if expected is None:
            assert found.recall <= 1 / result.truth
            continue
        slack = 0 if expected == 1 and name != "sort" else 1.01 / result.truth
        assert found.precision == pytest.approx(expected, abs=slack or 1e-9), method
        assert found.recall == pytest.approx(expected, abs=slack or 1e-9), method
    assert result.of_method("information-flow-routes").recall <= 0.25  # it is not causal


@pytest.mark.long
def test_no_gradient_finds_the_edges_of_an_or_gate():
    """One edge alone matters, on no path of one edge; the two that feed it stand in for another."""
    model, task = load_model("toy-or"), toy_task("toy-or", 24)
    result = recover_edges(model, task, methods=[*SCORERS, "ACDC"])
    assert result.truth == 1
    assert [result.of_method(method).edges for method in SCORERS] == [0, 0, 0, 0]
    found = result.of_method("ACDC")
    assert (found.edges, found.recall, found.share) == (3, 1, pytest.approx(1, abs=1e-3))


@pytest.mark.long
def test_recovery_counts_what_is_found():
    """Figures of the methods on one toy, and the arithmetic of a wrong answer key."""
    model, task = load_model("toy-verification"), toy_task("toy-verification", 4)
    methods = [name for name in SEARCHES if name != "learned-mask"]
    result = recover_edges(
        model, task, methods=methods, planted=build_toy("toy-verification").circuit
    )
    for method in ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "ACDC", "ACDC-forward"):
        found = result.of_method(method)
        assert (found.precision, found.recall, found.auroc) == (1, 1, 1)
        assert (found.node_precision, found.node_recall) == (1, 1)
        assert found.share == pytest.approx(1, abs=1e-3)
    assert result.of_method("random").precision == pytest.approx(result.truth / result.of)
    assert result.of_method("information-flow-routes").recall < 0.5  # it is not causal
    assert len(result.to_dataframe()) == len(methods)
    assert "EAP-IG-inputs" in str(result)
    graph = Trials(model, task).graph
    key = Circuit.of(graph, ["L2H0->logits", "input->logits", "L1H0->logits"])
    half = recover_edges(model, task, truth=key, methods=["ACDC"]).of_method("ACDC")
    assert half.edges == 4
    assert half.precision == pytest.approx(1 / 4)
    assert half.recall == pytest.approx(1 / 3)
    with pytest.raises(InterpError, match="method"):
        recover_edges(model, task, methods=["luck"])


def test_a_method_that_refuses_has_a_row_that_says_so():
    model, task = load_model("toy-and"), toy_task("toy-and", 3)
    result = recover_edges(model, task, methods=["clean-corrupted", "ACDC"], ablation="zero")
    refused = result.of_method("clean-corrupted")
    assert refused.edges == 0
    assert "zero" in refused.note
    # One edge of several that fill in for each other is enough for ACDC, not for the truth.
    assert result.of_method("ACDC").precision == 1


# -- learned masks --------------------------------------------------------------------------


def test_gates_are_hard_concrete():
    gates = _Gates(GRAPH, openness=0.7, nodes=False, seed=0, like=torch.float64)
    drawn = gates.draw(4000).detach()
    assert drawn.min() == 0
    assert drawn.max() == 1
    assert (drawn[:, ~torch.from_numpy(GRAPH.allowed.copy())] == 0).all()
    edge = GRAPH.edge("input->logits")
    open_share = (drawn[:, *edge] > 0).double().mean()
    assert float(gates.open_share().detach()) == pytest.approx(float(open_share), abs=0.02)
    # The distribution's own formula at one quantile: a gate is below x with probability F(x).
    x, alpha = 0.5, np.log(0.7 / 0.3)
    inner = (x - LOW) / (HIGH - LOW)
    below = 1 / (1 + np.exp(-(TEMPERATURE * np.log(inner / (1 - inner)) - alpha)))
    assert float((drawn[:, *edge] < x).double().mean()) == pytest.approx(below, abs=0.03)
    assert float(gates.openness().detach().max()) == pytest.approx(0.7)


@pytest.mark.long
def test_a_learned_mask_finds_planted_circuits():
    model, task = load_model("toy-and"), toy_task("toy-and", 4)
    options = {"steps": 45, "lr": 0.3, "samples": 2}
    learned = learn_mask(model, task, **options)
    truth = edge_ground_truth(model, task)
    assert learned.graph.labels(learned.mask) == learned.graph.labels(truth.mask)
    assert learned.share == pytest.approx(1, abs=0.02)
    assert learned.losses[-1] < 0.3 * learned.losses[0]
    np.testing.assert_array_equal(top_edges(learned, int(truth.mask.sum())), truth.mask)
    again = learn_mask(model, task, steps=3)
    np.testing.assert_array_equal(again.signed, learn_mask(model, task, steps=3).signed)


def test_writer_gates_and_bad_options():
    compiled = load_compiled("reverse", check=False)
    task = compiled.task.first(4)
    learned = learn_mask(compiled.model, task, steps=25, lr=0.4, samples=1, nodes=True)
    assert set(learned.graph.labels(learned.mask)) == set(PLANTED["reverse"].split())
    for wrong in ({"steps": 0}, {"openness": 1.0}, {"weight": -1.0}, {"lr": 0.0}):
        with pytest.raises(InterpError, match="learning a mask"):
            learn_mask(compiled.model, task, **wrong)


def test_heavier_masks_are_smaller():
    model, task = load_model("toy-induction"), toy_task("toy-induction", 2)
    light, heavy = (
        learn_mask(model, task, weight=weight, steps=12, lr=0.3, samples=1).signed.sum()
        for weight in (0.0, 10.0)
    )
    assert heavy < light


# -- redundancy ----------------------------------------------------------------------------


@pytest.mark.long
def test_the_pair_of_an_or_gate_is_found_and_of_an_and_gate_is_not():
    result = redundancy(load_model("toy-or"), toy_task("toy-or"))
    (pair,) = result.missed
    assert pair.parts == ("L0H1", "L0H2")
    assert pair.together == pytest.approx(1, abs=0.01)
    assert pair.alone == pytest.approx((0, 0), abs=0.01)
    assert "L0H1 and L0H2" in str(result)
    assert len(result.to_dataframe()) == 1
    truth = edge_ground_truth(load_model("toy-or"), toy_task("toy-or"))
    assert not any("H" in edge.split("->")[0] for edge in truth.circuit.edges())  # unseen alone
    none = redundancy(load_model("toy-and"), toy_task("toy-and"))
    assert none.pairs == ()
    first, second = (none.parts.index(head) for head in ("L0H1", "L0H2"))
    assert none.together[first, second] - none.alone[[first, second]].sum() < -0.5


def test_redundancy_is_the_excess_of_joint_removal():
    """Against masks written out by hand, for nodes and for edges."""
    model = wrap(tiny("llama"), None, name="llama", check=False)
    task, parts = random_task((5, 6, 5)), ("L0H1", "L1.mlp_out", "L0H0->L2KV1.v")
    trials = Trials(model, task)
    graph, ends = trials.graph, trials.ends()

    def without(*removed):
        keep = graph.mask()
        for part in removed:
            if "->" in part:
                keep[graph.edge(part)] = False
                continue
            keep[graph.writer(part)] = False
            own = {"L0H1": ["L0H1.q"], "L1.mlp_out": ["L1.mlp_out"]}[part]
            for reader in own:  # keys and values of L0H1 serve L0H0 too
                keep[:, graph.reader(reader)] = False
        lost = ends[0] - trials.values(keep[None])[0]
        return lost / (ends[0] - ends[1]).mean()

    result = redundancy(model, task, parts, threshold=-9)
    for i, part in enumerate(parts):
        assert result.alone[i] == pytest.approx(without(part).mean(), abs=1e-4)
    found = {pair.parts: pair for pair in result.pairs}
    for i, j in itertools.combinations(range(3), 2):
        both = without(parts[i], parts[j])
        over = both - without(parts[i]) - without(parts[j])
        assert result.together[i, j] == pytest.approx(both.mean(), abs=1e-4)
        half = stats.t.ppf(1 - 0.025 / 3, 2) * over.std(ddof=1) / np.sqrt(3)
        assert ((parts[i], parts[j]) in found) == (over.mean() - half > 0)
        if pair := found.get((parts[i], parts[j])):
            assert pair.excess == pytest.approx(over.mean(), abs=1e-4)
            assert pair.low == pytest.approx(over.mean() - half, abs=1e-4)


def test_within_a_circuit_and_bad_parts():
    model, task = load_model("toy-or"), toy_task("toy-or", 3)
    graph = Trials(model, task).graph
    truth = Circuit(graph=graph, mask=graph.mask()).without(["L0H2"])
    result = redundancy(model, task, ["L0H1", "L0H3"], within=truth)
    assert result.alone == pytest.approx([1, 0], abs=0.01)  # the other switch is gone
    with pytest.raises(InterpError, match="different parts"):
        redundancy(model, task, ["L0H1", "L0H1"])
    with pytest.raises(InterpError, match="limit"):
        redundancy(model, task, limit=3)
    with pytest.raises(InterpError, match="writer"):
        redundancy(model, task, ["L0H1", "L9H9"])
