"""What a neuron reads and writes, by its weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interp.core.components import within
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed
from interp.models.vocabulary import read_vocabulary


@dataclass(frozen=True, kw_only=True)
class NeuronTokens:
    """The tokens that a neuron reads and writes most, of both signs.

    Attributes:
        gate: the tokens on whose own embedding its gate is largest and smallest (of an MLP without
            a gate: its input).
        up: the same of its linear part; None if the MLP has none.
        writes: the tokens whose logits it raises and lowers most at a positive activation.
    """

    gate: Unembedded
    up: Unembedded | None
    writes: Unembedded


@torch.no_grad()
def neuron_tokens(
    model: LanguageModel, layer: int | str, index: int | None = None, *, k: int = 8
) -> NeuronTokens:
    """What one neuron reads from single tokens, and which tokens it writes.

        gate(t) = g . n(t) + b,   up(t) = u . n(t) + c,   writes = W_U (w_final * w_post * v)

    g, u and v are the neuron's gate, up and output weights. n(t) is the embedding of token t behind
    the norm before the MLP: what the neuron would read if no earlier layer wrote anything. w_post
    is the weight of a norm behind the MLP, if there is one.

    The neuron is given by its layer and index, or by its label, such as "L25N100". k tokens of each
    sign are given; of gate and up with their values, of writes with logits up to the norms' scale.

    Raises:
        InterpError: an unknown architecture, no such layer or neuron, or k out of range.
    """
    if isinstance(layer, str) and index is None:
        (part,) = model.require_parts(layer, "post")
        layer, index = part.layer, part.index
    (layer,) = within([layer], model.n_layers, "layer", model.name)  # type: ignore[list-item]
    (index,) = within([index], model.d_mlp, "neuron", model.name)  # type: ignore[list-item]
    block = model.require_decoder("the weights of neurons").blocks[layer]
    parts = [block.neurons.gate, *(() if block.neurons.up is None else (block.neurons.up,))]
    weights = torch.stack([part.weight[:, index] for part in parts], 1)
    biases = torch.stack(
        [weights.new_zeros(()) if part.bias is None else part.bias[index] for part in parts]
    )
    reads = read_vocabulary(model, block.ln2, lambda read: read @ weights + biases, k=k)
    written = block.neurons.down.weight[index]
    if block.ln2_post is not None:
        written = written * block.ln2_post.weight
    (writes,) = unembed(model, written, k=k, norm=True)
    return NeuronTokens(gate=reads[0], up=reads[1] if len(reads) > 1 else None, writes=writes)
