"""The graph of a model: its heads, MLPs or neurons, and the edges between them."""

from __future__ import annotations

from collections.abc import Iterable

from interp.core.arguments import listed
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.engine.edges.graph import Graph
from interp.models.language_model import LanguageModel


def graph_of(
    model: LanguageModel,
    *,
    expand_kv: bool = False,
    neurons: Iterable[str | tuple[int, int]] = (),
) -> Graph:
    """The graph of a model.

    Args:
        model: the model.
        expand_kv: separate key and value readers for every query head, not for every key/value
            head.
        neurons: neurons that are nodes of their own: labels such as L26N6475, or (layer, number).

    Raises:
        InterpError: a neuron that the model does not have, or one that is given twice.
    """
    found = [_neuron(model, one) for one in listed(neurons)]
    if found:
        model.require_site("post")
    if len(set(found)) < len(found):
        raise InterpError(f"neurons {found}", "one is given twice", "give each once")
    return Graph(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        parallel=model.parallel,
        expand_kv=expand_kv,
        neurons=tuple(found),
    )


def _neuron(model: LanguageModel, neuron: str | tuple[int, int]) -> tuple[int, int]:
    layer = number = -1
    if not isinstance(neuron, str):
        layer, number = neuron
    elif (part := Component.parse(neuron)).site == "post" and part.index is not None:
        layer, number = part.layer, part.index
    if not (0 <= layer < model.n_layers and 0 <= number < model.size("neuron")):
        raise InterpError(
            f"neuron {neuron} of {model.name}",
            f"it has {model.n_layers} layers of {model.size('neuron')} neurons",
            "write a label such as L3N12",
        )
    return layer, number
