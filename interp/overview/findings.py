"""Ranked findings on one prompt: first the gradient's estimate, then each confirmed exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from interp.core.arguments import reads_arguments
from interp.core.components import Component
from interp.core.continuations import answer_token
from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt, first_difference
from interp.core.prompts import PromptPair, Task
from interp.core.records import Provenance
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Count, checked
from interp.engine.stopping import stoppable
from interp.models.language_model import LanguageModel
from interp.overview.compared import compared
from interp.overview.logit_parts import LogitParts
from interp.overview.single_run import run_once
from interp.patching.attribution import attribution_patching
from interp.patching.joint import set_effects
from interp.plots.style import visible
from interp.plots.tables import Tabled
from interp.results.provenance import provenance

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = {"z": "heads", "mlp_out": "MLPs", "resid_pre": "tokens and layers"}
"""The sites that are ranked, and what their components are called."""

TOKENS = 3
"""One token for every so many heads and MLPs: a token's stream holds what many parts wrote."""

MISJUDGED = 2.0
"""An estimate that is off by this factor, or has the wrong sign, is reported."""

SMALL = 0.5
"""Shares of the gap are left out if the gap is smaller than this part of the largest effect."""


Candidate = tuple[Component, int | None]
"""A component, and the token at which it is patched; None: all tokens."""


@dataclass(frozen=True, kw_only=True)
class ScanEffect:
    """A component and its effect on the metric of a `Scan`, in its unit.

    Attributes:
        component: the head (site z), the MLP (site mlp_out), or the stream before a layer (site
            resid_pre) at one token.
        estimate: its effect by attribution patching, from one gradient.
        exact: its effect by a run of its own; None as long as it is not measured (`scan_steps`).
        direct: what it writes into the logit difference itself (`direct_attribution`); None for a
            token, and for answers of several tokens.
        null: the absolute value of `exact` beside that of others of its kind, from its own layer
            and then the nearest ones; of a token, other tokens. A rank, not a p-value, because the
            component was selected. None if the model or the prompt has no other.
        position, token: the token that is patched, its number and text; None and "" for all tokens.
    """

    component: Component
    estimate: float
    exact: float | None
    direct: float | None
    null: Null | None
    position: int | None = None
    token: str = ""

    @property
    def label(self) -> str:
        """Its component, and of a token its text and number."""
        if self.position is None:
            return str(self.component)
        return f"{self.component} at {visible(self.token)} (token {self.position})"

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
        if self.exact is None:
            return ""
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
        words: the metric in words: the logit difference, or the difference of the log-probabilities
            of whole answers (log_prob_diff) if one has several tokens.
        unit: "logits", or "nats" for whole answers.
        clean: the metric after the prompt.
        corrupted: that after the foil; None without one.
        found: the findings, strongest exact effect first; in the order of the estimates as long as
            some are not measured.
        of: how many components, and tokens by layer, were ranked by the gradient.
        agreement: Pearson correlation of estimate and exact effect over all that were run exactly;
            nan before two are.
        parts: the direct attribution of the prompt; None for answers of several tokens.
        changed: (token in the prompt, token in the foil) where the two differ.
        provenance: model, versions and the call.
    """

    task: Task
    words: str
    unit: str
    clean: float
    corrupted: float | None
    found: tuple[ScanEffect, ...]
    of: int
    agreement: float
    parts: LogitParts | None
    changed: tuple[tuple[str, str], ...]
    provenance: Provenance

    @property
    def gap(self) -> float | None:
        """The metric after the prompt minus that after the foil; None without a foil."""
        return None if self.corrupted is None else self.clean - self.corrupted

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence on the metric, then the findings in words, strongest first."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        sizes = [one.estimate if one.exact is None else one.exact for one in self.found]
        shares = self.gap is not None and self.gap >= SMALL * max(map(abs, sizes), default=0.0)
        foil = "" if self.corrupted is None else f" and {self.corrupted:+z.2f} after the foil"
        small = "" if self.gap is None or shares else ": a small gap, so no shares of it are given"
        yield f"{self.words} is {self.clean:+z.2f} {self.unit} after the prompt{foil}{small}."
        for one, size in zip(self.found, sizes, strict=True):
            up = (size > 0) == (self.corrupted is not None)
            part = f"{one.label} {'at zero' if self.corrupted is None else 'patched'}"
            did = f"{'raises' if up else 'lowers'} it by {abs(size):z.2f} {self.unit}"
            if one.exact is None:
                yield f"{part} {did} by the gradient; not measured yet."
                continue
            share = f" ({size / self.gap:.0%} of the gap)" if shares and self.gap else ""
            wrong = f"{one.verdict} ({one.estimate:+z.2f})" if one.verdict else ""
            yield "; ".join(filter(None, (f"{part} {did}{share}", one.beside, wrong))) + "."

    def __repr__(self) -> str:
        first = next((one for one in self.found if one.exact is not None), None)
        best = "" if first is None else f"; {first.label} {first.exact:+z.2f}"
        count = f"{len(self.found)} of {self.of}"
        return f"Scan({self.words} {self.clean:+z.2f} {self.unit}, {count}{best})"

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def to_dataframe(self) -> DataFrame:
        """One row per finding: exact effect, estimate, direct attribution, rank among random."""
        from pandas import DataFrame

        rows = [
            {
                "component": str(one.component),
                "token": "" if one.position is None else f"{one.position} {visible(one.token)}",
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
            "answer": self.task.pairs[0].answers[0],
            "wrong": self.task.pairs[0].wrong[0],
            "difference": self.words,
            "unit": self.unit,
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
                    "label": one.label,
                    "note": one.verdict,
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
    """The heads, MLPs and tokens that matter most for what a model says after one prompt.

    With a foil text of as many tokens, the effect of a component is the logit difference gained
    when it takes its value from the prompt's run inside the foil's run (activation patching,
    denoising). Without one, it is the logit difference lost when it is set to zero. In both, a
    positive effect supports the answer. If an answer has several tokens, the difference of the
    log-probabilities of whole answers takes the place of the logit difference, in nats: see
    `interp.core.metrics.METRICS`, log_prob_diff.

    All heads and MLPs, and the stream before every layer at every token, are first ranked by
    attribution patching: one gradient. Then the first k are measured exactly, each by a run of its
    own, beside the nearest others of their kind, and what the gradient got wrong is said.

    The stream at a token holds all that earlier parts wrote there, so its effect is larger than
    theirs. Tokens therefore take no place of the k components: k // 3 of them are measured too,
    each at the layer where its estimate is largest. Tokens before the first difference from the
    foil have no effect, and the stream before layer 0 is the token itself; with a foil neither is
    ranked.

    Args:
        model: a model with a fast engine.
        prompt: a text, or token ids.
        foil: a text of as many tokens that the model continues in another way. A text of one token
            is read as the wrong answer instead.
        answer: what is explained, of one token or several; the likeliest next token by default.
        wrong: what it is compared with; the likeliest token after the foil, or the runner-up.
        k: number of heads and MLPs measured exactly, beside k // 3 tokens.
        draws: number of others that each is compared with, if there are so many.
        seed: seed of the choice among those of one layer.
        run: budget_gb, progress (called with (runs done, runs in total)) and cancelled.

    Returns:
        Scan, in logits or nats, strongest first. n = 1: to test them, measure a set of prompts.

    Raises:
        InterpError: no fast engine, a foil of another number of tokens, answers that do not differ
            or of which one begins the other, or a call inside `intervene`.
    """
    given = {"answer": answer, "wrong": wrong, "k": k, "draws": draws, "seed": seed}
    *_, found = scan_steps(model, prompt, foil, **given, **run)
    return found


@reads_arguments
def scan_steps(
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
) -> Iterator[Scan]:
    """`scan` step by step: the gradient's ranking, then once more after each exact effect.

    The first `Scan` has estimates only. In each one after it, one more finding has its exact effect
    and its rank among others. The last one is what `scan` returns, sorted by exact effect.

    The arguments and what is refused are those of `scan`, before the first step.
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
    both = compared(clean, other, answer, wrong)
    pair = PromptPair(clean=prompt, corrupted=foil, answers=(both.answer,), wrong=(both.wrong,))
    name = "one prompt" if foil is None else "one pair"
    task = Task(name=name, pairs=(pair,), metric=METRICS[both.metric])
    task.encode(model, strings=True)  # refuses an answer that begins the other
    given = f"{prompt!r}, {foil!r}, answer={both.answer!r}, wrong={both.wrong!r}"
    call = f"found = interp.scan(model, {given}, k={k}, draws={draws}, seed={seed})"
    texts = [run.prompt.strings for run in (clean, other)]
    empty = Scan(
        task=task,
        words=both.words,
        unit=task.metric.unit,
        clean=float("nan"),
        corrupted=None if foil is None else 0.0,
        found=(),
        of=0,
        agreement=float("nan"),
        parts=both.parts,
        provenance=provenance(model, task, call),
        changed=tuple((a, b) for a, b in zip(*texts, strict=True) if a != b),
    )
    return _measured(model, empty, options, k=k, draws=draws, seed=seed)


def is_one_token(model: LanguageModel, prompt: Prompt, text: str) -> bool:
    """Whether a text is one token that can follow the prompt."""
    try:
        answer_token(model, prompt, text, f"foil {text!r}")
    except InterpError:
        return False
    return True


def _measured(
    model: LanguageModel, scan: Scan, options: RunOptions, *, k: int, draws: int, seed: int
) -> Iterator[Scan]:
    """Rank by the gradient, then measure the first k exactly, and others of their kind."""
    paired = scan.corrupted is not None
    direction = "denoise" if paired else "noise"
    estimates, ends = _estimates(model, scan.task, options, direction)
    first, rng = _first(estimates, k), np.random.default_rng(seed)
    beside = {one: _nearest(one, list(estimates), draws, rng) for one in first}
    total = len({*first, *(other for some in beside.values() for other in some)})
    direct = {part.label: part.value for part in (scan.parts.parts if scan.parts else ())}
    tokens = model.tokenize(scan.task.pairs[0].clean).strings
    exact, confirmed = dict[Candidate, float](), set[Candidate]()

    def finding(one: Candidate) -> ScanEffect:
        others = np.abs([exact[other] for other in beside[one] if one in confirmed])
        part, place = one
        return ScanEffect(
            component=part,
            estimate=estimates[one],
            exact=exact[one] if one in confirmed else None,
            direct=direct.get(str(part)) if place is None else None,
            null=null_of(abs(exact[one]), others) if len(others) else None,
            position=place,
            token="" if place is None else tokens[place],
        )

    def so_far() -> Scan:
        both = np.array([[estimates[one], effect] for one, effect in exact.items()]).T
        return replace(
            scan,
            clean=ends[0],
            corrupted=ends[1] if paired else None,
            found=tuple(map(finding, first)),
            of=len(estimates),
            agreement=float(np.corrcoef(both)[0, 1]) if len(exact) > 1 else float("nan"),
        )

    yield so_far()
    for number, one in enumerate(first, 1):
        new = [other for other in (one, *beside[one]) if other not in exact]
        done = len(exact)

        def counted(now: int, _: int, done: int = done) -> None:
            if options.progress is not None:
                options.progress(done + now, total)

        if new:
            with stoppable(options.cancelled):
                gained = set_effects(
                    model,
                    scan.task,
                    [[part] for part, _ in new],
                    direction,
                    counted,
                    at=[place for _, place in new],
                    zero=not paired,
                )
            exact |= zip(new, gained.gained[:, 0].tolist(), strict=True)
            ends = float(gained.clean[0]), float(gained.corrupted[0])
        confirmed.add(one)
        if number == len(first):
            first = sorted(first, key=lambda one: -abs(exact[one]))
        yield so_far()


def _estimates(
    model: LanguageModel, task: Task, options: RunOptions, direction: str
) -> tuple[dict[Candidate, float], tuple[float, float]]:
    """What the gradient says of every candidate, and the metric of both plain runs."""
    pair, found = task.pairs[0], dict[Candidate, float]()
    start, ends = (0, 0), (0.0, 0.0)
    if pair.corrupted is not None:
        tokens = (model.tokenize(prompt).tokens for prompt in (pair.clean, pair.corrupted))
        start = 1, first_difference(*tokens)
    for site, by in (
        ("z", ("layer", "head")),
        ("mlp_out", ("layer",)),
        ("resid_pre", ("layer", "position")),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the sentences name a small gap
            scores = attribution_patching(
                model,
                task,
                site=site,
                by=by,
                direction=direction,
                source="zero" if pair.corrupted is None else "other",
                unit="metric",
                budget_gb=options.budget_gb,
                cancelled=options.cancelled,
            )
        ends = float(scores.clean[0]), float(scores.corrupted[0])
        for cell in np.ndindex(scores.values.shape):
            place = cell[1] if site == "resid_pre" else None
            if place is None or (cell[0] >= start[0] and place >= start[1]):
                found[scores.component(cell), place] = float(scores.values[cell])
    return found, ends


def _first(estimates: Mapping[Candidate, float], k: int) -> list[Candidate]:
    """What is measured, the largest estimate first: k components, and k // 3 tokens once each."""
    ranked = sorted(estimates, key=lambda one: -abs(estimates[one]))
    best: dict[int, Candidate] = {}
    for one in ranked:
        if one[1] is not None:
            best.setdefault(one[1], one)
    chosen = {*[one for one in ranked if one[1] is None][:k], *[*best.values()][: k // TOKENS]}
    return [one for one in ranked if one in chosen]


def _nearest(
    one: Candidate, candidates: Sequence[Candidate], draws: int, rng: np.random.Generator
) -> list[Candidate]:
    """Others of the same kind, of a token other tokens: of its layer, then of the nearest ones."""
    (part, place), kind = one, one[0].site
    others = [
        other
        for other in candidates
        if other[0].site == kind and (other[0] != part if place is None else other[1] != place)
    ]
    order = rng.permutation(len(others))
    near = sorted(order.tolist(), key=lambda i: abs(others[i][0].layer - part.layer))
    return [others[i] for i in near[:draws]]
