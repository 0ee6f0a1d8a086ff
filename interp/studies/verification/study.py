"""The whole study, step by step, resumable: from the model's own texts to one report."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.statistics import share_estimate
from interp.models.language_model import LanguageModel
from interp.neurons.glu import glu_vectors
from interp.results.direction import STUDY_FILE, save_directions
from interp.runs.ablation_sets import greedy_order
from interp.runs.text_runs import Generation
from interp.studies.steps import Pace, Result, StepJob, Steps, plain, tuples
from interp.studies.study import Study, begin
from interp.studies.verification.samples import Samples, verdict_tokens
from interp.studies.verification.settings import (
    VERIFICATION,
    VerdictContext,
    VerificationSettings,
    honest_samples,
    make_context,
)
from interp.studies.verification.steps import (
    base_model,
    chain,
    compared,
    controls,
    finding_heads,
    interchange,
    readouts,
    steering,
    verdicts,
)
from interp.studies.verification.steps.behaviour import behaviour, countdown_texts
from interp.studies.verification.steps.texts import (
    PUBLISHED_TEXTS,
    TEXTS,
    intervention_table,
    published_protocol,
)
from interp.tasks.countdown import Problem, make_countdown

MOST = 50
"""The most heads of A_Prev as published."""

SCORE_ORDER = "head-GLU, diag (published)"
"""The order whose first three heads are A_Verif as published."""


def study_verification(
    model: LanguageModel,
    base: LanguageModel | None = None,
    *,
    settings: VerificationSettings | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study[VerificationSettings]:
    """Repeat the study of Lee et al. 2025 (arXiv 2504.14379) on a model, with controls.

    Every step is kept in `directory` (under the cache by default) as it ends; the same call
    continues from there. A model of any size will do if it has a gated MLP, a fast engine, and a
    tokeniser that keeps digits, " (", "this" and "not" apart.

    Args:
        model: a model that writes the CountDown chain of thought.
        base: the model it was trained from; without it the comparison is left out.
        settings: see `VerificationSettings`.
        directory: where step results go.
        say: called with a line for every step, and with the progress of the texts.

    Raises:
        InterpError: the study cannot be done on the model, or it makes too few valid or invalid
            attempts: none valid in the first block of texts, or too few for the rest to suffice.
    """
    settings = settings or VerificationSettings()
    verdict_tokens(model)
    glu_vectors(model, 0, 0)
    if model.post_norms:
        raise InterpError(
            f"GLU vectors of {model.name}",
            "a norm follows the MLP, so that a neuron is no summand of the stream",
            "use a model without post-norms",
        )
    pace = Pace(say)
    study, step = begin(
        VERIFICATION, model, base, settings=settings, directory=directory, say=pace.say
    )
    context = _context(model, base, settings, step, pace)

    def few(n: int) -> Samples:
        return context.test.balanced(min(n, settings.n // 4), seed=settings.seed)

    # Each `all` pairs a step that others wait for with one that can run at the same time.
    judged = (finding_heads.STRONGEST, finding_heads.BAND)
    direct = ["logits"]
    patching, choice, attention, *_ = step.all(
        ("patching", lambda: finding_heads.patching(context), *judged),
        ("glu_choice", lambda: finding_heads.glu_choice(context)),
        ("attention", lambda: readouts.attention(context)),
        ("behaviour", lambda: _behaviour(context)),
        ("lens", lambda: readouts.lens(context)),
        ("paths_direct", lambda: finding_heads.paths(context, direct), direct, *judged),
    )
    best = (choice["direction"], choice["k"])
    glu, *_, layered = step.all(
        ("glu", lambda: readouts.glu(context, *best), *best, readouts.SHOWN),
        ("probes", lambda: readouts.probes(context)),
        ("steering", lambda: steering.steering(context)),
        ("compared", lambda: compared.compared(context)),
        ("steering_by_layer", lambda: steering.steering_by_layer(context)),
    )
    save_directions(study.directory / STUDY_FILE, steering.chosen_direction(context, layered))
    valid, invalid = (glu[name]["neurons"] for name in ("GLU_Valid", "GLU_Invalid"))
    previous = attention["t_ans to earlier"]["heads"]
    asked = attention["t_ans to asked"]["heads"][:MOST]
    strong = finding_heads.strongest(patching["noise"]["values"], 16)
    mlps = finding_heads.strongest_mlps(patching["mlp_out"])
    scored = [list(dict.fromkeys([*previous, *asked, *strong])), valid]
    scores, few_heads = step.all(
        ("head_scores", lambda: finding_heads.head_scores(context, *scored), *scored),
        ("smallest", lambda: finding_heads.smallest(context, strong), strong),
    )
    lists = (previous, asked, strong, few_heads)
    orders, _, traced = step.all(
        ("orders", lambda: _orders(context, *lists, scores), *lists, scores),
        ("paths_mlps", lambda: finding_heads.paths(context, mlps), mlps, *judged),
        ("chain", lambda: chain.chain(context, mlps), mlps, *judged),
    )
    curves, _ = step.all(
        ("curves", lambda: finding_heads.curves(context, orders), orders),
        ("paths_glu", lambda: finding_heads.paths(context, valid), valid, *judged),
    )
    chosen = curves["chosen"]
    sets = {
        "GLU_Valid": valid,
        "GLU_Valid and GLU_Invalid": list(dict.fromkeys([*valid, *invalid])),
        "A_Prev": previous,
        "A_Prev (published)": asked,
        "A_Verif": chosen,
        "A_Verif (published)": orders.get(SCORE_ORDER, [])[:3],
    }
    sets = {name: labels for name, labels in sets.items() if labels}
    stages = {
        f"stage {number}": [row["label"] for row in stage["heads"]]
        for number, stage in enumerate(traced["stages"], 1)
    }
    if len(stages) > 1:
        stages["all stages"] = [label for labels in stages.values() for label in labels]
    ours = {name: labels for name, labels in sets.items() if "published" not in name}
    shown = {name: labels for name, labels in ours.items() if name != "A_Prev"}
    fed, parts = (scores, chosen, valid), (chosen, valid)
    results, pairs, texts, six = map(
        few, (controls.RESULTS // 2, controls.PAIRS, TEXTS, PUBLISHED_TEXTS)
    )
    effects = partial(verdicts.verdict_effects, context, context.test, sets)
    against_base: list[StepJob] = []
    if base is not None:
        against = partial(base_model.against_base, context, *parts)
        against_base.append(("base", against, base.hash, *parts, base_model.VERSION))
    step.all(
        (
            "side_effects",
            lambda: controls.side_effects(context, results, ours),
            ours,
            controls.PLAIN_TEXT,
        ),
        *against_base,
        ("interventions", lambda: intervention_table(context, texts, sets), sets),
        ("effects_published", lambda: controls.effects_published(context, pairs, sets), sets),
        *((f"effects_{kind}", partial(effects, kind=kind), sets) for kind in verdicts.KINDS),
        ("communication", lambda: finding_heads.communication(context, *fed), *fed),
        ("interchange", lambda: interchange.interchange(context, sets), sets),
        (
            "interchange_chain",
            lambda: interchange.interchange(context, stages, window=chain.WINDOW),
            stages,
        ),
        ("sufficiency", lambda: verdicts.sufficiency(context, sets), sets),
        ("stability", lambda: finding_heads.stability(context, orders, strong), orders, strong),
        ("interventions_published", lambda: published_protocol(context, six, sets), sets),
        ("lens_without", lambda: readouts.lens_without(context, shown), shown),
    )
    return study


def _context(
    model: LanguageModel,
    base: LanguageModel | None,
    settings: VerificationSettings,
    steps: Steps,
    progress: Progress,
) -> VerdictContext:
    """The model's texts, n / 4 problems at a time, until there are enough samples.

    One block first, then as many as the yield so far predicts.

    Raises:
        InterpError: too few samples even at the upper limit of the yield; says what the model did
            instead.
    """
    problems: list[Problem] = []
    texts: list[Generation] = []
    size, ahead = max(1, settings.n // 4), 1
    everything = make_countdown(
        6 * settings.n, operands=settings.operands, seed=settings.seed, split="test"
    )
    while True:
        starts = range(len(problems), len(everything), size)[:ahead]
        blocks = {f"texts_{start}": everything[start : start + size] for start in starts}
        work = partial(_generated, model, settings, progress)
        made = steps.all(*((name, partial(work, block)) for name, block in blocks.items()))
        for block, kept in zip(blocks.values(), made, strict=True):
            problems += block
            texts += [Generation(**tuples(row)) for row in kept["texts"]]
            try:
                return make_context(model, base, settings, problems, texts)
            except InterpError as error:
                if len(problems) == len(everything):
                    raise _instead(settings, problems, texts, error.found) from error
        yields = _yields(model, settings, problems, texts)
        most = share_estimate(min(yields), len(problems) // 2).high * len(everything) / 2
        if not sum(yields) or most < size:
            found = f"{sum(yields)} texts with a usable valid sample"
            raise _instead(settings, problems, texts, found)
        ahead = max(1, math.ceil((size / max(1, min(yields)) - 1) * len(problems) / size))


def _yields(
    model: LanguageModel,
    settings: VerificationSettings,
    problems: list[Problem],
    texts: list[Generation],
) -> list[int]:
    """How many texts of even and of odd problems have a usable valid sample."""
    try:
        usable = honest_samples(model, settings, problems, texts)
    except InterpError:  # no verdict at all
        return [0, 0]
    sides = [set(usable.problems[usable.valid & (usable.problems % 2 == x)]) for x in (0, 1)]
    return [min(len(side), len(problems) // 2) for side in sides]


def _instead(
    settings: VerificationSettings, problems: list[Problem], texts: list[Generation], found: str
) -> InterpError:
    """An error that says what the model did in its texts."""
    shares = behaviour(problems, texts, template=settings.template)
    rows = "\n".join(f"  {row['share']}: {row['value']}" for row in shares.rows())
    return InterpError(
        f"{settings.n} samples of attempts judged right and wrong, matched",
        f"{found} in {len(problems)} texts of {settings.template!r} problems",
        f"use a model that solves more of them, another template, or easier problems "
        f"(operands); what it did:\n{rows}\n  attempts a text: {shares.attempts:z.2f}",
    )


def _generated(
    model: LanguageModel,
    settings: VerificationSettings,
    progress: Progress,
    problems: list[Problem],
) -> Result:
    made = countdown_texts(
        model,
        problems,
        template=settings.template,
        max_new_tokens=settings.max_new_tokens,
        progress=progress,
    )
    return {"texts": [dict(vars(text)) for text in made]}


def _behaviour(context: VerdictContext) -> Result:
    """The shares, and as an example the first text that ends by itself after a failed attempt."""
    pairs = list(zip(context.problems, context.texts, strict=True))
    searched = (pair for pair in pairs if pair[1].stopped and pair[1].text.count("(not ") > 0)
    problem, made = next(searched, pairs[0])
    shares = behaviour(context.problems, context.texts, template=context.settings.template)
    return {
        "problems": len(context.problems),
        "attempts": shares.attempts,
        "rows": [{"share": row["share"], **plain(row["value"])} for row in shares.rows()],
        "example": problem.prompt(context.settings.template) + made.text,
        "find": int(context.find.valid.sum()),
        "test": int(context.test.valid.sum()),
    }


def _orders(
    context: VerdictContext,
    previous: list[str],
    asked: list[str],
    strong: list[str],
    smallest: Result,
    scores: Result,
) -> Result:
    """Heads in several orders: A_Prev by attention and by its scores, all heads by patching.

    The strongest by patching also in a greedy order, and their strongest small set.
    """
    orders: dict[str, list[str]] = {}
    if previous:
        orders["attention"] = previous
        orders |= {
            f"head-GLU, {mode}": [head for head in found["order"] if head in previous]
            for mode, found in scores.items()
        }
    if asked:
        orders["attention (published)"] = asked
        by_score = scores[finding_heads.PUBLISHED]["order"]
        orders[SCORE_ORDER] = [head for head in by_score if head in asked]
    orders["patching"] = strong
    zeroed = verdicts.zeroed_sets(context, context.find)
    orders["greedy"] = greedy_order(zeroed, strong, finding_heads.GREEDY)
    orders["search"] = next((row["heads"] for row in smallest["sets"]), [])
    return {name: order for name, order in orders.items() if order}
