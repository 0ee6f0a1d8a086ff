"""The graph: counts against the published formulas, causality against a walk through the model."""

import numpy as np
import pytest

from interp.circuits.model_graph import graph_of
from interp.core.errors import InterpError
from interp.engine.edges.graph import Graph

# Layers, heads, key/value heads, parallel; edges with keys and values per query head, and native.
PUBLISHED = {
    "gpt2": (12, 12, 12, False, 32_491, 32_491),
    "gpt2-medium": (24, 16, 16, False, 231_877, 231_877),
    "gpt2-xl": (48, 25, 25, False, 2_235_025, 2_235_025),
    "pythia-160m": (12, 12, 12, True, 32_347, 32_347),
    "qwen2.5-0.5b": (24, 14, 2, False, 179_749, 79_813),
    "gemma-2-2b": (26, 8, 4, False, 74_218, 50_610),
    "llama-3.1-8b": (32, 32, 8, False, 1_592_881, 805_681),
    "interpbench": (6, 4, 4, False, 1_108, 1_108),
}


def small(**changes) -> Graph:
    shape = {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2}
    return Graph(**(shape | changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    layers, heads, kv, parallel, ungrouped, native = PUBLISHED[name]
    graph = Graph(n_layers=layers, n_heads=heads, n_kv_heads=kv, parallel=parallel)
    assert graph.n_edges == native
    assert graph.expanded.n_edges == ungrouped
    assert len(graph.writers) == 1 + layers * (heads + 1)
    assert len(graph.expanded.readers) == layers * (3 * heads + 1) + 1


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("expand_kv", [False, True])
def test_edges_are_those_of_a_walk_through_the_model(parallel, expand_kv):
    graph = small(parallel=parallel, expand_kv=expand_kv)
    written, expected = ["input"], set()
    for layer in range(3):
        kv = 4 if expand_kv else 2
        here = [f"L{layer}H{h}.q" for h in range(4)]
        mark = "H" if expand_kv else "KV"
        here += [f"L{layer}{mark}{h}.{site}" for site in "kv" for h in range(kv)]
        expected |= {f"{w}->{r}" for w in written for r in here}
        before = list(written)
        written += [f"L{layer}H{h}" for h in range(4)]
        seen = before if parallel else written
        expected |= {f"{w}->L{layer}.mlp_out" for w in seen}
        written.append(f"L{layer}.mlp_out")
    expected |= {f"{w}->logits" for w in written}
    assert graph.writers == tuple(written)
    assert set(graph.labels(graph.allowed)) == expected
    for label in expected:
        assert graph.label(*graph.edge(label)) == label


def test_masks_and_refusals():
    graph = small()
    mask = graph.mask(["input->L0KV1.k", "L0H3->L0.mlp_out"])
    assert graph.labels(mask) == ["input->L0KV1.k", "L0H3->L0.mlp_out"]
    assert (graph.mask(graph.labels(graph.mask())) == graph.allowed).all()
    for wrong, reason in (
        ("L1H0->L0H0.q", "does not come before"),
        ("L0H0->L0H1.q", "does not come before"),
        ("L0.mlp_out->L0.mlp_out", "does not come before"),
        ("input->L0KV2.k", "reader"),
        ("L9H0->logits", "writer"),
        ("input", "no ->"),
    ):
        with pytest.raises(InterpError, match=reason):
            graph.edge(wrong)
    with pytest.raises(InterpError, match="impossible"):
        graph.check(np.ones(graph.shape))
    with pytest.raises(InterpError, match="shape"):
        graph.connected(np.ones((2, 2)))
    with pytest.raises(InterpError, match="did you mean"):
        Graph(n_layers=12, n_heads=12, n_kv_heads=12).edge("input->L3H4.zq")


def test_connected_keeps_what_lies_on_a_path():
    graph = small()
    path = ["input->L0KV1.v", "L0H2->L1KV0.k", "L1H0->L2.mlp_out", "L2.mlp_out->logits"]
    dead = ["input->L1H3.q", "L2H2->logits", "L0.mlp_out->L2KV0.v", "L1H2->L1.mlp_out"]
    found = graph.connected(graph.mask(path + dead))
    assert sorted(graph.labels(found)) == sorted(path)
    # Key/value head 0 serves query heads 0 and 1: a key feeds both.
    shared = ["input->L1KV0.k", "L1H1->logits"]
    assert sorted(graph.labels(graph.connected(graph.mask(shared)))) == sorted(shared)
    other, copied = graph.expanded, ["input->L1H0.k", "L1H1->logits"]
    assert not other.connected(other.mask(copied)).any()


@pytest.mark.parametrize("seed", range(5))
def test_connected_equals_repeated_pruning(seed):
    graph = small()
    rng = np.random.default_rng(seed)
    mask = graph.allowed & (rng.random(graph.shape) < 0.2)
    slow = mask.copy()
    while True:  # drop edges out of nodes nothing enters, and into nodes nothing leaves
        into = np.array([w == 0 or slow[:, graph.feeds[:, w]].any() for w in range(slow.shape[0])])
        out = (graph.feeds & slow.any(1)).any(1) | (np.arange(slow.shape[1]) == slow.shape[1] - 1)
        fewer = slow & into[:, None] & out
        if (fewer == slow).all():
            break
        slow = fewer
    assert slow.sum() < mask.sum()
    assert (graph.connected(mask) == slow).all()


def test_places_of_a_layer_and_copies():
    graph = small()
    for layer in range(3):
        for site, group in graph.groups(layer).items():
            assert all(label.endswith(f".{site}") for label in graph.readers[group])
            assert set(graph.reader_layer[group]) == {layer}
        assert graph.writers[graph.heads(layer)] == tuple(f"L{layer}H{h}" for h in range(4))
        assert graph.writers[graph.mlp(layer)] == f"L{layer}.mlp_out"
        assert (graph.writer_layer[graph.before(layer)] < layer).all()
    for copy, native in zip(graph.expanded.readers, graph.copies, strict=True):
        label = graph.readers[native]
        if copy.endswith((".k", ".v")):
            head = int(copy.split("H")[1].split(".")[0])
            assert label == copy.replace(f"H{head}.", f"KV{head // 2}.")
        else:
            assert label == copy
    assert (graph.allowed[:, graph.copies] == graph.expanded.allowed).all()


def test_graph_of_a_model(family):
    graph = graph_of(family)
    assert graph == Graph(
        n_layers=family.n_layers,
        n_heads=family.n_heads,
        n_kv_heads=family.n_kv_heads,
        parallel=family.parallel,
    )
    assert graph_of(family, expand_kv=True) == graph.expanded
    assert graph.native == graph
