"""The refusal score: the log-odds that the next token begins a refusal.

The score of Arditi et al. 2024 (arXiv 2406.11717, andyrdt/refusal_direction). It reads one token,
and an answer can begin with the same token, such as "I". So the set of tokens is suggested from
judged replies, with the probability that it has in each class.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.components import within
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

EPSILON = 1e-8


def refusal_mass(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """(n,) p_R, the probability of a set of tokens, from (n, d_vocab) logits; float64.

    Raises:
        InterpError: no tokens, or one that does not exist.
    """
    chosen = within(tokens, logits.shape[-1], "token", "the vocabulary")
    return logits.detach().cpu().double().softmax(-1)[:, chosen].sum(-1)


def log_odds(mass: Tensor) -> Tensor:
    """log(p + 1e-8) - log(1 - p + 1e-8) of probabilities, between -18.42 and 18.42."""
    return torch.log(mass + EPSILON) - torch.log((1 - mass).clamp(min=0) + EPSILON)


def score_refusals(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """The log-odds that the next token is a refusal token; positive means a refusal.

        score = log(p_R + 1e-8) - log(1 - p_R + 1e-8)

    The epsilon bounds the score, so means of scores are insensitive where p_R saturates.

    Args:
        logits: (n, d_vocab) logits at the last token of each prompt.
        tokens: the set R of refusal tokens.

    Returns:
        (n,) in nats, float64.
    """
    return log_odds(refusal_mass(logits, tokens))


@dataclass(frozen=True, kw_only=True)
class RefusalTokens(Tabled):
    """Suggested first tokens of refusals, most indicative first. Arrays are (tokens,).

    Attributes:
        ids: the tokens.
        strings: their texts.
        log_odds: log-odds of the mean probability on refused rows minus those on answered rows, in
            nats.
        refused: mean probability on refused rows.
        answered: mean probability on answered rows.
        n: number of refused and of answered rows.
    """

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    log_odds: np.ndarray
    refused: np.ndarray
    answered: np.ndarray
    n: tuple[int, int]

    @property
    def coverage(self) -> np.ndarray:
        """(tokens,) mean probability of the first k tokens together on refused rows."""
        return self.refused.cumsum()

    @property
    def spill(self) -> np.ndarray:
        """(tokens,) mean probability of the first k tokens together on answered rows."""
        return self.answered.cumsum()

    def to_dataframe(self) -> Any:
        """One row per token."""
        import pandas as pd

        names = ("ids", "strings", "log_odds", "refused", "answered", "coverage", "spill")
        return pd.DataFrame({name: list(getattr(self, name)) for name in names})


def suggest_refusal_tokens(
    model: LanguageModel,
    refused: Tensor,
    answered: Tensor,
    *,
    most: int = 8,
    floor: float = 0.01,
    enough: float = 0.5,
    contrast: float = 3.0,
) -> RefusalTokens:
    """Suggest first tokens that distinguish refused rows from answered ones.

    Tokens are ranked by the log-odds of their mean probability on refused rows, minus those on
    answered rows. Excluded are tokens whose mean probability on refused rows is below `floor`,
    tokens that are the most likely token of no refused row, and tokens that also begin answers
    ("Sure", "Hello"): the odds of a token, and the share of rows on which it is the most likely
    one, must be `contrast` times as high on refused rows.

    Args:
        model: the model, for the tokens' texts.
        refused: (n, d_vocab) logits at the last prompt token of refused rows.
        answered: (n, d_vocab) logits at the last prompt token of answered rows.
        most: the most tokens suggested.
        floor: the least mean probability on refused rows.
        enough: warn if the set has less than this mean probability on refused rows.
        contrast: see above.

    Raises:
        InterpError: a class without rows, a contrast below 1, or no token that qualifies.
    """
    if not contrast >= 1:
        raise InterpError(f"contrast {contrast:g}", "below 1", "give 1 or more")
    if not len(refused) or not len(answered):
        raise InterpError(
            "refusal tokens", f"{len(refused)} refused, {len(answered)} answered", "give both"
        )
    high, low = (side.cpu().double().softmax(-1).mean(0) for side in (refused, answered))
    first, other = (
        torch.bincount(side.argmax(-1).cpu(), minlength=side.shape[-1]) / len(side)
        for side in (refused, answered)
    )
    ratio = log_odds(high) - log_odds(low)
    shared = (ratio <= math.log(contrast)) | (first <= contrast * other)
    ratio[(high < floor) | shared] = -torch.inf
    order = ratio.argsort(descending=True, stable=True)
    chosen = order[: int(ratio.isfinite().sum().clamp(max=most))]
    if not len(chosen):
        raise InterpError(
            f"refusal tokens of {model.name}",
            f"no token with a mean probability of {floor:g} begins refused rows "
            f"{contrast:g} times as often as answered ones",
            "lower floor or contrast, or judge the texts instead of the first token",
        )
    found = RefusalTokens(
        ids=tuple(chosen.tolist()),
        strings=model.strings(chosen.tolist()),
        log_odds=ratio[chosen].numpy(),
        refused=high[chosen].numpy(),
        answered=low[chosen].numpy(),
        n=(len(refused), len(answered)),
    )
    if found.coverage[-1] < enough:
        warnings.warn(
            f"the refusal tokens {found.strings} cover {found.coverage[-1]:z.2f} of the "
            f"probability on refused rows, less than {enough:g}",
            stacklevel=2,
        )
    return found
