"""How much of the next token is a refusal: a set of first tokens, and its log-odds.

The score of Arditi et al. 2024 (arXiv 2406.11717, andyrdt/refusal_direction). It reads one token:
a model may begin with "I" and answer all the same, so its tokens are suggested from texts that
were judged, with how much of each class they cover.
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

EPSILON = 1e-8


def refusal_mass(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """p_R: the probability of a set of tokens, (n, d_vocab) logits to (n,) float64.

    Raises:
        InterpError: no tokens, or one that does not exist.
    """
    chosen = within(tokens, logits.shape[-1], "token", "the vocabulary")
    return logits.detach().cpu().double().softmax(-1)[:, chosen].sum(-1)


def log_odds(mass: Tensor) -> Tensor:
    """log(p + 1e-8) - log(1 - p + 1e-8) of probabilities, between -18.42 and 18.42."""
    return torch.log(mass + EPSILON) - torch.log((1 - mass).clamp(min=0) + EPSILON)


def score_refusals(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-odds that the next token is one of the refusal tokens; positive: a refusal.

    The epsilon bounds it: where p_R saturates, a mean of scores is flat.

    Args:
        logits: (n, d_vocab) at the last token of each prompt.
        tokens: the refusal set R.

    Returns:
        (n,) in nats, float64.
    """
    return log_odds(refusal_mass(logits, tokens))


@dataclass(frozen=True, kw_only=True)
class RefusalTokens:
    """Suggested first tokens of refusals, the most telling first; arrays are (tokens,).

    Attributes:
        ids: the tokens.
        strings: their texts.
        log_odds: of the mean probability on refused rows, less that on answered rows, in nats.
        refused: mean probability on refused rows.
        answered: the same on answered rows.
        n: refused and answered rows.
    """

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    log_odds: np.ndarray
    refused: np.ndarray
    answered: np.ndarray
    n: tuple[int, int]

    @property
    def coverage(self) -> np.ndarray:
        """(tokens,) probability of the first k tokens together, mean over refused rows."""
        return self.refused.cumsum()

    @property
    def spill(self) -> np.ndarray:
        """The same on answered rows: what the set would call a refusal there."""
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
    """First tokens that tell refused rows from answered ones.

    Ranked by the log-odds of their mean probability on refused rows less that on answered rows.
    Out are tokens of which refused rows hold less than `floor`, tokens that are the most likely
    one on no refused row, and tokens that answered rows begin with too ("Sure", "Hello"): their
    odds, and the share of rows they are most likely on, must be `contrast` times as high on
    refused rows.

    Args:
        model: for the tokens' texts.
        refused: (n, d_vocab) logits at the last prompt token of rows judged to be refused.
        answered: the same of rows judged to be answered.
        most: the most tokens suggested.
        floor: least mean probability on refused rows.
        enough: a warning is given where the set covers less of the refused rows.
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
    begun, other = (
        torch.bincount(side.argmax(-1).cpu(), minlength=side.shape[-1]) / len(side)
        for side in (refused, answered)
    )
    telling = log_odds(high) - log_odds(low)
    shared = (telling <= math.log(contrast)) | (begun <= contrast * other)
    telling[(high < floor) | shared] = -torch.inf
    order = telling.argsort(descending=True, stable=True)
    chosen = order[: int(telling.isfinite().sum().clamp(max=most))]
    if not len(chosen):
        raise InterpError(
            f"refusal tokens of {model.name}",
            f"no first token with a mean probability of {floor:g} that refused rows begin with "
            f"{contrast:g} times as often as answered ones",
            "lower floor or contrast, or score the texts instead of the first token",
        )
    found = RefusalTokens(
        ids=tuple(chosen.tolist()),
        strings=model.strings(chosen.tolist()),
        log_odds=telling[chosen].numpy(),
        refused=high[chosen].numpy(),
        answered=low[chosen].numpy(),
        n=(len(refused), len(answered)),
    )
    if found.coverage[-1] < enough:
        warnings.warn(
            f"the refusal tokens {found.strings} cover {found.coverage[-1]:.2f} of the refused "
            f"rows' next token, less than {enough:g}",
            stacklevel=2,
        )
    return found
