"""Neurons as nodes: counts, runs against plain loops, scores, and a planted neuron."""

import numpy as np
import pytest
import torch

from interp.engine.restart import final_hidden
from interp.errors import InterpError
from interp.graph import Graph, graph_of
from interp.loading import wrap
from tests.families import FAMILIES, tiny, true_double
from tests.test_edges import Case, placed

NEURONS = ((0, 5), (2, 3), (2, 40))


@pytest.fixture(scope="module", params=list(FAMILIES))
def wide(request):
    """A family in float64."""
    with true_double():
        return wrap(tiny(request.param, torch.float64), name=f"wide-{request.param}")


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("expand_kv", [False, True])
def test_counts_and_edges_are_those_of_a_walk_through_the_model(parallel, expand_kv):
    graph = Graph(
        n_layers=3, n_heads=4, n_kv_heads=2, parallel=parallel, expand_kv=expand_kv,
        neurons=NEURONS,
    )  # fmt: skip
    written, expected, count = ["input"], set(), 0
    for layer in range(3):
        kv = 4 if expand_kv else 2
        here = [f"L{layer}H{h}.q" for h in range(4)]
        here += [f"L{layer}H{h}.{site}" for site in "kv" for h in range(kv)]
        expected |= {f"{w}->{r}" for w in written for r in here}
        neurons = [f"L{at}N{number}" for at, number in NEURONS if at == layer]
        count += (4 + 2 * kv) * len(written)
        count += (1 + len(neurons)) * (len(written) + (0 if parallel else 4))
        before = list(written)
        written += [f"L{layer}H{h}" for h in range(4)]
        seen = before if parallel else list(written)
        for reader in [*neurons, f"L{layer}.mlp_out"]:
            expected |= {f"{w}->{reader}" for w in seen}
            written.append(reader)
    expected |= {f"{w}->logits" for w in written}
    assert graph.writers == tuple(written)
    assert set(graph.labels(graph.allowed)) == expected
    assert graph.n_edges == len(expected) == count + len(written)
    for label in expected:
        assert graph.label(*graph.edge(label)) == label
    # A neuron is fed by its own reader, and by nothing else.
    for name in ("L2N3", "L2.mlp_out", "L0N5"):
        fed = np.flatnonzero(graph.feeds[:, graph.writer(name)])
        assert [graph.readers[reader] for reader in fed] == [name]
    whole = graph.mask()
    assert (graph.connected(whole) == whole).all()
    assert graph.native.expanded.neurons == graph.neurons
    taken = np.arange(len(graph.native.readers))[None][:, graph.copies][0]
    assert graph.native.readers[taken[-2]] == graph.expanded.readers[-2] == "L2.mlp_out"


def test_unknown_neurons_are_refused(family_models):
    model = family_models["llama"]
    assert graph_of(model, neurons=["L2N40", "L0N5", (2, 3)]).neurons == NEURONS
    for wrong in ("L9N0", "L0N48", "L0H1", "L0N3.pre", (0, -1)):
        with pytest.raises(InterpError, match="3 layers of 48 neurons"):
            graph_of(model, neurons=[wrong])
    with pytest.raises(InterpError, match="one twice"):
        graph_of(model, neurons=["L0N5", (0, 5)])


def test_all_edges_are_the_clean_run_and_none_the_corrupted(wide):
    case = Case(wide, neurons=NEURONS)
    found = case.logits([case.graph.allowed, np.zeros(case.graph.shape, bool)])
    for one, run in enumerate((case.base, case.other)):
        plain = case.runner.decoder.logits(final_hidden(case.runner, run.run))
        torch.testing.assert_close(found[one], plain, atol=1e-11, rtol=0)


@pytest.mark.parametrize("ablation", ["other", "zero", "mean"])
def test_random_circuits_equal_plain_loops(wide, ablation):
    case = Case(wide, neurons=NEURONS)
    other = case.other if ablation == "other" else case.constant(ablation)
    masks, options = case.random_masks(3), {"other": other, "start": ablation == "other"}
    # One in which only neurons part from the rest of their MLP.
    masks[2] = case.graph.allowed
    masks[2, :6, case.graph.reader("L2N40")] = masks[2, case.graph.writer("L0N5"), -1] = False
    found = case.logits(masks, **options)
    for number, mask in enumerate(masks):
        for prompt in range(len(case.task)):
            slow = case.slow(mask, prompt, other)
            torch.testing.assert_close(found[number, prompt], slow, atol=1e-9, rtol=0)
    apart = torch.tensor(masks).double().requires_grad_()
    torch.testing.assert_close(case.logits(apart, **options).detach(), found, atol=1e-9, rtol=0)
    by_place, places = placed(case)
    found = case.logits(by_place, places=places, **options)
    slow = case.slow(by_place[0], 0, other, places[: case.base.run.lengths[0]])
    torch.testing.assert_close(found[0, 0], slow, atol=1e-9, rtol=0)


def test_neurons_kept_with_the_rest_are_the_mlp(wide):
    """A mask of the graph without neurons, its MLP edges copied to neurons and rest."""
    plain, case = Case(wide), Case(wide, neurons=NEURONS)
    masks = plain.random_masks(4)
    split = np.zeros((4, *case.graph.shape), dtype=bool)
    writers, readers = (
        [known(f"L{name[1]}.mlp_out" if "N" in name else name) for name in names]
        for known, names in (
            (plain.graph.writer, case.graph.writers),
            (plain.graph.reader, case.graph.readers),
        )
    )
    split = masks[:, writers][:, :, readers]
    torch.testing.assert_close(case.logits(split), plain.logits(masks), atol=1e-10, rtol=0)
