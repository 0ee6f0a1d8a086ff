"""What every step of the verification study starts from: settings, texts and samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from interp.core import schema
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.core.schema import Count, Share, Text, Whole
from interp.models.language_model import Address, LanguageModel
from interp.probing.probes import Probes
from interp.probing.training import train_probes
from interp.runs.change import Where
from interp.runs.kinds import random_like
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import StoredRuns, keep_runs, site_values
from interp.runs.text_runs import Generation
from interp.studies.steps import Result
from interp.studies.study import StudyContext, StudyKind
from interp.studies.verification.samples import Samples, Verdicts, find_samples, verdict_tokens
from interp.tasks.countdown import Problem

Sets = Mapping[str, Sequence[str]]
"""Sets of components by name."""

SHUFFLES = 8
"""Probes of shuffled labels behind every probe."""

RUNS_GB = 1.5
"""The most memory that the plain runs of one set of samples may take."""

WIDEST = 3
"""The last tokens that plain runs are kept for: a result of two digits, and " (" after it."""

STATES = ("resid_post", "attn_out", "mlp_out", "z")


@dataclass(frozen=True, kw_only=True)
class VerificationSettings(schema.CheckedSettings):
    """The settings of the study; part of every step's key.

    n: samples; half of them are valid, and half of each kind serves to find, half to test.
    draws: random sets behind every selection. window: tokens changed at a verdict by default, the
    last digit of the result and " ("; 1 is " (" alone. top_k: GLU vectors a layer; every
    number given is tried. threshold: attention from which a head counts as A_Prev. pairs:
    valid-invalid pairs that are patched. attempts: how many attempts of a text count; a search
    through all ways of three numbers ends by the sixth.
    """

    n: Annotated[int, Field(ge=40)] = 300
    draws: Annotated[int, Field(ge=2)] = 50
    seed: Whole = 0
    template: Text = "short"
    operands: Annotated[tuple[Annotated[int, Field(ge=2, le=6)], ...], Field(min_length=1)] = (3, 4)
    max_new_tokens: Count = 300
    window: Annotated[int, Field(ge=1, le=2)] = 2
    top_k: Annotated[tuple[Count, ...], Field(min_length=1)] = (10, 50)
    threshold: Share = 0.1
    pairs: Count = 32
    attempts: Count = 5


VERIFICATION = StudyKind(
    name="verification", version=10, settings=VerificationSettings, beside=("base",)
)


@dataclass(frozen=True, kw_only=True)
class VerdictContext(StudyContext[VerificationSettings]):
    """A model, its own texts, and the samples found in them.

    `find` serves to choose (probes, rankings, sets), `test` to judge what was chosen. They share
    no problem.
    """

    base: LanguageModel | None
    problems: Sequence[Problem]
    texts: Sequence[Generation]
    find: Samples
    test: Samples

    @cached_property
    def ids(self) -> Verdicts:
        """The verdict's token ids."""
        return verdict_tokens(self.model)

    @cached_property
    def pairs(self) -> tuple[Task, Result]:
        """`verdict_task` of the find samples."""
        return verdict_task(self, self.find, self.settings.pairs)

    @cached_property
    def pair_runs(self) -> tuple[StoredRuns, StoredRuns] | None:
        """Plain runs of the clean and of the corrupted texts of `pairs`; None if not kept."""
        task, _ = self.pairs
        digits = max(len(str(abs(written))) for written in self.find.written.tolist())
        clean, corrupted = (
            keep_runs(self.model, [getattr(x, side) for x in task.pairs], last=digits + 1,
                      budget_gb=RUNS_GB / 2)
            for side in ("clean", "corrupted")
        )  # fmt: skip
        return None if clean is None or corrupted is None else (clean, corrupted)

    @cached_property
    def states(self) -> dict[str, Tensor]:
        """What the model holds at t_ans and t_paren of the find samples, by site.

        (layer, sample, 2, width), heads of z before the width.
        """
        layers = range(self.model.n_layers)
        addresses = [(layer, site) for site in STATES for layer in layers]
        found = self.values(self.find.tokens, addresses, last=2)
        return {site: torch.stack([found[layer, site] for layer in layers]) for site in STATES}

    def runs(self, tokens: tuple[tuple[int, ...], ...], where: Where = 2) -> StoredRuns | None:
        """Stored plain runs of samples in which `where` can be read or changed; None if not kept.

        They are used for all find samples, all test samples, some of either, and the two sides of
        the test pairs. Runs of some samples are taken from the runs of all once these are kept.
        """
        last = max(WIDEST, self.settings.window)
        if where == "all" or where > last:
            return None
        if tokens not in self._runs:
            self._runs[tokens] = self._some_of(tokens) or keep_runs(
                self.model, tokens, last=last, budget_gb=RUNS_GB
            )
        return self._runs[tokens]

    def random_like(self, sets: Sets, draws: int | None = None) -> dict[str, list[list[str]]]:
        """Random sets like each of some sets, by its name: `draws` of the settings, or as many."""
        draws, seed = self.settings.draws if draws is None else draws, self.settings.seed
        return {
            name: random_like(self.model, labels, draws, seed=seed) if draws else []
            for name, labels in sets.items()
        }

    def _some_of(self, tokens: tuple[tuple[int, ...], ...]) -> StoredRuns | None:
        """The runs of some texts, if all of them were run among others."""
        for runs in filter(None, self._runs.values()):
            number = {text: i for i, text in enumerate(runs.prompts)}
            if number.keys() >= set(tokens) and len(set(tokens)) == len(tokens):
                return runs.select([number[text] for text in tokens])
        return None

    def values(
        self, tokens: tuple[tuple[int, ...], ...], addresses: Sequence[Address], *, last: int
    ) -> dict[Address, Tensor]:
        """`site_values` of some samples, read from their stored runs."""
        return site_values(self.model, tokens, addresses, last=last, runs=self.runs(tokens, last))

    @cached_property
    def _runs(self) -> dict[tuple[tuple[int, ...], ...], StoredRuns | None]:
        return {}

    @property
    def softmax(self) -> Probes:
        """The authors' two-class probes, on the residual stream at t_paren."""
        return self.probes("resid_post", 1, kind="softmax")

    @cached_property
    def directions(self) -> dict[str, Tensor]:
        """Directions that separate valid from invalid at t_paren, (layer, d_model) each.

        With large activations the authors' two-class softmax keeps much of its random
        initialisation, because its loss vanishes before it has turned. So two others are used as
        well: the logistic probe, which is trained to the end, and the difference of class means.
        """
        at = self.states["resid_post"][:, :, 1].double()
        valid = torch.from_numpy(self.find.valid)
        return {
            "softmax": self.softmax.directions,
            "logistic": self.probes("resid_post", 1).directions,
            "mean difference": at[:, valid].mean(1) - at[:, ~valid].mean(1),
        }

    def probes(
        self, site: str, column: int, *, kind: Literal["logistic", "softmax"] = "logistic"
    ) -> Probes:
        """Probes of a site at t_ans (column 0) or t_paren (1) of the find samples; fitted once."""
        model, values = self.model, self.states[site][:, :, column]
        coordinates = {"layer": list(range(model.n_layers))}
        if values.ndim == 4:
            coordinates["head"] = list(range(model.n_heads))
        return self.once(
            ("probes", site, column, kind),
            lambda: train_probes(
                values.movedim(1, -2),
                self.find.valid,
                groups=self.find.problems.tolist(),
                kind=kind,
                shuffles=SHUFFLES,
                seed=self.settings.seed,
                coordinates=coordinates,
                source={"model": model.name, "model_hash": model.hash, "site": site},
            ),
        )


def honest_samples(
    model: LanguageModel,
    settings: VerificationSettings,
    problems: Sequence[Problem],
    texts: Sequence[Generation],
) -> Samples:
    """The samples of some texts that count, see `make_context`.

    Raises:
        InterpError: no verdict at all.
    """
    tokens = [made.prompt + made.tokens for made in texts]
    samples = find_samples(model, tokens, problems, starts=[len(made.prompt) for made in texts])
    target = np.array([problems[i].target for i in samples.problems])
    honest = samples.valid == (samples.written == target)
    digits = np.char.str_len(target.astype(str))
    alike = (samples.written > 0) & (np.char.str_len(samples.written.astype(str)) == digits)
    early = samples.attempt < settings.attempts
    return samples.take(np.flatnonzero(honest & alike & early))


def make_context(
    model: LanguageModel,
    base: LanguageModel | None,
    settings: VerificationSettings,
    problems: Sequence[Problem],
    texts: Sequence[Generation],
) -> VerdictContext:
    """Cut the texts into samples, and split them by problem into find and test.

    Problems of even number serve to find, those of odd number to test. Only honest samples count:
    "this" if the written result is the target, "not" if it is not; the others are errors that the
    step on behaviour reports. Only the first `attempts` of a text count. Invalid results have the
    sign and the number of digits of the target; otherwise a probe could use their length alone.

    Raises:
        InterpError: too few samples of one verdict; the counts are given.
    """
    honest = honest_samples(model, settings, problems, texts)
    sides = (honest.take(np.flatnonzero(honest.problems % 2 == side)) for side in (0, 1))
    find, test = (side.balanced(settings.n // 4, seed=settings.seed) for side in sides)
    return VerdictContext(
        model=model, base=base, settings=settings, problems=problems, texts=texts,
        find=find, test=test,
    )  # fmt: skip


def verdict_task(context: VerdictContext, samples: Samples, n: int) -> tuple[Task, Result]:
    """Pairs for patching: a valid text, and the same text under another target.

    The corrupted prompt differs in the target alone: in the question, and in earlier verdicts that
    name it. Texts in which the target also occurs as an operand or a result are left out. The new
    target occurs nowhere in the text, so the attempt's result is not it.
    Answer "this", wrong answer "not". Positions: t_first and t_ans, the result's first and last
    digit, and t_paren.

    Returns:
        At most n pairs that the model judges "not" under the new target, and the counts: texts
        `made` into pairs, `flipped`, and `kept`.

    Raises:
        InterpError: none flips.
    """
    model, ids = context.model, context.ids
    rng = np.random.default_rng(context.settings.seed)
    made: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
    for i in np.flatnonzero(samples.valid):
        tokens, strings = samples.tokens[i], model.strings(samples.tokens[i])
        target = str(context.problems[samples.problems[i]].target)
        named = [names_target(strings, end, target) for end in samples.targets[i]]
        present = set(re.findall(r"\d+", "".join(strings)))
        low, high = 10 ** (len(target) - 1), 10 ** len(target)
        free = [v for v in range(low, high) if str(v) not in present]
        old = model.token_id(target)
        new = model.token_id(str(int(rng.choice(free))))
        if not all(named) or len(new) != len(old):
            continue
        other = list(tokens)
        for end in samples.targets[i]:
            other[end - len(old) + 1 : end + 1] = new
        made.append((tokens, tuple(other), len(old)))
    others = [other for _, other, _ in made]
    flips = ablate(model, others, [], tokens=[ids.no]).top[0] == ids.no if made else []
    kept = [pair for pair, flip in zip(made, flips, strict=True) if flip]
    counts = {"made": len(made), "flipped": len(kept), "kept": min(n, len(kept))}
    if not kept:
        raise InterpError(
            "valid-invalid pairs",
            f'{len(made)} texts with another target, none judged "not"',
            "use a model that compares the result with the target",
        )
    pairs = tuple(
        PromptPair(
            clean=clean,
            corrupted=corrupted,
            answers=(ids.this,),
            wrong=(ids.no,),
            positions={
                "t_first": len(clean) - 1 - digits,
                "t_ans": len(clean) - 2,
                "t_paren": len(clean) - 1,
            },
        )
        for clean, corrupted, digits in kept[:n]
    )
    words = '"this" where the result is the target, against another target'
    return Task(name="verdict", pairs=pairs, description=words), counts


def names_target(strings: Sequence[str], end: int, target: str) -> bool:
    """Whether the target that ends at a token is named as the target, not used in a sum."""
    before = "".join(strings[: end + 1]).removesuffix(target)
    return before.endswith(("equals ", "(not "))
