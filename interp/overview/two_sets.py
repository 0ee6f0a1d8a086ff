"""Two sets of prompts: where they separate, along which direction, and what that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from interp.core.arguments import reads_arguments, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed
from interp.plots.tables import Tabled
from interp.probing.probes import Probes
from interp.probing.training import FEWEST, probe_model
from interp.results.direction import Direction, random_direction
from interp.runs.generation import Generation, generate
from interp.runs.kinds import add
from interp.steering.candidates import Candidates, difference_in_means
from interp.steering.projections import Projected, project_tokens

if TYPE_CHECKING:
    import pandas as pd

SITE = "resid_post"


@dataclass(frozen=True, kw_only=True)
class Contrast(Tabled):
    """Two sets of prompts at every layer, in the residual stream after the block, last token.

    Attributes:
        probes: a linear probe a layer, with its measures on held-out prompts and its control.
        means: mean(first) - mean(second) at every layer, from all prompts.
        made_of: hash of the weights it was read with.
    """

    model: LanguageModel
    first: tuple[str, ...]
    second: tuple[str, ...]
    probes: Probes
    means: Candidates
    made_of: str

    def __repr__(self) -> str:
        best = self.to_dataframe().iloc[:, 1].max()
        return (
            f"Contrast({len(self.first)} and {len(self.second)} prompts, "
            f"{len(self.means.layers)} layers, best held-out AUC {best:z.3f})"
        )

    def direction(self, layer: int) -> Direction:
        """mean(first) - mean(second) at a layer.

        Raises:
            InterpError: no such layer.
        """
        return self.means.at(layer, -1)

    @cached_property
    def _cosines(self) -> list[float]:
        vectors = self.means.vectors[-1].double()
        return torch.cosine_similarity(vectors, self.probes.weights.double(), dim=-1).tolist()

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer: the probe's held-out AUC beside shuffled labels, and the direction.

        Columns: layer; auc with its 95 % interval; the mean and 95 % range of probes of shuffled
        labels; length: of mean(first) - mean(second); cosine: of it with the probe's weights;
        n_test.
        """
        table = self.probes.to_dataframe()
        names = ["auc", "auc_low", "auc_high"]
        names += ["shuffled_auc", "shuffled_auc_low", "shuffled_auc_high"]
        lengths = [self.direction(layer).norm for layer in self.means.layers]
        found = table[["layer", *names]].assign(length=lengths, cosine=self._cosines)
        return found.assign(n_test=table["n_valid"] + table["n_invalid"])

    def written(self, layer: int, k: int = 10) -> Unembedded:
        """The tokens whose logits the direction of a layer raises and lowers most."""
        self.model.require_hash(self.made_of, "a contrast")
        return unembed(self.model, self.direction(layer).vector.float(), k=k, norm=True)[0]

    def projections(self, layer: int, prompts: Sequence[Prompt]) -> list[Projected]:
        """The projection of every token of some prompts on the direction, scaled to length 1."""
        self.model.require_hash(self.made_of, "a contrast")
        rows = [self.model.tokenize(prompt).tokens for prompt in prompts]
        unit = self.direction(layer).unit.tolist()
        return project_tokens(self.model, rows, layer=layer, site=SITE, unit=unit)

    def texts(
        self, prompt: Prompt, layer: int, strength: float = 1.0, max_new_tokens: int = 30
    ) -> dict[str, Generation]:
        """What the model writes plainly, steered, and steered by a random direction.

        strength times the direction is added to every token after the block, of the prompt and of
        what is generated. The random direction has the same length.
        """
        self.model.require_hash(self.made_of, "a contrast")
        direction = self.direction(layer)
        changes = {
            "plain": None,
            "steered": add(direction, coefficient=strength),
            "random direction": add(random_direction(direction), coefficient=strength),
        }
        return {
            name: generate(self.model, [prompt], max_new_tokens, change=change)[0]
            for name, change in changes.items()
        }


@reads_arguments
def contrast(
    model: LanguageModel, first: Sequence[str], second: Sequence[str], *, seed: int = 0
) -> Contrast:
    """What separates two sets of prompts, at every layer.

    At the last token of every prompt, after every block, a linear probe is trained to tell the
    sets apart, and is measured on held-out prompts beside probes of shuffled labels. A probe that
    separates them shows that the state differs, which may be no more than a word that all prompts
    of a set share: compare it with the first layers.

    Args:
        model: a model with a fast engine.
        first: texts of one kind, at least ten.
        second: texts of the other.
        seed: of the split and of the shuffled labels.

    Raises:
        InterpError: fewer than ten texts of a kind, or a text that is in both.

    Source: Alain and Bengio 2016 (arXiv 1610.01644); the control of Hewitt and Liang 2019
    (1909.03368); the difference of means of Rimsky et al. 2023 (2312.06681).
    """
    one, other = (tuple(map(str, texts_of(side))) for side in (first, second))
    both = len(set(one) & set(other))
    if min(len(set(one)), len(set(other))) < FEWEST or both:
        raise InterpError(
            "two sets of prompts",
            f"{len(set(one))} and {len(set(other))} different texts, {both} of them in both",
            f"give at least {FEWEST} of each, and none in both",
        )
    labels = [1] * len(one) + [0] * len(other)
    probes = probe_model(model, [*one, *other], "last", labels, sites=(SITE,), seed=seed)[SITE]
    means = difference_in_means(model, one, other, kind="contrast", site=SITE, last=1)
    return Contrast(
        model=model, first=one, second=other, probes=probes, means=means, made_of=model.hash
    )
