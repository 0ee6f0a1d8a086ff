"""What every step of the verification study starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from interp.generation import Generation
from interp.models.language_model import LanguageModel
from interp.prompts import PromptPair, Task
from interp.studies.verification.samples import Samples, Verdicts, find_samples, verdict_tokens
from interp.tasks.countdown import Problem

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be chosen; part of every step's key.

    n: valid samples (and as many invalid ones), half of them to find with and half to test on.
    draws: random sets behind every selection. window: tokens changed at a verdict by default, the
    last digit of the result and " ("; 1 is " (" alone. top_k: GLU vectors a layer.
    threshold: attention from which a head counts as A_Prev. pairs: valid-invalid pairs patched.
    """

    n: int = 300
    draws: int = 50
    seed: int = 0
    template: str = "short"
    operands: tuple[int, ...] = (3, 4)
    max_new_tokens: int = 300
    window: int = 2
    top_k: int = 10
    threshold: float = 0.1
    pairs: int = 48

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Context:
    """A model, its own texts, and the samples found in them.

    `find` serves to choose (probes, rankings, sets), `test` to judge what was chosen; they share
    no problem.
    """

    model: LanguageModel
    base: LanguageModel | None
    settings: Settings
    problems: Sequence[Problem]
    texts: Sequence[Generation]
    find: Samples
    test: Samples

    @cached_property
    def ids(self) -> Verdicts:
        """The verdict's token ids."""
        return verdict_tokens(self.model)


def make_context(
    model: LanguageModel,
    base: LanguageModel | None,
    settings: Settings,
    problems: Sequence[Problem],
    texts: Sequence[Generation],
) -> Context:
    """Cut the texts into samples, and split them by problem into find and test.

    Problems of even number serve to find, those of odd number to test. Only honest samples count:
    "this" where the written result is the target, "not" where it is
    not; the others are the behaviour's errors, reported there.

    Raises:
        InterpError: too few samples of one verdict; the counts are given.
    """
    tokens = [made.prompt + made.tokens for made in texts]
    samples = find_samples(model, tokens, problems)
    target = np.array([problems[i].target for i in samples.problems])
    honest = samples.take(np.flatnonzero(samples.valid == (samples.written == target)))
    sides = [
        honest.take(np.flatnonzero(honest.problems % 2 == side)).balanced(
            settings.n // 2, seed=settings.seed
        )
        for side in (0, 1)
    ]
    return Context(
        model=model,
        base=base,
        settings=settings,
        problems=problems,
        texts=texts,
        find=sides[0],
        test=sides[1],
    )


def verdict_task(context: Context, samples: Samples, n: int) -> Task:
    """Pairs for patching: a valid text, and the same text under another target.

    The corrupted prompt differs in the target alone, at every place that names it before the
    attempt's result; the result then is no longer the target. Answer "this", wrong answer "not".
    Positions: t_ans and t_paren. Pairs whose corrupted prompt the model does not judge "not" are
    left out; the rest is at most n.
    """
    model, ids = context.model, context.ids
    rng = np.random.default_rng(context.settings.seed)
    made: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for i in np.flatnonzero(samples.valid):
        tokens = samples.tokens[i]
        target = str(context.problems[samples.problems[i]].target)
        old = model.token_id(target)
        choices = [v for v in range(10 ** (len(target) - 1), 10 ** len(target)) if str(v) != target]
        new = model.token_id(str(int(rng.choice(choices))))
        other = list(tokens)
        for end in samples.targets[i]:
            other[end - len(old) + 1 : end + 1] = new
        if len(new) == len(old) and len(other) == len(tokens):
            made.append((tokens, tuple(other)))
    flips = model.last_logits([other for _, other in made]).argmax(-1) == ids.no
    kept = [pair for pair, flip in zip(made, flips.tolist(), strict=True) if flip][:n]
    return Task(
        name="verdict",
        pairs=tuple(
            PromptPair(
                clean=clean,
                corrupted=corrupted,
                answers=(ids.this,),
                wrong=(ids.no,),
                positions={"t_ans": len(clean) - 2, "t_paren": len(clean) - 1},
            )
            for clean, corrupted in kept
        ),
        description='"this" where the result is the target, against another target',
    )
