"""The probability that the next token belongs to one set of words or to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.core.arguments import listed, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.statistics import Estimate, mean_estimate, standard_error
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled

WORD_PAIRS = (
    ("yes", "no"),
    ("success", "failure"),
    ("correct", "incorrect"),
    ("good", "bad"),
    ("true", "false"),
    ("right", "wrong"),
    ("valid", "invalid"),
    ("positive", "negative"),
    ("acceptable", "unacceptable"),
    ("appropriate", "inappropriate"),
    ("satisfactory", "unsatisfactory"),
    ("favorable", "unfavorable"),
)
"""Twelve (positive, negative) pairs, after ajyl/verify_circuit."""


@dataclass(frozen=True, kw_only=True)
class PairedWordProbs(Tabled):
    """Next-token probabilities of two word sets after each prompt.

    Attributes:
        model: the model's name.
        p_positive, p_negative: (n,) summed probability of each set's tokens.
        share_positive: (n,) p_positive / (p_positive + p_negative). It is not informative if both
            probabilities are tiny; check `mass`.
        positive_tokens, negative_tokens: spelling -> token id, for all spellings counted.
        dropped: spellings left out because they are not one token.
    """

    model: str
    p_positive: np.ndarray
    p_negative: np.ndarray
    share_positive: np.ndarray
    positive_tokens: Mapping[str, int]
    negative_tokens: Mapping[str, int]
    dropped: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.p_positive)

    @property
    def mass(self) -> np.ndarray:
        """(n,) p_positive + p_negative."""
        return self.p_positive + self.p_negative

    @property
    def means(self) -> dict[str, Estimate]:
        """The mean of each quantity over all prompts, with its interval and n."""
        return {name: mean_estimate(torch.from_numpy(v)) for name, v in self._columns().items()}

    @property
    def stderr(self) -> dict[str, float]:
        """Standard error of each mean; nan for one prompt."""
        return {name: float(standard_error(v)) for name, v in self._columns().items()}

    def to_dataframe(self) -> Any:
        """One row per prompt."""
        import pandas as pd

        return pd.DataFrame({"prompt": range(self.n)} | self._columns())

    def _columns(self) -> dict[str, np.ndarray]:
        names = ("p_positive", "p_negative", "share_positive", "mass")
        return {name: getattr(self, name) for name in names}


def paired_word_probs(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positive: Sequence[str] = ("yes",),
    negative: Sequence[str] = ("no",),
    *,
    variants: bool = True,
) -> PairedWordProbs:
    """The probability that the next token is a positive word, and that it is a negative one.

        p_positive = sum over t in T+ of P(t | prompt)
        share_positive = p_positive / (p_positive + p_negative)

    T+ and T- are the tokens that spell a word of the set. With `variants` lower case and capital
    initials count too, each with and without a leading space ("yes", "Yes", " yes", " Yes"). Each
    token counts once in its set. Probabilities are over the whole vocabulary. Inside
    `interp.intervene` they are those of the changed model.

    Args:
        model: a loaded model with a tokeniser.
        prompts: texts after which a word of either set could follow, token tuples, or a task (its
            clean prompts). To separate judgement from a bias towards "yes", measure prompts with
            a positive true answer and prompts with a negative one.
        positive: words of a positive verdict.
        negative: words of a negative verdict.
        variants: whether other spellings count; if False, words count only as they are written.

    Raises:
        InterpError: no prompts or words, a word without a spelling that is one known token, or a
            token in both sets.

    Departs from the source: prompts with both true answers should be given, and spellings that are
    not one token are listed in `dropped`, not represented by their first token.
    Source: Lee et al. 2025, arXiv 2504.14379; ajyl/verify_circuit (base model, Yes and No).
    """
    texts = texts_of(prompts)
    if not texts:
        raise InterpError("word probabilities", "no prompts", "give at least one")
    dropped: list[str] = []
    sets = [_tokens(model, words, variants, dropped) for words in (positive, negative)]
    if both := set(sets[0].values()) & set(sets[1].values()):
        raise InterpError(
            f"words {listed(positive)} against {listed(negative)}",
            f"in both: {model.strings(sorted(both))}",
            "give two sets that share no token",
        )
    logits = model.last_logits([model.tokenize(text).tokens for text in texts])
    log_probs = logits.cpu().double().log_softmax(-1)
    if not bool(torch.isfinite(log_probs.exp()).all()):
        raise InterpError(
            f"word probabilities of {model.name}", "logits that are not finite", "check the run"
        )
    plus, minus = (log_probs[:, sorted(set(s.values()))].logsumexp(-1) for s in sets)
    return PairedWordProbs(
        model=model.name,
        p_positive=plus.exp().numpy(),
        p_negative=minus.exp().numpy(),
        share_positive=(plus - minus).sigmoid().numpy(),
        positive_tokens=sets[0],
        negative_tokens=sets[1],
        dropped=tuple(dropped),
    )


def _tokens(
    model: LanguageModel, words: Sequence[str], variants: bool, dropped: list[str]
) -> dict[str, int]:
    """Spelling -> token id. Spellings that are not one token are added to `dropped`."""
    words = listed(words)
    if not words:
        raise InterpError("a set of words", "it is empty", "give at least one word")
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    found: dict[str, int] = {}
    for word in words:
        cases = (word, word.lower(), word[:1].upper() + word[1:]) if variants else (word,)
        spaces = ("", " ") if variants else ("",)
        spellings = list(dict.fromkeys(space + case for space in spaces for case in cases))
        kept = 0
        for spelling in spellings:
            tokens = model.token_id(spelling)
            if len(tokens) == 1 and tokens[0] != unknown:
                found[spelling] = tokens[0]
                kept += 1
            elif spelling not in dropped:
                dropped.append(spelling)
        if not kept:
            raise InterpError(
                f"the word {word!r} in {model.name}",
                f"none of {spellings} is one known token",
                "leave it out, and its opposite",
            )
    return found
