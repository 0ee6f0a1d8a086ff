"""Where one neuron fires: on every token of some prompts, and in the texts of a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from interp.core.components import within
from interp.core.corpus import Corpus, shipped_passages, texts_in
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Count, checked
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronFiring:
    """One neuron on one prompt, each (token,).

    Attributes:
        tokens: the text of every token.
        activation: what the output weights are multiplied by (site post).
        gate: the input of the activation function (site pre).
        up: the linear part (site pre_linear); None of an MLP without one.
    """

    tokens: tuple[str, ...]
    activation: np.ndarray
    gate: np.ndarray
    up: np.ndarray | None

    @property
    def peak(self) -> float:
        """The largest absolute activation."""
        return float(np.abs(self.activation).max())


def neuron_firing(
    model: LanguageModel, prompts: Task | Prompt | Sequence[Prompt], neuron: str
) -> list[NeuronFiring]:
    """The activation of one neuron, such as "L25N100", on every token of each prompt.

    Prompts are those of `run_with_cache`: of a task the clean ones. Inside `intervene` the changed
    run is read.

    Raises:
        InterpError: no such neuron, or a model or prompts that `run_with_cache` refuses.
    """
    (part,) = model.require_parts(neuron, "post")
    (index,) = within([part.index], model.d_mlp, "neuron", model.name)  # type: ignore[list-item]
    sites = [site for site in ("pre", "pre_linear", "post") if model.sites[site] is None]
    seen = run_with_cache(model, prompts, sites=sites, layers=[part.layer])

    def values(site: str, i: int, size: int) -> np.ndarray:
        return seen[part.layer, site][i, :size, index].float().cpu().numpy()

    return [
        NeuronFiring(
            tokens=tokens,
            activation=values("post", i, len(tokens)),
            gate=values("pre", i, len(tokens)),
            up=values("pre_linear", i, len(tokens)) if "pre_linear" in sites else None,
        )
        for i, tokens in enumerate(seen.tokens)
    ]


BATCH = 16
"""Texts of a corpus that are run together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StrongestTexts:
    """The texts of a corpus in which a neuron fires most.

    Attributes:
        neuron: its label.
        texts: the strongest ones, by their largest absolute activation.
        numbers: the place of each in the corpus, from 0.
        n: how many texts were read.
        usual: of the absolute activations on all tokens read, the median and the 99 % quantile:
            what a peak is compared with.
    """

    neuron: str
    texts: tuple[NeuronFiring, ...]
    numbers: tuple[int, ...]
    n: int
    usual: tuple[float, float]

    def __repr__(self) -> str:
        most = f"{self.texts[0].peak:z.3f}" if self.texts else "none"
        return (
            f"StrongestTexts({self.neuron}, n={self.n} texts; largest {most}, median of all tokens "
            f"{self.usual[0]:z.3f}, 99 % {self.usual[1]:z.3f})"
        )


def strongest_texts(
    model: LanguageModel, neuron: str, corpus: Corpus | None = None, *, k: int = 5
) -> StrongestTexts:
    """The k texts in which one neuron, such as "L25N100", fires most, either way.

    The first token of a text is left out: many models give it a stream like no other. Only the k
    strongest texts and one number a token are in memory at a time.

    Args:
        model: a model with the neuron.
        neuron: its label.
        corpus: texts, or a file with one a line; by default the 96 passages that ship.
        k: how many texts.

    Raises:
        InterpError: no such neuron, no texts, a file that cannot be read, or k out of range.
    """
    k = checked(Count, k, "the strongest texts")
    best: list[tuple[float, int, NeuronFiring]] = []
    sizes: list[np.ndarray] = []
    n = 0
    for batch in _batches(texts_in(shipped_passages() if corpus is None else corpus)):
        for one in neuron_firing(model, batch, neuron):
            size = np.abs(one.activation[1:])
            sizes.append(size)
            best.append((-float(size.max(initial=0.0)), n, one))
            n += 1
        best = sorted(best, key=lambda found: found[:2])[:k]
    if not n:
        raise InterpError(f"texts in which {neuron} fires", "the corpus is empty", "give texts")
    every = np.concatenate(sizes)
    median, high = np.quantile(every, (0.5, 0.99)) if every.size else (0.0, 0.0)
    return StrongestTexts(
        neuron=neuron,
        texts=tuple(one for _, _, one in best),
        numbers=tuple(number for _, number, _ in best),
        n=n,
        usual=(float(median), float(high)),
    )


def _batches(texts: Iterator[Prompt]) -> Iterator[list[Prompt]]:
    while batch := list(islice(texts, BATCH)):
        yield batch
