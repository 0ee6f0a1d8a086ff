"""Neurons as nodes: counts, runs against plain loops, scores, and a planted neuron."""

import numpy as np
import pytest

from interp.errors import InterpError
from interp.graph import Graph, graph_of

NEURONS = ((0, 5), (2, 3), (2, 40))


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
