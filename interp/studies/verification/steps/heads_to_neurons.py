"""Which heads feed the neurons that write the verdict, and which neurons fall silent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.neurons.from_heads import head_glu_scores
from interp.neurons.glu import rank_glu
from interp.neurons.silencing import activation_delta
from interp.studies.steps import Result, plain
from interp.studies.verification.settings import Context
from interp.studies.verification.steps.readouts import label, upper_half

SCORED, BEST = 200, 50
"""The GLU vectors that the published head score averages over, and how many a layer compete."""

READ, READ_NULL = 16, 4
"""Valid samples on which neurons are read without the heads, and without each random set."""

PUBLISHED = "diag"
"""The head score that was published."""


def score_set(context: Context) -> list[str]:
    """The GLU vectors of the published head score, the strongest first.

    For every layer of the upper half, take the `BEST` neurons of each layer up to it whose value
    vectors lie most along the softmax probe of that layer. Pooled by cosine, each neuron once, the
    first `SCORED` are used. The ablated sets use the probe of a neuron's own layer instead.

    Source: ajyl/self_verification (mech_interp).
    """
    ranked = rank_glu(
        context.model,
        context.directions["softmax"],
        layers=upper_half(context.model),
        mode="all_below",
        k=min(BEST, context.model.d_mlp),
    )
    return [label(neuron) for neuron in ranked[:SCORED]]


def head_scores(context: Context, heads: Sequence[str], neurons: Sequence[str]) -> Result:
    """How much heads feed GLU neurons, by three scores.

    The released diagonal, the true OV product, and the contribution of real head outputs (valid
    minus invalid) at t_paren. The scores of the neurons of `score_set`, as published, have the
    name of the mode; those of the given neurons (GLU_Valid) have ", GLU_Valid" after it.
    """
    sets = {"": score_set(context), "GLU_Valid": list(neurons)}
    samples, found = context.find, Result()
    for name, neurons in sets.items():
        for mode in ("diag", "ov", "activation"):
            options = (
                {
                    "prompts": samples.tokens,
                    "positions": samples.t_paren,
                    "labels": samples.valid,
                    "runs": context.runs(samples.tokens),
                }
                if mode == "activation"
                else {}
            )
            scores = head_glu_scores(context.model, heads, neurons, mode=mode, **options)
            found[f"{mode}, {name}" if name else mode] = {
                "heads": list(scores.heads),
                "neurons": len(neurons),
                "values": scores.head_values.tolist(),
                "stderr": scores.head_stderr.tolist(),
                "order": [head for head, _, _ in scores.ranking()],
            }
    return found


def communication(
    context: Context, scores: Result, chosen: Sequence[str], neurons: Sequence[str]
) -> Result:
    """Whether the scores agree, and which neurons fall silent without the chosen heads.

    The heads are zeroed at every token of at most `READ` valid test samples. The neurons are read
    at t_ans, as published (on one sample there), and at t_paren. The random sets, matched in
    layers and count, are run on the first `READ_NULL` of these samples, and compared with the
    chosen heads on the same samples.
    """
    import pandas as pd

    ranks = pd.DataFrame({mode: x["values"] for mode, x in scores.items()}).corr(method="spearman")
    modes = [mode for mode in scores if "," not in mode]
    pairs = [(a, b) for i, a in enumerate(modes) for b in modes[i + 1 :]]
    pairs += [(mode.split(",")[0], mode) for mode in scores if mode not in modes]
    agreement = {f"{a} and {b}": float(ranks.loc[a].loc[b]) for a, b in pairs}
    samples = context.test
    valid = np.flatnonzero(samples.valid)[:READ]
    found: Result = {
        "agreement": agreement,
        "ablated": list(chosen),
        "n": len(valid),
        "n_null": len(valid[:READ_NULL]),
        "neurons": list(neurons),
        "at": {},
    }
    for place, positions in (("t_ans", samples.t_ans), ("t_paren", samples.t_paren)):
        whole, null = (
            activation_delta(
                context.model,
                [samples.tokens[i] for i in some],
                [positions[i] for i in some],
                neurons,
                chosen,
                draws=draws,
                seed=context.settings.seed,
            )
            for some, draws in ((valid, 0), (valid[:READ_NULL], context.settings.draws))
        )
        found["at"][place] = {
            "before": whole.before.mean(0).tolist(),
            "after": whole.after.mean(0).tolist(),
            "total": plain(whole.total),
            "null": None if null.null is None else plain(null.null),
            "silenced": None if whole.total_silenced is None else plain(whole.total_silenced),
            "silenced_null": None if null.null_silenced is None else plain(null.null_silenced),
        }
    return found
