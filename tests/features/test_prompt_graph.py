"""Edges of an attribution graph: each source pushed forward alone through the frozen run."""

import json

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.features.prompt_graph import attribution_graph
from tests.families import true_double
from tests.features.made import random_dictionary

FAMILIES = ["gpt2", "neox", "llama", "gemma2", "olmo2"]
PROMPT = (5, 9, 3, 17, 9, 2)


def transcoders(model, **facts):
    """Random transcoders of layers 1 and 2."""
    made = {"size": 12, "name": "made", **facts}
    return [
        random_dictionary(model, "mlp_in", "mlp_out", layer=at, seed=at, **made) for at in (1, 2)
    ]


def pushed(model, seen, layer, position, vector, target):
    """What one written vector adds to what a target reads, by the shares of every norm."""
    run, n = {at: value[0] for at, value in seen.values.items()}, len(PROMPT)
    decoder, part = model.decoder, torch.zeros(n, model.d_model, dtype=torch.float64)
    part[position] += vector
    blocks = decoder.blocks
    for at in range(max(layer + 1, 0), model.n_layers):
        block, before = blocks[at], part
        read = part if block.ln1 is None else block.ln1.share(part, run[at, "resid_pre"])
        values = (read @ block.attn.v.weight).view(n, model.n_kv_heads, -1)
        values = values.repeat_interleave(model.n_heads // model.n_kv_heads, 1)
        mixed = torch.einsum("qhk,khe->qhe", run[at, "pattern"], values)
        added = torch.einsum("qhe,hed->qd", mixed, block.attn.W_O)
        if block.ln1_post is not None:
            whole = block.attn.o(run[at, "z"].flatten(1))
            added = block.ln1_post.share(added, whole)
        part = part + added
        if at == target.layer:
            source = "resid_pre" if block.parallel else "resid_mid"
            part, whole = (before if block.parallel else part), run[at, source]
            return part if block.ln2 is None else block.ln2.share(part, whole)
    return decoder.ln_final.share(part, run[model.n_layers - 1, "resid_post"])


@pytest.fixture(params=FAMILIES)
def graphed(request, doubles):
    model = doubles(request.param)
    made = transcoders(model)
    sites = ["resid_pre", "resid_post", "pattern", "z", "mlp_out"]
    sites += [] if model.parallel else ["resid_mid"]
    with true_double():
        seen = interp.run_with_cache(model, [PROMPT], sites=sites)
        return model, made, seen, attribution_graph(model, PROMPT, made)


def test_every_edge_is_its_source_pushed_forward(graphed):
    model, made, seen, graph = graphed
    by_layer = {one.layer: one for one in made}
    unembed = model.decoder.unembed.double()
    errors = {}
    for layer in range(model.n_layers):
        errors[layer] = seen[layer, "mlp_out"][0].double().clone()
        for one in graph.nodes:
            if one.kind == "feature" and one.layer == layer:
                errors[layer][one.position] -= one.value * by_layer[layer].W_dec[one.index]
    kinds = [one.kind for one in graph.nodes]
    assert kinds.count("feature") > 8
    targets = [i for i, kind in enumerate(kinds) if kind in ("feature", "logit")]
    for i in targets[:: max(1, len(targets) // 12)] + targets[-3:]:
        target = graph.nodes[i]
        for j, source in enumerate(graph.nodes):
            if source.kind == "logit" or source.layer >= target.layer:
                assert graph.weights[i, j] == 0
                continue
            if source.kind == "embedding":
                vector = seen[0, "resid_pre"][0][source.position]
            elif source.kind == "error":
                vector = errors[source.layer][source.position]
            else:
                vector = source.value * by_layer[source.layer].W_dec[source.index]
            read = pushed(model, seen, source.layer, source.position, vector, target)
            if target.kind == "logit":
                direction = unembed[target.index] - unembed.mean(0)
            else:
                direction = by_layer[target.layer].W_enc[:, target.index]
            expected = float(read[target.position] @ direction)
            assert graph.weights[i, j] == pytest.approx(expected, abs=1e-9)


def test_edges_and_biases_are_all_that_is_read(graphed):
    """Without biases nothing is left; with them, what is left is the same at every prompt."""
    model, made, seen, graph = graphed
    logit = graph.nodes[-1]
    final = model.decoder.ln_final(seen[model.n_layers - 1, "resid_post"][0][-1:])
    heights = (final @ model.decoder.unembed.T)[0]
    assert logit.value == pytest.approx(float(heights[logit.index] - heights.mean()), abs=1e-9)
    rests = np.array([one.rest for one in graph.nodes if one.kind in ("feature", "logit")])
    if model.family in ("llama", "gemma2", "olmo2"):
        assert abs(rests).max() < 1e-9
    else:
        assert abs(rests).max() > 1e-6


def test_a_part_of_the_graph_holds_the_rest(graphed):
    _, _, _, graph = graphed
    some = graph.strongest(5)
    inner = [one for one in some.nodes if one.kind in ("feature", "error")]
    assert len(inner) == 5
    most = sorted(one.influence for one in graph.nodes if one.kind in ("feature", "error"))
    assert min(one.influence for one in inner) == pytest.approx(most[-5])
    for i, one in enumerate(some.nodes):
        before = next(k for k, x in enumerate(graph.nodes) if x.label == one.label)
        whole = graph.weights[before].sum() + graph.nodes[before].rest
        assert some.weights[i].sum() + one.rest == pytest.approx(whole, abs=1e-9)


@pytest.fixture
def made():
    model = interp.load_model("toy-induction")
    text = str(interp.load_task("toy-induction", model, n=1).pairs[0].clean)
    dictionary = random_dictionary(model, "resid_pre", "mlp_out", name="made")
    return model, text, dictionary


def test_the_file_has_the_fields_of_the_public_format(made, tmp_path):
    model, text, dictionary = made
    graph = attribution_graph(model, text, dictionary, logits=2)
    told = json.loads(graph.save(tmp_path / "graph.json", name="toy").read_text())
    assert {*told} == {"metadata", "qParams", "nodes", "links"}
    assert told["metadata"]["prompt_tokens"] == list(model.tokenize(text).strings)
    assert len({one["node_id"] for one in told["nodes"]}) == len(graph.nodes)
    assert len({one["jsNodeId"] for one in told["nodes"] if one["feature"] == -1}) == sum(
        one.kind == "error" for one in graph.nodes
    )
    assert sum(one["is_target_logit"] for one in told["nodes"]) == 1
    ids = {one["node_id"] for one in told["nodes"]}
    assert all({link["source"], link["target"]} <= ids for link in told["links"])
    assert len(told["links"]) == len(graph.to_dataframe()) == np.count_nonzero(graph.weights)
    logits = [one for one in told["nodes"] if one["feature_type"] == "logit"]
    assert [one["layer"] for one in logits] == [str(model.n_layers + 1)] * 2
    shown = {"embedding", "cross layer transcoder", "mlp reconstruction error", "logit"}
    assert {one["feature_type"] for one in told["nodes"]} <= shown


def test_influence_is_a_sum_over_paths(made):
    model, text, dictionary = made
    graph = attribution_graph(model, text, dictionary)
    shares = abs(graph.weights)
    shares = shares / np.where(shares.sum(1) > 0, shares.sum(1), 1)[:, None]
    start = np.zeros(len(graph.nodes))
    start[-len(graph.probabilities) :] = graph.probabilities
    expected = start @ np.linalg.inv(np.eye(len(start)) - shares) - start
    assert [one.influence for one in graph.nodes] == pytest.approx(expected.tolist(), abs=1e-9)


def test_what_is_no_transcoder_of_this_model_is_refused(made):
    model, text, dictionary = made
    for given, words in (
        ([], "give one transcoder a layer"),
        ([dictionary, dictionary], "give one transcoder a layer"),
        ([random_dictionary(model, "resid_post")], "give transcoders of mlp_out"),
        (["L1"], "give Dictionary objects"),
    ):
        with pytest.raises(InterpError, match=words):
            attribution_graph(model, text, given)
