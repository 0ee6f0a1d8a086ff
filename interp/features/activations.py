"""When features fire, and which tokens they write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Count, checked
from interp.features.dictionary import Dictionary
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Unembedded, unembed
from interp.plots.tables import Listing, Tabled
from interp.runs.capture import run_with_cache
from interp.runs.most_active import ActiveToken

if TYPE_CHECKING:
    from pandas import DataFrame

BATCH = 16
"""Prompts run together, so that the sites of few are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class ActiveFeature:
    """A feature that fires on some prompts: its largest activation, where, and how often.

    `share` is the fraction of tokens on which it is active.
    """

    label: str
    feature: int
    value: float
    share: float
    strongest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureActivations(Tabled):
    """The activations of a dictionary's features that are not 0, (active,) each.

    Attributes:
        dictionary: the dictionary.
        prompts, positions, features, values: where, which, and how much.
        tokens: the texts of each prompt's tokens.
    """

    dictionary: Dictionary
    prompts: np.ndarray
    positions: np.ndarray
    features: np.ndarray
    values: np.ndarray
    tokens: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        n, fired = self.n_tokens, len(np.unique(self.features))
        top = self.top(1)
        most = (
            f"; strongest {top[0].label} {top[0].value:z.3f} at {top[0].strongest}" if top else ""
        )
        return (
            f"FeatureActivations({fired} of {self.dictionary.size} features of "
            f"L{self.dictionary.layer} fire on {n} tokens of n={len(self.tokens)} prompts, "
            f"{len(self.values) / n:z.1f} a token{most})"
        )

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.tokens))

    def top(self, k: int = 10) -> Listing[ActiveFeature]:
        """The k features with the largest absolute activation."""
        k = checked(Count, k, "the strongest features")
        order = np.argsort(-np.abs(self.values), kind="stable")
        named, first = np.unique(self.features[order], return_index=True)
        counts = dict(zip(*np.unique(self.features, return_counts=True), strict=True))
        best = order[np.sort(first)[:k]]
        found = [
            ActiveFeature(
                label=self.dictionary.label(int(self.features[at])),
                feature=int(self.features[at]),
                value=float(self.values[at]),
                share=float(counts[self.features[at]] / self.n_tokens),
                strongest=self._token(at).label,
            )
            for at in best
        ]
        assert len(found) == min(k, len(named))
        return Listing(found, "largest activation")

    def of(self, feature: int, k: int = 10) -> Listing[ActiveToken]:
        """The k tokens on which one feature fires most.

        Raises:
            InterpError: there is no such feature.
        """
        (feature,) = self.dictionary.require_features([feature])
        k = checked(Count, k, "the strongest tokens")
        own = np.flatnonzero(self.features == feature)
        order = own[np.argsort(-np.abs(self.values[own]), kind="stable")[:k]]
        return Listing([self._token(at) for at in order], "activation")

    def _token(self, at: int) -> ActiveToken:
        prompt, position = int(self.prompts[at]), int(self.positions[at])
        text = self.tokens[prompt][position]
        return ActiveToken(
            prompt=prompt, position=position, text=text, value=float(self.values[at])
        )

    def to_dataframe(self) -> DataFrame:
        """One row per feature that fires, strongest first."""
        return self.top(self.dictionary.size).to_dataframe()


@dataclass(frozen=True, kw_only=True)
class FeatureView(Tabled):
    """One feature: the tokens that its decoder row writes, and where it fires."""

    label: str
    writes: Unembedded
    fires: Listing[ActiveToken]

    def __repr__(self) -> str:
        written = " ".join(token.label for token in self.writes.promoted[:4])
        at = f"; {self.fires[0].value:+z.2f} at {self.fires[0].label}" if self.fires else ""
        return f"FeatureView({self.label} writes {written}{at})"

    def to_dataframe(self) -> DataFrame:
        """The tokens it raises and lowers, strongest first."""
        from pandas import DataFrame

        sides = {"writes +": self.writes.promoted, "writes -": self.writes.suppressed}
        return DataFrame({name: [one.text for one in some] for name, some in sides.items()})

    def plot(self) -> Any:
        """A Plotly figure of the tokens that it writes."""
        from interp.plots.components import token_bars

        sides = self.writes.promoted, self.writes.suppressed
        return token_bars(*([(token.text, token.value) for token in some] for some in sides))


@reads_arguments
def feature_activations(
    model: LanguageModel, prompts: Task | Prompt | Sequence[Prompt], dictionary: Dictionary
) -> FeatureActivations:
    """The activation of every feature at every token of some prompts.

        f = act(x W_enc + b_enc) at every token, see `Dictionary`

    Unit: that of the dictionary. Inside `intervene` the changed run is read.

    Args:
        model: a model that the dictionary fits; with `read="mlp_in"` or "mlp_normed" one with a
            fast engine.
        prompts: texts, token ids or a task (its clean prompts).
        dictionary: an SAE or a transcoder.

    Raises:
        InterpError: no prompts, or a dictionary that does not fit (`Dictionary.require_model`).

    Equals a loop over tokens and features (tests/features/test_dictionary.py).
    """
    dictionary.require_model(model)
    found: list[tuple[np.ndarray, ...]] = []
    texts: list[tuple[str, ...]] = []
    for tokens, read, _ in read_and_written(model, prompts, dictionary):
        features = dictionary.encode(read).cpu()
        position, feature = (x.numpy() for x in features.nonzero(as_tuple=True))
        values = features[position, feature].double().numpy()
        found.append((np.full(len(values), len(texts)), position, feature, values))
        texts.append(tokens)
    prompt, position, feature, values = (np.concatenate(x) for x in zip(*found, strict=True))
    return FeatureActivations(
        dictionary=dictionary,
        prompts=prompt,
        positions=position,
        features=feature,
        values=values,
        tokens=tuple(texts),
    )


@reads_arguments
def view_feature(
    model: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    prompts: Task | Prompt | Sequence[Prompt] = (),
    *,
    k: int = 8,
) -> FeatureView:
    """The tokens that a feature writes by its decoder row, and where it fires.

        logits = W_U (weight_final * d_i)

    Args:
        model: a model with a fast engine that the dictionary fits.
        dictionary: an SAE or a transcoder of the residual stream, of mlp_out, attn_out or z.
        feature: its number.
        prompts: prompts at whose tokens the activation is given.
        k: number of tokens of each sign.

    Raises:
        InterpError: no such feature, k out of range, or a dictionary that does not fit.
    """
    dictionary.require_model(model)
    (feature,) = dictionary.require_features([feature])
    row = dictionary.into_stream(model, dictionary.W_dec[feature][None])
    (writes,) = unembed(model, row, k=k, norm=True)
    fires: Listing[ActiveToken] = Listing([], "activation")
    if texts_of(prompts):
        fires = feature_activations(model, prompts, dictionary).of(feature, k)
    return FeatureView(label=dictionary.label(feature), writes=writes, fires=fires)


def read_and_written(
    model: LanguageModel, prompts: Task | Prompt | Sequence[Prompt], dictionary: Dictionary
) -> Iterator[tuple[tuple[str, ...], Tensor, Tensor]]:
    """For each prompt the texts of its tokens, and the sites read and written: (tokens, width)."""
    texts = texts_of(prompts)
    if not texts:
        raise InterpError("features on prompts", "no prompts", "give at least one")
    source, layer = dictionary.source(model), dictionary.layer
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        sites = [source, dictionary.written]
        seen = run_with_cache(model, some, sites=sites, layers=[layer], budget_gb=1e9)
        for row, tokens in enumerate(seen.tokens):
            value, written = (seen[layer, site][row, : len(tokens)] for site in sites)
            with torch.no_grad():
                read = dictionary.what_is_read(model.decoder, value.to(model.device))
            yield tokens, read, written.flatten(1)
