"""One neuron: what it reads, what it writes, and where it fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.core.arguments import reads_arguments, texts_of
from interp.core.components import Component
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.neurons.firing import neuron_firing
from interp.neurons.weights import NeuronTokens, neuron_tokens
from interp.plots.tables import Listing, Tabled
from interp.runs.most_active import ActiveToken

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class NeuronView(Tabled):
    """A neuron's weights as tokens, and its activations.

    Attributes:
        component: the neuron.
        tokens: the tokens that its weights read and write.
        fires: its activation at every token of the prompts given, largest absolute value first.
    """

    component: Component
    tokens: NeuronTokens
    fires: Listing[ActiveToken]

    def __repr__(self) -> str:
        at = f"; {self.fires[0].value:+z.2f} at {self.fires[0].label}" if self.fires else ""
        reads, writes = (
            " ".join(token.label for token in some.promoted[:4])
            for some in (self.tokens.gate, self.tokens.writes)
        )
        return f"NeuronView({self.component} reads {reads}, writes {writes}{at})"

    def to_dataframe(self) -> DataFrame:
        """One column per weight and sign, with the tokens, strongest first."""
        from pandas import DataFrame

        found = {"gate": self.tokens.gate, "up": self.tokens.up, "writes": self.tokens.writes}
        columns = {}
        for name, some in found.items():
            for sign, tokens in (("+", some.promoted), ("-", some.suppressed)) if some else ():
                columns[f"{name} {sign}"] = [token.text for token in tokens]
        return DataFrame(columns)

    def plot(self) -> Any:
        """A Plotly figure of the tokens that it writes; `fires.plot()` shows where it fires."""
        from interp.plots.components import token_bars

        written = self.tokens.writes.promoted, self.tokens.writes.suppressed
        return token_bars(*([(token.text, token.value) for token in some] for some in written))


@reads_arguments
def view_neuron(
    model: LanguageModel,
    neuron: str,
    prompts: Task | Prompt | Sequence[Prompt] = (),
    *,
    k: int = 8,
) -> NeuronView:
    """What a neuron reads and writes by its weights (`neuron_tokens`), and where it fires.

    Args:
        model: a model whose weights are known.
        neuron: its label, such as "L25N100".
        prompts: prompts at whose tokens the activation (site post) is given.
        k: number of tokens of each sign.

    Raises:
        InterpError: unknown weights, no such neuron, or k out of range.
    """
    (part,) = model.require_parts(neuron, "post")
    texts = texts_of(prompts)
    fires = [
        ActiveToken(prompt=i, position=p, text=text, value=float(value))
        for i, one in enumerate(neuron_firing(model, texts, neuron) if texts else ())
        for p, (text, value) in enumerate(zip(one.tokens, one.activation, strict=True))
    ]
    return NeuronView(
        component=part,
        tokens=neuron_tokens(model, part.layer, part.index, k=k),
        fires=Listing(sorted(fires, key=lambda one: -abs(one.value)), "activation"),
    )
