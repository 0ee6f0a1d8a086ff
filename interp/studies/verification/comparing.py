"""The trained model against the one it was trained from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.ablation import ablate
from interp.comparison import compare_weights
from interp.errors import InterpError
from interp.interventions import intervene, zero
from interp.kept_runs import keep_runs
from interp.models.language_model import LanguageModel
from interp.probing import probe_model
from interp.studies.steps import Result, plain
from interp.studies.verification.behaviour import behaviour, countdown_texts
from interp.studies.verification.context import RUNS_GB, Context
from interp.tasks.countdown import Problem
from interp.words import paired_word_probs

QUESTION = (
    "Using the numbers {numbers}, is {attempt} = {target} correct? Answer yes or no.\nAnswer:"
)


def against_base(context: Context, heads: Sequence[str], neurons: Sequence[str]) -> Result:
    """Behaviour, knowledge and weights of both models.

    behaviour: the base model's own texts on 40 problems, at most 120 tokens each. forced: on the
    trained model's texts, how well log P(this) - log P(not) at t_paren tells valid from invalid
    (AUC), in each. probes: accuracy of logistic probes at t_paren of the base model's residual
    stream. weights: how much training changed the chosen heads and neurons, against others of
    the same layers. asked: the base model's yes and no to a correct and an incorrect equation,
    with and without the heads.

    Raises:
        InterpError: the two tokenisers differ.
    """
    base, model, samples = context.base, context.model, context.test
    assert base is not None
    if base.strings(samples.tokens[0]) != model.strings(samples.tokens[0]):
        raise InterpError(
            f"comparing {model.name} with {base.name}",
            "their tokenisers read the same ids differently",
            "give the model it was trained from",
        )
    few = list(context.problems[:40])
    texts = countdown_texts(base, few, template=context.settings.template, max_new_tokens=120)
    shares = behaviour(few, texts, template=context.settings.template)
    fitted = probe_model(
        base,
        context.find.tokens,
        context.find.t_paren,
        context.find.valid,
        groups=context.find.problems.tolist(),
        sites=("resid_post",),
        seed=context.settings.seed,
        runs=keep_runs(base, context.find.tokens, last=1, budget_gb=RUNS_GB),
    )["resid_post"]
    found: Result = {
        "base": base.name,
        "behaviour": [{"share": r["share"], **plain(r["value"])} for r in shares.rows()],
        "forced": {
            each.name: _forced(context, each, samples.tokens, samples.valid)
            for each in (base, model)
        },
        "probe_accuracy": fitted.heldout.accuracy.tolist(),
        "asked": _asked(context, base, heads),
    }
    weights: Result = {}
    compared = compare_weights(base, model)
    for name, chosen in (("heads", heads), ("neurons", neurons)):
        if chosen:
            nulls = compared.null(chosen, draws=2000, seed=context.settings.seed)
            weights[name] = {part: plain(null) for part, null in nulls.items()}
    table = compared.to_dataframe()
    found["weights"] = weights
    found["least_cosine"] = table.groupby("part")["cosine"].min().to_dict()
    return found


def _forced(
    context: Context, model: LanguageModel, tokens: tuple[tuple[int, ...], ...], valid: np.ndarray
) -> Result:
    from scipy import stats

    ids = context.ids
    runs = context.runs(tokens) if model is context.model else None
    seen = ablate(model, tokens, [], tokens=[ids.this, ids.no], runs=runs)
    gap = seen.log_odds[0]
    test = stats.mannwhitneyu(gap[valid], gap[~valid])
    auc = test.statistic / (valid.sum() * (~valid).sum())
    return {"auc": float(auc), "mass": float(seen.probabilities[0].sum(1).mean())}


def _asked(context: Context, base: LanguageModel, heads: Sequence[str]) -> Result:
    problems = list(context.problems[:60])
    found: Result = {"n": len(problems)}
    for name, offset in (("correct", 0), ("incorrect", 1)):
        prompts = [_question(problem, offset) for problem in problems]
        plainly = paired_word_probs(base, prompts)
        with intervene(base, [zero(head) for head in heads]):
            without = paired_word_probs(base, prompts)
        found[name] = {
            "plain": {key: plain(value) for key, value in plainly.means.items()},
            "without": {key: plain(value) for key, value in without.means.items()},
        }
    return found


def _question(problem: Problem, offset: int) -> str:
    a, b, *_ = problem.numbers
    return QUESTION.format(numbers=f"{a} and {b}", attempt=f"{a} + {b}", target=a + b + 10 * offset)
