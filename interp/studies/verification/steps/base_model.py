"""The trained model compared with the model it was trained from."""

from __future__ import annotations

from collections.abc import Sequence

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.probing.lens import logit_lens
from interp.probing.model_diff import compare_activations, compare_weights
from interp.probing.training import probe_model
from interp.probing.word_probabilities import paired_word_probs
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import StoredRuns, keep_runs
from interp.studies.steps import Result, plain
from interp.studies.verification.settings import RUNS_GB, VerdictContext
from interp.studies.verification.steps.behaviour import behaviour, countdown_texts
from interp.studies.verification.steps.readouts import probabilities
from interp.tasks.countdown import Problem

VERSION = 2
"""Version of what `against_base` measures; part of its step's key."""

SITES = ("resid_post", "attn_out", "mlp_out")
"""Where the two models' activations are compared."""

QUESTION = (
    "Using the numbers {numbers}, is {attempt} = {target} correct? Answer yes or no.\nAnswer:"
)


def against_base(context: VerdictContext, heads: Sequence[str], neurons: Sequence[str]) -> Result:
    """Behaviour, knowledge and weights of both models.

    behaviour: the base model's own texts on 40 problems, at most 120 tokens each. forced: on the
    trained model's texts, how well log P(this) - log P(not) at t_paren separates valid from invalid
    (AUC), in each. lens: mean probabilities of "this" and "not" at t_valid and t_invalid, by
    layer, in each. activations: `compare_activations` at t_paren of the same texts, by site and
    layer. probes: accuracy of logistic probes at t_paren of the base model's residual stream.
    weights: how much training changed the chosen heads and neurons, against others of the same
    layers, with the least cosine and the largest difference of norms among them. asked: the base
    model's yes and no to a correct and an incorrect equation, with and without the heads; or why
    its vocabulary has no such words.

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
    kept = (
        keep_runs(base, samples.tokens, last=1, budget_gb=RUNS_GB),
        context.runs(samples.tokens),
    )
    models = list(zip((base, model), kept, strict=True))
    return {
        "base": base.name,
        "behaviour": [{"share": r["share"], **plain(r["value"])} for r in shares.rows()],
        "forced": {each.name: _forced(context, each, runs) for each, runs in models},
        "lens": {each.name: _lens(context, each, runs) for each, runs in models},
        "activations": _activations(context, base, kept),
        "probe_accuracy": fitted.heldout.accuracy.tolist(),
        "asked": _asked(context, base, heads),
        **_weights(context, base, heads, neurons),
    }


def _weights(
    context: VerdictContext, base: LanguageModel, heads: Sequence[str], neurons: Sequence[str]
) -> Result:
    """Each part's change in the chosen components, mean and largest, and its least cosine."""
    compared = compare_weights(base, context.model)
    table, seed = compared.to_dataframe(), context.settings.seed
    weights: Result = {}
    for name, chosen in (("heads", heads), ("neurons", neurons)):
        if not chosen:
            continue
        mine = table[table.component.isin(list(chosen))].groupby("part")
        least, norms = mine.cosine.min(), mine.norm_difference.apply(lambda x: x.abs().max())
        most, nulls = mine.change.max(), compared.null(chosen, draws=2000, seed=seed)
        weights[name] = {
            part: plain(null) | {"cosine": least[part], "norms": norms[part], "most": most[part]}
            for part, null in nulls.items()
        }
    least = table.groupby("part")["cosine"].min().to_dict()
    return plain({"weights": weights, "least_cosine": least})


def _lens(context: VerdictContext, model: LanguageModel, runs: StoredRuns | None) -> Result:
    """Mean probabilities of the verdict's words by layer, at t_valid and at t_invalid."""
    samples, words = context.test, [context.ids.this, context.ids.no]
    seen = logit_lens(
        model, samples.tokens, samples.t_paren, k=1, words=words, groups=samples.verdicts, runs=runs
    )
    return {
        group: dict(zip(("this", "not"), probabilities(seen, words, group).values(), strict=True))
        for group in ("valid", "invalid")
    }


def _activations(
    context: VerdictContext, base: LanguageModel, kept: tuple[StoredRuns | None, StoredRuns | None]
) -> Result:
    """How far apart both models are at t_paren: means over the samples, by site and layer."""
    (of_base, of_model), samples = kept, context.test
    runs = None if of_base is None or of_model is None else (of_base, of_model)
    seen = compare_activations(
        base, context.model, samples.tokens, samples.t_paren, sites=SITES, runs=runs
    )
    parts = seen.to_dataframe().groupby("site", sort=False)
    names = ("cosine", "relative", "relative_low", "relative_high")
    measures = {name: parts[name].agg(list).to_dict() for name in names}
    return {"n": seen.n, "kl": plain(seen.kl_mean), **measures}


def _forced(context: VerdictContext, model: LanguageModel, runs: StoredRuns | None) -> Result:
    from scipy import stats

    ids, valid = context.ids, context.test.valid
    seen = ablate(model, context.test.tokens, [], tokens=[ids.this, ids.no], runs=runs)
    gap = seen.log_odds[0]
    test = stats.mannwhitneyu(gap[valid], gap[~valid])
    auc = test.statistic / (valid.sum() * (~valid).sum())
    return {"auc": float(auc), "mass": float(seen.probabilities[0].sum(1).mean())}


def _asked(context: VerdictContext, base: LanguageModel, heads: Sequence[str]) -> Result:
    problems = list(context.problems[:60])
    try:
        paired_word_probs(base, [_question(problems[0], 0)])
    except InterpError as error:  # yes or no is not one token
        return {"refused": str(error)}
    found: Result = {"n": len(problems)}
    for name, offset in (("correct", 0), ("incorrect", 1)):
        prompts = [_question(problem, offset) for problem in problems]
        plainly = paired_word_probs(base, prompts)
        with intervene(base, [zero(head) for head in heads]):
            without = paired_word_probs(base, prompts)
        found[name] = plain({"plain": plainly.means, "without": without.means})
    return found


def _question(problem: Problem, offset: int) -> str:
    a, b, *_ = problem.numbers
    return QUESTION.format(numbers=f"{a} and {b}", attempt=f"{a} + {b}", target=a + b + 10 * offset)
