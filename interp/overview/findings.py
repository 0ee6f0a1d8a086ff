"""Ranked findings on one prompt: first the gradient's estimate, then each confirmed exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.components import Component
from interp.core.continuations import answer_token
from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.prompts import PromptPair, Task
from interp.core.records import Provenance
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Count, checked
from interp.engine.stopping import stoppable
from interp.models.language_model import LanguageModel
from interp.overview.logit_parts import LogitParts, chosen_tokens, likeliest, logit_parts
from interp.overview.single_run import run_once
from interp.patching.attribution import attribution_patching
from interp.patching.joint import set_effects
from interp.plots.tables import Tabled
from interp.results.provenance import provenance

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = {"z": "heads", "mlp_out": "MLPs"}
"""The sites of the components that are ranked, and what they are called."""

MISJUDGED = 2.0
"""An estimate that is off by this factor, or has the wrong sign, is reported."""

SMALL = 0.5
"""Shares of the gap are left out if the gap is smaller than this part of the largest effect."""


@dataclass(frozen=True, kw_only=True)
class ScanEffect:
    """A component and its effect on the logit difference, in logits.

    Attributes:
        component: the head (site z) or MLP (site mlp_out).
        estimate: its effect by attribution patching, from one gradient.
        exact: its effect by a run of its own.
        direct: what it writes into the logit difference itself (`direct_attribution`).
        null: the absolute value of `exact` beside that of other components of its kind, from its
            own layer and then the nearest ones. A rank, not a p-value, because the component was
            selected. None if the model has no other.
    """

    component: Component
    estimate: float
    exact: float
    direct: float
    null: Null | None

    @property
    def larger_than(self) -> int:
        """How many of the others have a smaller effect, in absolute value."""
        if self.null is None:
            return 0
        return self.null.draws + 1 - round(self.null.share * (1 + self.null.draws))

    @property
    def beside(self) -> str:
        """Its rank among others of its kind, in words; "" if there is no other."""
        if self.null is None:
            return ""
        others = f"{self.null.draws} {KINDS[self.component.site]} nearby"
        return f"larger than {self.larger_than} of {others} (mean {self.null.mean:z.2f})"

    @property
    def verdict(self) -> str:
        """What the gradient got wrong; "" if it is within a factor of two of the exact effect."""
        if self.estimate * self.exact < 0:
            return "the gradient has the wrong sign"
        large, small = sorted((abs(self.estimate), abs(self.exact)), reverse=True)
        if large <= MISJUDGED * small:
            return ""
        more = abs(self.estimate) > abs(self.exact)
        return f"the gradient {'over' if more else 'under'}states it"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan(Tabled):
    """Ranked findings on one prompt, or one pair of prompts: n = 1, so they have no interval.

    Attributes:
        task: the prompt or pair that was measured, as a task that other functions take.
        words: the logit difference in words.
        clean: the logit difference after the prompt.
        corrupted: that after the foil; None without one.
        found: the findings, strongest exact effect first.
        of: how many components were ranked by the gradient.
        agreement: Pearson correlation of estimate and exact effect over all components run exactly.
        parts: the direct attribution of the prompt.
        changed: (token in the prompt, token in the foil) where the two differ.
        provenance: model, versions and the call.
    """

    task: Task
    words: str
    clean: float
    corrupted: float | None
    found: tuple[ScanEffect, ...]
    of: int
    agreement: float
    parts: LogitParts
    changed: tuple[tuple[str, str], ...]
    provenance: Provenance

    @property
    def gap(self) -> float | None:
        """The logit difference of the prompt minus that of the foil; None without a foil."""
        return None if self.corrupted is None else self.clean - self.corrupted

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence on the logit difference, then the findings in words, strongest first."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        largest = max((abs(one.exact) for one in self.found), default=0.0)
        shares = self.gap is not None and self.gap >= SMALL * largest
        foil = "" if self.corrupted is None else f", {self.corrupted:+z.2f} after the foil, patched"
        small = "" if self.gap is None or shares else ": a small gap, so no shares of it are given"
        yield f"{self.words} is {self.clean:+z.2f} logits after the prompt{foil}{small}."
        for one in self.found:
            up = (one.exact > 0) == (self.corrupted is not None)
            part = f"{one.component} {'at zero' if self.corrupted is None else 'patched'}"
            did = f"{'raises' if up else 'lowers'} it by {abs(one.exact):z.2f} logits"
            share = f" ({one.exact / self.gap:.0%} of the gap)" if shares and self.gap else ""
            wrong = f"{one.verdict} ({one.estimate:+z.2f})" if one.verdict else ""
            yield "; ".join(filter(None, (f"{part} {did}{share}", one.beside, wrong))) + "."

    def __repr__(self) -> str:
        best = f"; {self.found[0].component} {self.found[0].exact:+z.2f}" if self.found else ""
        count = f"{len(self.found)} of {self.of}"
        return f"Scan({self.words} {self.clean:+z.2f} logits, {count}{best})"

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def to_dataframe(self) -> DataFrame:
        """One row per finding: exact effect, estimate, direct attribution, rank among random."""
        from pandas import DataFrame

        rows = [
            {
                "component": str(one.component),
                "effect": one.exact,
                "estimate": one.estimate,
                "direct": one.direct,
                "larger than": f"{one.larger_than} of {one.null.draws if one.null else 0}",
                "note": one.verdict,
            }
            for one in self.found
        ]
        return DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and texts, for JSON."""
        return {
            "provenance": asdict(self.provenance),
            "prompt": self.task.pairs[0].clean,
            "foil": self.task.pairs[0].corrupted,
            "difference": self.words,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "n": 1,
            "ranked": self.of,
            "agreement": self.agreement,
            "changed": [list(pair) for pair in self.changed],
            "findings": [
                {
                    **{k: v for k, v in asdict(one).items() if k not in ("component", "null")},
                    "component": str(one.component),
                    "larger_than": one.larger_than,
                    "others": one.null.draws if one.null else 0,
                    "sentence": sentence,
                }
                for one, sentence in zip(self.found, self.sentences[1:], strict=True)
            ],
        }


@reads_arguments
def scan(
    model: LanguageModel,
    prompt: Prompt,
    foil: Prompt | None = None,
    *,
    answer: str | int | None = None,
    wrong: str | int | None = None,
    k: int = 10,
    draws: int = 20,
    seed: int = 0,
    **run: Unpack[RunKeywords],
) -> Scan:
    """The heads and MLPs that matter most for what a model says after one prompt.

    With a foil text of as many tokens, the effect of a component is the logit difference gained
    when it takes its value from the prompt's run inside the foil's run (activation patching,
    denoising). Without one, it is the logit difference lost when it is set to zero. In both, a
    positive effect supports the answer. All heads and MLPs are first ranked by attribution
    patching, one gradient. Then the first k are measured exactly, each by a run of its own, beside
    the nearest others of their kind, and what the gradient got wrong is said.

    Args:
        model: a model with a fast engine.
        prompt: a text, or token ids.
        foil: a text of as many tokens that the model continues in another way. A text of one token
            is read as the wrong answer instead.
        answer: the token that is explained; the likeliest next token by default.
        wrong: the token it is compared with; the likeliest after the foil, or the runner-up.
        k: number of components measured exactly.
        draws: number of others that each is compared with, if there are so many.
        seed: seed of the choice among those of one layer.
        run: budget_gb, progress (called with (runs done, runs in total)) and cancelled.

    Returns:
        Scan, in logits, strongest first. n = 1: to test them, measure a set of prompts.

    Raises:
        InterpError: no fast engine, a foil of another number of tokens, an answer of several
            tokens, answers that do not differ, or a call inside `intervene`.
    """
    model.refuse_changed("a scan", "look()")
    options = RunOptions(**run)
    k, draws = checked(Count, k, "components of a scan"), checked(Count, draws, "others of a scan")
    clean = run_once(model, prompt, budget_gb=options.budget_gb)
    other = clean
    if isinstance(foil, str) and wrong is None and is_one_token(model, prompt, foil):
        wrong, foil = foil, None
    if foil is not None:
        other = run_once(model, foil, budget_gb=options.budget_gb)
        if other.n_tokens != clean.n_tokens:
            raise InterpError(
                "a scan of a prompt and a foil",
                f"{clean.n_tokens} and {other.n_tokens} tokens:\n  {clean.prompt.shown()}\n  "
                f"{other.prompt.shown()}\n",
                "write a foil of as many tokens, such as another name or number in the same place",
            )
    last = clean.n_tokens - 1
    right, _ = chosen_tokens(clean, answer, wrong, last)
    parts = logit_parts(clean, right, likeliest(other, last, right) if wrong is None else wrong)
    pair = PromptPair(clean=prompt, corrupted=foil, answers=(right,), wrong=(parts.wrong,))
    task = Task(name="one prompt" if foil is None else "one pair", pairs=(pair,))
    given = f"{prompt!r}, {foil!r}, answer={right}, wrong={parts.wrong}"
    call = f"found = interp.scan(model, {given}, k={k}, draws={draws}, seed={seed})"
    return _measured(model, task, parts, options, call, k=k, draws=draws, seed=seed)


def is_one_token(model: LanguageModel, prompt: Prompt, text: str) -> bool:
    """Whether a text is one token that can follow the prompt."""
    try:
        answer_token(model, prompt, text, f"foil {text!r}")
    except InterpError:
        return False
    return True


def _measured(
    model: LanguageModel,
    task: Task,
    parts: LogitParts,
    options: RunOptions,
    call: str,
    *,
    k: int,
    draws: int,
    seed: int,
) -> Scan:
    """Rank by the gradient, then measure the first k exactly, and others of their kind."""
    pair = task.pairs[0].corrupted is not None
    direction = "denoise" if pair else "noise"
    estimates: dict[Component, float] = {}
    for site, by in (("z", ("layer", "head")), ("mlp_out", ("layer",))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the sentences name a small gap
            scores = attribution_patching(
                model,
                task,
                site=site,
                by=by,
                direction=direction,
                source="other" if pair else "zero",
                unit="metric",
                budget_gb=options.budget_gb,
                cancelled=options.cancelled,
            )
        for cell in np.ndindex(scores.values.shape):
            estimates[scores.component(cell)] = float(scores.values[cell])
    ranked = sorted(estimates, key=lambda part: -abs(estimates[part]))
    first, rng = ranked[:k], np.random.default_rng(seed)
    beside = {part: _nearest(part, list(estimates), draws, rng) for part in first}
    chosen = list(dict.fromkeys([*first, *(other for some in beside.values() for other in some)]))
    with stoppable(options.cancelled):
        sets = [[part] for part in chosen]
        measured = set_effects(model, task, sets, direction, options.progress, zero=not pair)
    exact = dict(zip(chosen, measured.gained[:, 0].tolist(), strict=True))
    direct = {part.label: part.value for part in parts.parts}
    found = []
    for part in sorted(first, key=lambda part: -abs(exact[part])):
        others = np.abs([exact[other] for other in beside[part]])
        found.append(
            ScanEffect(
                component=part,
                estimate=estimates[part],
                exact=exact[part],
                direct=direct[str(part)],
                null=null_of(abs(exact[part]), others) if len(others) else None,
            )
        )
    both = np.array([[estimates[part], exact[part]] for part in chosen]).T
    prompts = task.pairs[0].clean, task.pairs[0].corrupted
    texts = [model.tokenize(text).strings for text in prompts if text is not None]
    return Scan(
        task=task,
        words=parts.words,
        clean=float(measured.clean[0]),
        corrupted=float(measured.corrupted[0]) if pair else None,
        found=tuple(found),
        of=len(ranked),
        agreement=float(np.corrcoef(both)[0, 1]),
        parts=parts,
        provenance=provenance(model, task, call),
        changed=tuple((a, b) for a, b in zip(texts[0], texts[-1], strict=True) if a != b),
    )


def _nearest(
    part: Component, parts: Sequence[Component], draws: int, rng: np.random.Generator
) -> list[Component]:
    """Others of the same kind: from the same layer first, then from the nearest ones."""
    others = [other for other in parts if other.site == part.site and other != part]
    order = rng.permutation(len(others))
    near = sorted(order.tolist(), key=lambda i: abs(others[i].layer - part.layer))
    return [others[i] for i in near[:draws]]
