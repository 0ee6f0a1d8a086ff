"""Circuits in the file formats of the MIB benchmark's circuit track (hannamw/EAP-IG).

Both formats describe a graph with key and value readers per query head, in the order of
`Graph.expanded`. Nodes are named input, a3.h4, m3 and logits, edges m0->a3.h4<q>. A JSON file holds
{cfg, nodes: {name: {in_graph}}, edges: {name: {score, in_graph}}}, a PT file a dictionary of
tensors. In both, as in this package, a positive score supports the behaviour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field

from interp.circuits.circuit import Circuit
from interp.core.errors import InterpError
from interp.core.files import json_text, write_atomically
from interp.core.schema import Count, FileRow, checked, json_value, read_text
from interp.engine.edges.graph import Graph


class MibConfig(FileRow):
    """The model's configuration in a file; other entries are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    n_layers: Count
    n_heads: Count
    parallel_attn_mlp: bool


class MibEdge(FileRow):
    """One edge; other entries, which EAP-IG may write, are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    score: Annotated[float, Field(allow_inf_nan=False)]
    in_graph: bool


class MibJson(FileRow):
    """A MIB circuit as JSON."""

    cfg: MibConfig = Field(description='{"n_layers", "n_heads", "parallel_attn_mlp"}')
    nodes: dict[str, Any]
    neurons: Any = None
    edges: dict[str, MibEdge] = Field(description='{name: {"score": number, "in_graph": true}}')


class MibTensors(FileRow):
    """A MIB circuit as a dictionary of tensors."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    cfg: MibConfig = Field(description='{"n_layers", "n_heads", "parallel_attn_mlp"}')
    src_nodes: list[str] | None = None
    dst_nodes: list[str] | None = None
    edges_scores: torch.Tensor
    edges_in_graph: torch.Tensor
    nodes_in_graph: Any = None
    nodes_scores: Any = None
    neurons_in_graph: Any = None
    neurons_scores: Any = None


def to_mib_json(circuit: Circuit, path: str | Path, *, d_model: int) -> Path:
    """Write a circuit as MIB JSON, with an edge into a shared key or value once per query head.

    Args:
        circuit: the circuit; missing scores are written as 0.
        path: the file.
        d_model: width of the residual stream, which the format records.

    Raises:
        InterpError: a graph with neurons as nodes, or the file cannot be written.
    """
    circuit = circuit.expanded()
    graph, scores = circuit.graph, _scores(circuit)
    sources, targets = _names(graph)
    nodes = _nodes(circuit)
    edges = {
        f"{sources[w]}->{targets[r]}": {
            "score": float(scores[w, r]),
            "in_graph": bool(circuit.mask[w, r]),
        }
        for r, w in np.argwhere(graph.allowed.T)
    }
    content = {
        "cfg": _config(graph, d_model),
        "nodes": {
            **{n: {"in_graph": bool(inside)} for n, inside in zip(sources, nodes, strict=True)},
            "logits": {"in_graph": True},
        },
        "edges": edges,
    }
    text = json_text(content)
    return write_atomically(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def to_mib_pt(circuit: Circuit, path: str | Path, *, d_model: int) -> Path:
    """Write a circuit as MIB PT. See `to_mib_json`."""
    circuit = circuit.expanded()
    sources, targets = _names(circuit.graph)
    content = {
        "cfg": _config(circuit.graph, d_model),
        "src_nodes": sources,
        "dst_nodes": targets,
        "edges_scores": torch.from_numpy(_scores(circuit)).float(),
        "edges_in_graph": torch.from_numpy(circuit.mask.copy()),
        "nodes_in_graph": torch.from_numpy(_nodes(circuit)),
    }
    return write_atomically(Path(path), lambda part: torch.save(content, part))


def from_mib_json(path: str | Path, graph: Graph | None = None) -> Circuit:
    """Read MIB JSON.

    Args:
        path: the file.
        graph: the model's graph, which says how query heads share keys and values. Without it
            every query head is assumed to have its own.

    Returns:
        The circuit on the expanded graph; `Circuit.native` converts it.

    Raises:
        InterpError: a graph with neurons as nodes, a file of another format or another model,
            unknown or missing edges, or a selection of what MIB calls neurons.
    """
    asked = f"the MIB circuit {path}"
    content = json_value(read_text(Path(path), asked), asked)
    found = _checked(MibJson, content, path)
    graph = _graph(found.cfg, len(found.edges), path, graph)
    nodes = found.nodes.values()
    if found.neurons or any(isinstance(node, dict) and "neurons" in node for node in nodes):
        raise _unreadable(path, "it selects neurons of nodes")
    sources, targets = _names(graph)
    indices = {f"{sources[w]}->{targets[r]}": (w, r) for w, r in np.argwhere(graph.allowed)}
    if differ := indices.keys() ^ found.edges.keys():
        raise _unreadable(path, f"{len(differ)} edges missing or unknown, such as {min(differ)}")
    mask, scores = np.zeros(graph.shape, dtype=bool), np.zeros(graph.shape)
    for name, edge in found.edges.items():
        mask[indices[name]], scores[indices[name]] = edge.in_graph, edge.score
    return Circuit(graph=graph, mask=mask, scores=scores, name=Path(path).stem, method="MIB file")


def from_mib_pt(path: str | Path, graph: Graph | None = None) -> Circuit:
    """Read MIB PT. Only tensors and plain values are loaded. See `from_mib_json`."""
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # other formats make torch raise many kinds of errors
        raise _unreadable(path, str(error).splitlines()[0] if str(error) else "empty") from error
    found = _checked(MibTensors, content, path)
    inside, values = found.edges_in_graph, found.edges_scores.detach()
    if inside.ndim != 2 or inside.dtype != torch.bool or not values.is_floating_point():
        raise _unreadable(path, f"edges are {inside.dtype} and {values.dtype}, not bool and float")
    graph = _graph(found.cfg, inside.numel(), path, graph)
    if found.neurons_in_graph is not None:
        raise _unreadable(path, "it selects neurons of nodes")
    for key, expected in zip(("src_nodes", "dst_nodes"), _names(graph), strict=True):
        if getattr(found, key) not in (None, expected):
            raise _unreadable(path, f"its {key} are not in the graph's order")
    mask, scores = inside.numpy(), values.double().numpy()
    if mask.shape != graph.shape or scores.shape != graph.shape:
        raise _unreadable(path, f"edges of shape {mask.shape}, not {graph.shape}")
    scores = np.where(graph.allowed, scores, 0.0)
    if not np.isfinite(scores).all():
        raise _unreadable(path, "scores that are not finite")
    if (mask & ~graph.allowed).any():
        raise _unreadable(path, "it holds edges that the graph does not have")
    return Circuit(graph=graph, mask=mask, scores=scores, name=Path(path).stem, method="MIB file")


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    """MIB's names of writers and readers."""
    if graph.neurons:
        raise InterpError(
            f"MIB's format for a graph with {len(graph.neurons)} neurons as nodes",
            "MIB's neurons are dimensions of a node's output, not neurons of an MLP",
            "use Circuit.save, or score the graph without neurons",
        )

    sources, targets = ["input"], []
    for layer in range(graph.n_layers):
        sources += [f"a{layer}.h{head}" for head in range(graph.n_heads)] + [f"m{layer}"]
        for site, group in graph.groups(layer).items():
            numbers = range(group.stop - group.start)
            heads = [f"a{layer}.h{number}<{site}>" for number in numbers]
            targets += [f"m{layer}"] if site == "mlp_out" else heads
    return sources, [*targets, "logits"]


def _config(graph: Graph, d_model: int) -> dict[str, Any]:
    return {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }


def _scores(circuit: Circuit) -> np.ndarray:
    return np.zeros(circuit.graph.shape) if circuit.scores is None else circuit.scores


def _nodes(circuit: Circuit) -> np.ndarray:
    """(writers,) bool: nodes with edges out and, except for the input, edges in."""
    entered = circuit.graph.entered(circuit.mask)
    entered[0] = True
    return np.any(circuit.mask, axis=1) & entered


def _checked(kind: Any, content: Any, path: str | Path) -> Any:
    if not isinstance(content, dict):
        raise _unreadable(path, "it does not hold a dictionary")
    return checked(kind, content, f"the MIB circuit {path}")


def _graph(cfg: MibConfig, edges: int, path: str | Path, graph: Graph | None) -> Graph:
    """The expanded graph of a file with this number of edges."""
    shape = [cfg.n_layers, cfg.n_heads, cfg.parallel_attn_mlp]
    if graph is None:
        layers, heads, parallel = shape
        if layers * (heads + 1) > edges:  # every head and MLP has at least one edge out
            raise _unreadable(path, f"{edges} edges for {layers} layers of {heads} heads")
        return Graph(n_layers=layers, n_heads=heads, n_kv_heads=heads, parallel=parallel)
    if shape != [graph.n_layers, graph.n_heads, graph.parallel]:
        raise InterpError(
            f"the circuit {path} for {graph}",
            f"layers, heads and parallel blocks are {shape}",
            "load it for the model it was found in",
        )
    return graph.expanded


def _unreadable(path: str | Path, why: str) -> InterpError:
    return InterpError(f"the MIB circuit {path}", why, "give a file written by MIB or to_mib_*")
