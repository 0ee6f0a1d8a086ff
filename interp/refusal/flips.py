"""Heads whose ablation turns refusals into answers, judged on generated replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.core.arguments import listed, reads_arguments, texts_of
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.statistics import Estimate
from interp.models.language_model import LanguageModel
from interp.refusal.judging import LEAST_TOKENS, Judge, Judged, flip_rate, judge_replies, replies_of
from interp.runs.generation import generate
from interp.runs.kinds import make_ablation, random_like


@dataclass(frozen=True, kw_only=True)
class HeadFlips:
    """How often switching heads off flips what becomes of a prompt.

    before, after: the judged texts. rate: the share of rows that flip. null: the rate against
    random heads of the same layers.
    """

    heads: tuple[str, ...]
    before: Judged
    after: Judged
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
    """The flip rate of judged behaviour with heads at zero, in the prompt and in the text.

    Greedy before and after; the baseline is generated anew. Random sets cost a generation each.
    `least_tokens`: see `interp.refusal.judging.judge_replies`.

    Raises:
        InterpError: not one row id per prompt, or heads the model lacks.
    """
    prompts, heads, rows = texts_of(prompts), listed(heads), listed(rows)
    asked = ["".join(model.tokenize(prompt).strings) for prompt in prompts]

    def judged(off: Sequence[str]) -> Judged:
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
