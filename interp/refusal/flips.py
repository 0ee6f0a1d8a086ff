"""How often ablating heads turns refusals into answers, judged on generated replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.arguments import listed, reads_arguments, texts_of
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.statistics import Estimate
from interp.models.language_model import LanguageModel
from interp.refusal.judging import (
    LEAST_TOKENS,
    Judge,
    JudgedReplies,
    flip_rate,
    judge_replies,
    replies_of,
)
from interp.runs.generation import generate
from interp.runs.kinds import make_ablation, random_like


@dataclass(frozen=True, kw_only=True)
class HeadFlips:
    """How often zero-ablating heads flips the verdict on a reply.

    Attributes:
        heads: the ablated heads.
        before, after: the judged replies without and with the ablation.
        rate: the share of rows that flip.
        null: the rate compared with random heads of the same layers; None without draws.
    """

    heads: tuple[str, ...]
    before: JudgedReplies
    after: JudgedReplies
    rate: Estimate
    null: Null | None


@reads_arguments
def head_flips(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    heads: Sequence[str],
    judge: Judge,
    *,
    rows: Sequence[str],
    max_new_tokens: int = 128,
    least_tokens: int = LEAST_TOKENS,
    draws: int = 0,
    seed: int = 0,
) -> HeadFlips:
    """The share of prompts whose verdict flips when heads are set to zero at all tokens.

    Replies are generated greedily with and without the ablation. Every random set costs another
    generation.

    Args:
        model: the model.
        prompts: the prompts.
        heads: labels such as L17H11.
        judge: the judge of the replies.
        rows: one id per prompt.
        max_new_tokens: the limit on the length of a reply.
        least_tokens: see `interp.refusal.judging.judge_replies`.
        draws: random sets of as many heads of the same layers; 0 for none.
        seed: seed of the random sets.

    Raises:
        InterpError: not one row id per prompt, or heads that the model lacks.
    """
    prompts, heads, rows = texts_of(prompts), listed(heads), listed(rows)
    asked = ["".join(model.tokenize(prompt).strings) for prompt in prompts]

    def judged(off: Sequence[str]) -> JudgedReplies:
        change = make_ablation(model, off) if off else None
        texts = generate(model, prompts, max_new_tokens=max_new_tokens, change=change)
        replies = replies_of(rows, asked, texts)
        decoding = {"decoding": "greedy", "max_new_tokens": max_new_tokens}
        return judge_replies(replies, judge, decoding=decoding, least_tokens=least_tokens)

    before, after = judged(()), judged(heads)
    rate = flip_rate(before, after)
    random = [
        flip_rate(before, judged(other)).mean
        for other in (random_like(model, heads, draws, seed=seed) if draws else [])
    ]
    return HeadFlips(
        heads=tuple(heads),
        before=before,
        after=after,
        rate=rate,
        null=null_of(rate.mean, np.array(random)) if random else None,
    )
