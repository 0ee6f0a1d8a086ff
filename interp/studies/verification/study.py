"""The whole study, step by step, resumable: from the model's own texts to one report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from interp.cumulative import greedy_order
from interp.errors import InterpError
from interp.generation import Generation
from interp.glu import glu_vectors
from interp.models.language_model import LanguageModel
from interp.studies import frame
from interp.studies.steps import Result, Steps, plain, tuples
from interp.studies.verification import (
    comparing,
    finding,
    generating,
    intervening,
    reading,
)
from interp.studies.verification.behaviour import behaviour, countdown_texts
from interp.studies.verification.context import (
    VERIFICATION,
    Context,
    Settings,
    make_context,
)
from interp.studies.verification.samples import Samples, find_samples, verdict_tokens
from interp.tasks.countdown import Problem, make_countdown

Study = frame.Study[Settings]
"""A verification study."""


def study_verification(
    model: LanguageModel,
    base: LanguageModel | None = None,
    *,
    settings: Settings | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study:
    """Redo the study of Lee et al. 2025 (arXiv 2504.14379) on a model, with controls.

    Every step is kept in `directory` (under the cache by default) as it ends; the same call goes
    on from there. Nothing depends on the model's sizes; it must have a gated MLP, a fast engine,
    and a tokeniser that keeps digits, " (", "this" and "not" apart.

    Args:
        model: a model that writes the CountDown chain of thought.
        base: the model it was trained from, for the comparison; left out without.
        settings: see `Settings`.
        directory: where step results go.
        say: called with a line at every step.

    Raises:
        InterpError: a model the study cannot be done on, or too few valid or invalid attempts.
    """
    settings = settings or Settings()
    verdict_tokens(model)
    glu_vectors(model, 0, 0)
    if model.post_norms:
        raise InterpError(
            f"GLU vectors of {model.name}",
            "a norm follows the MLP, so that a neuron is no summand of the stream",
            "use a model without post-norms",
        )
    study, step = frame.begin(
        VERIFICATION, model, base, settings=settings, directory=directory, say=say
    )
    context = _context(model, base, settings, step)

    def few(n: int) -> Samples:
        return context.test.balanced(min(n, settings.n // 4), seed=settings.seed)

    step("behaviour", lambda: _behaviour(context))
    step("probes", lambda: reading.probes(context))
    step("lens", lambda: reading.lens(context))
    choice = step("glu_choice", lambda: finding.glu_choice(context))
    best = (choice["direction"], choice["k"])
    glu = step("glu", lambda: reading.glu(context, *best), *best, reading.SHOWN)
    attention = step("attention", lambda: reading.attention(context))
    judged = (finding.STRONGEST, finding.BAND)
    valid, invalid = (glu[name]["neurons"] for name in ("GLU_Valid", "GLU_Invalid"))
    patching = step("patching", lambda: finding.patching(context, valid), valid, *judged)
    previous = attention["t_ans to earlier"]["heads"]
    strong = finding.strongest(patching["noise"]["values"], 16)
    scored = [list(dict.fromkeys([*previous, *strong])), valid]
    scores = step("head_scores", lambda: reading.head_scores(context, *scored), *scored)
    orders = step("orders", lambda: _orders(context, previous, strong, scores), strong, scores)
    curves = step("curves", lambda: finding.curves(context, orders), orders)
    chosen = curves["chosen"]
    step(
        "communication",
        lambda: reading.communication(context, scores, chosen, valid),
        scores,
        chosen,
        valid,
    )
    sets = {
        "GLU_Valid": valid,
        "GLU_Valid and GLU_Invalid": list(dict.fromkeys([*valid, *invalid])),
        "A_Prev": previous,
        "A_Verif": chosen,
    }
    sets = {name: labels for name, labels in sets.items() if labels}
    heads = {name: labels for name, labels in sets.items() if name.startswith("A_")}
    shown = {name: sets[name] for name in ("GLU_Valid and GLU_Invalid", "A_Verif")}
    step("lens_without", lambda: reading.lens_without(context, shown), shown)
    for kind in intervening.KINDS:
        step(
            f"effects_{kind}",
            lambda kind=kind: intervening.verdict_effects(context, context.test, sets, kind=kind),
            sets,
        )
    step(
        "effects_everywhere",
        lambda: intervening.verdict_effects(
            context, few(4), sets, where="all", draws=min(10, settings.draws)
        ),
        sets,
    )
    step("interventions", lambda: generating.intervention_table(context, few(50), sets), sets)
    texts = generating.PLAIN_TEXT
    step("side_effects", lambda: generating.side_effects(context, few(10), sets), sets, texts)
    step("sufficiency", lambda: intervening.sufficiency(context, heads), heads)
    step("stability", lambda: finding.stability(context, orders, strong), orders, strong)
    if base is not None:
        step(
            "base", lambda: comparing.against_base(context, chosen, valid), base.hash, chosen, valid
        )
    return study


def _context(
    model: LanguageModel, base: LanguageModel | None, settings: Settings, steps: Steps
) -> Context:
    """The model's texts, n / 2 problems at a time, until there are samples enough."""
    problems: list[Problem] = []
    texts: list[Generation] = []
    everything = make_countdown(
        3 * settings.n, operands=settings.operands, seed=settings.seed, split="test"
    )
    while True:
        block = everything[len(problems) : len(problems) + settings.n // 2]
        kept = steps(
            f"texts_{len(problems)}",
            lambda block=block: _generated(model, settings, block),
        )
        problems += block
        texts += [Generation(**tuples(row)) for row in kept["texts"]]
        if len(problems) == len(block):  # refuse a model that writes no verdict at all
            whole, starts = zip(*((t.prompt + t.tokens, len(t.prompt)) for t in texts), strict=True)
            find_samples(model, whole, problems, starts=starts)
        try:
            return make_context(model, base, settings, problems, texts)
        except InterpError:
            if len(problems) == len(everything):
                raise


def _generated(model: LanguageModel, settings: Settings, problems: list[Problem]) -> Result:
    made = countdown_texts(
        model, problems, template=settings.template, max_new_tokens=settings.max_new_tokens
    )
    return {"texts": [dict(vars(text)) for text in made]}


def _behaviour(context: Context) -> Result:
    shares = behaviour(context.problems, context.texts, template=context.settings.template)
    return {
        "problems": len(context.problems),
        "attempts": shares.attempts,
        "rows": [{"share": row["share"], **plain(row["value"])} for row in shares.rows()],
        "example": _example(context),
        "find": int(context.find.valid.sum()),
        "test": int(context.test.valid.sum()),
    }


def _example(context: Context) -> str:
    """The first text that ends by itself, after an attempt or more that failed."""
    pairs = list(zip(context.problems, context.texts, strict=True))
    searched = (pair for pair in pairs if pair[1].stopped and pair[1].text.count("(not ") > 0)
    problem, made = next(searched, pairs[0])
    return problem.prompt(context.settings.template) + made.text


def _orders(context: Context, previous: list[str], strong: list[str], scores: Result) -> Result:
    """Heads in every order: A_Prev by attention and by its scores, all heads by patching."""
    orders: dict[str, list[str]] = {}
    if previous:
        orders["attention"] = previous
        orders |= {
            f"head-GLU, {mode}": [head for head in found["order"] if head in previous]
            for mode, found in scores.items()
        }
    orders["patching"] = strong
    orders["greedy"] = greedy_order(intervening.zeroed_sets(context, context.find), strong, 8)
    return {name: order for name, order in orders.items() if order}
