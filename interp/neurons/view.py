"""One neuron: what it reads, what it writes, and where it fires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.core.arguments import reads_arguments, texts_of
from interp.core.components import Component
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.statistics import widened
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed, written_vectors
from interp.plots.tables import Listing, Tabled
from interp.runs.capture import run_with_cache

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class Firing:
    """A neuron's activation (site post) at one token of one prompt."""

    prompt: int
    position: int
    text: str
    value: float

    @property
    def label(self) -> str:
        """The token and its place."""
        return f"{self.text!r} at {self.position} of prompt {self.prompt}"


@dataclass(frozen=True, kw_only=True)
class NeuronView(Tabled):
    """A neuron's weights as tokens, and its activations.

    Attributes:
        component: the neuron.
        reads: by input weight ("gate" and "up", or "in" without a gate), the tokens whose
            unembedding raises and lowers it most.
        writes: the tokens whose logits it raises and lowers most, at a positive activation.
        fires: its activation at every token of the prompts given, largest absolute value first.
    """

    component: Component
    reads: Mapping[str, Unembedded]
    writes: Unembedded
    fires: Listing[Firing]

    def __repr__(self) -> str:
        at = f"; {self.fires[0].value:+.2f} at {self.fires[0].label}" if self.fires else ""
        tokens = " ".join(token.label for token in self.writes.promoted[:5])
        return f"NeuronView({self.component} writes {tokens}{at})"

    def to_dataframe(self) -> DataFrame:
        """One column per weight and sign, with the tokens, strongest first."""
        from pandas import DataFrame

        named = {f"{name} reads": found for name, found in self.reads.items()}
        columns = {}
        for name, found in (named | {"writes": self.writes}).items():
            for sign, tokens in (("+", found.promoted), ("-", found.suppressed)):
                columns[f"{name} {sign}"] = [token.text for token in tokens]
        return DataFrame(columns)

    def plot(self) -> Any:
        """A Plotly figure of the tokens that it writes; `fires.plot()` shows where it fires."""
        from interp.plots.components import token_bars

        written = self.writes.promoted, self.writes.suppressed
        return token_bars(*([(token.text, token.value) for token in some] for some in written))


@torch.no_grad()
@reads_arguments
def view_neuron(
    model: LanguageModel,
    neuron: str,
    prompts: Task | Prompt | Sequence[Prompt] = (),
    *,
    k: int = 10,
) -> NeuronView:
    """What a neuron reads and writes, as tokens, and where it fires.

        reads(t) = W_U[t] . (w_in * weight_norm),   writes(t) = W_U[t] . (v * weight_final)

    w_in are the gate and the up weights (or the only input weights), scaled by the weight of the
    norm in front of the MLP, and v the output weights, scaled by the weights of the norms behind.
    Units of both are arbitrary: the scale of a norm belongs to a run. At a negative activation the
    signs of what is written turn round. The state in front of an early layer is often no sum of
    unembedding rows, so what such a layer reads may not be found among tokens.

    Args:
        model: a model whose weights are known.
        neuron: its label, such as "L25N100".
        prompts: prompts at whose tokens the activation (site post) is given.
        k: number of tokens of each sign.

    Raises:
        InterpError: unknown weights, no such neuron, or k out of range.
    """
    decoder = model.require_decoder("reading a neuron")
    (part,) = model.require_parts(neuron, "post")
    block, index = decoder.blocks[part.layer], part.index or 0
    mlp, norm = block.mlp, block.ln1 if block.parallel and block.ln2 is None else block.ln2
    gated = mlp.up is not None
    weights = {"gate" if gated else "in": mlp.gate} | ({"up": mlp.up} if gated else {})
    scale = 1.0 if norm is None else widened(norm.weight)
    read = [widened(one.weight[:, index]) * scale for one in weights.values()]  # type: ignore[union-attr]
    *reads, writes = unembed(
        model, torch.stack([*read, written_vectors(decoder, part.layer)[index]]), k=k
    )
    fires = []
    if texts := texts_of(prompts):
        seen = run_with_cache(model, texts, sites="post", layers=[part.layer])
        for i, row in enumerate(seen.tokens):
            values = seen[part.layer, "post"][i, : len(row), index].tolist()
            fires += [
                Firing(prompt=i, position=p, text=text, value=value)
                for p, (text, value) in enumerate(zip(row, values, strict=True))
            ]
    return NeuronView(
        component=part,
        reads=dict(zip(weights, reads, strict=True)),
        writes=writes,
        fires=Listing(sorted(fires, key=lambda one: -abs(one.value)), "activation"),
    )
