"""What can be read from unchanged runs: probes, lens, GLU vectors, attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from interp.core.nulls import null_of, turned_directions
from interp.heads.attention import attention_to, select_heads, top_heads
from interp.models.language_model import LanguageModel
from interp.models.unembedding import unembed
from interp.neurons.glu import (
    GluActivations,
    LabelContrast,
    RankedNeuron,
    glu_activations,
    glu_vectors,
    label_contrast,
    opposed_neurons,
    rank_glu,
    rank_null,
)
from interp.probing.lens import Lens, logit_lens
from interp.probing.probes import Probes, probe_geometry
from interp.runs.changed_runs import ChangedRuns
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.stored_runs import StoredRuns
from interp.studies.formatting import place
from interp.studies.steps import Result, plain
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Sets, VerdictContext, VerificationSettings

WATCHED = ("this", "not", " this", " not", " success", " correct", " yes", " wrong", " fail", " no")


WITHOUT = 40
"""Valid samples whose lens is read with each set zeroed."""


def probes(context: VerdictContext) -> Result:
    """Is the verdict linear in the model: from which layer, at which token, and in which head?

    Logistic probes with a grouped split and shuffled labels at t_ans and t_paren. At t_paren also
    one for every head, and the authors' two-class softmax, whose geometry shows how much of the
    "antipodal" pair the parametrisation forces.
    """
    found = Result()
    for column, token in enumerate(("t_ans", "t_paren")):
        sites = ("resid_post", "attn_out", "mlp_out", *(("z",) if token == "t_paren" else ()))
        found[token] = {site: _accuracy(context.probes(site, column)) for site in sites}
    softmax = context.softmax
    geometry = probe_geometry(softmax)
    assert geometry.pair_shuffled is not None
    assert softmax.initial is not None
    start = softmax.initial[..., 1] - softmax.initial[..., 0]
    found["softmax"] = _accuracy(softmax) | {
        "pair": geometry.pair,
        "pair_forced": geometry.pair_forced,
        "pair_shuffled": geometry.pair_shuffled.mean(0),
        "adjacent": geometry.adjacent,
        "adjacent_shuffled": geometry.adjacent_shuffled.mean(0),
        "random_limit": geometry.random_limit,
        # The cosine of every direction with its own initialisation; 1 if it never turned.
        "start": torch.nn.functional.cosine_similarity(softmax.directions, start, dim=-1),
        "tokens": _tokens(context.model, softmax.directions),
    }
    return plain(found)


def _accuracy(fitted: Probes) -> Result:
    _, low, high = fitted.control("accuracy")
    held = fitted.heldout
    return {
        "accuracy": held.accuracy,
        "low": held.low[0],
        "high": held.high[0],
        "auc": held.auc,
        "shuffled_low": low,
        "shuffled_high": high,
        "n_train": fitted.n_train,
        "n_test": fitted.n_test,
    }


def _tokens(model: LanguageModel, vectors: torch.Tensor, k: int = 6) -> list[Result]:
    return [
        {"valid": [t.text for t in row.promoted], "invalid": [t.text for t in row.suppressed]}
        for row in unembed(model, vectors, k=k)
    ]


def lens(context: VerdictContext) -> Result:
    """Mean probabilities of the next token, layer by layer, at t_valid and at t_invalid."""
    samples = context.test
    return _lens(context, samples, samples.verdicts, context.runs(samples.tokens))


def lens_without(context: VerdictContext, sets: Sets) -> Result:
    """The lens at `WITHOUT` t_valid with each set zeroed over the window, one group a set."""
    samples = context.test.take(np.flatnonzero(context.test.valid)[:WITHOUT])
    runs, window = context.runs(samples.tokens), context.settings.window
    found: Result = {"n": len(samples), "groups": {}}
    for name, labels in sets.items():
        made, groups = make_ablation(context.model, labels), [name] * len(samples)
        changed = runs and ChangedRuns(runs=runs, change=made, where=window)
        with nullcontext() if changed else intervene(context.model, made.last(window)):
            found["groups"] |= _lens(context, samples, groups, changed)["groups"]
    return found


def _lens(
    context: VerdictContext,
    samples: Samples,
    groups: Sequence[str],
    runs: StoredRuns | ChangedRuns | None,
) -> Result:
    model = context.model
    words = [word for word in WATCHED if len(model.token_id(word)) == 1]
    words = [word for word in words if model.strings(model.token_id(word)) == (word,)]
    seen = logit_lens(
        model,
        samples.tokens,
        samples.t_paren,
        k=min(4, model.d_vocab),
        words=words,
        groups=groups,
        runs=runs,
    )
    return {
        "n": len(samples),
        "words": words,
        "groups": {
            group: {
                "top": [
                    [[t.text, t.value] for t in seen.top(layer, group=group)]
                    for layer in seen.layers
                ],
                "probability": probabilities(seen, words, group),
            }
            for group in dict.fromkeys(groups)
        },
    }


def probabilities(seen: Lens, words: Sequence[Any], group: str) -> dict[Any, list[Result]]:
    """The mean probability of some words in a group of samples, layer by layer."""
    return {
        word: [plain(seen.probability(word, at, group=group)) for at in seen.layers]
        for word in words
    }


SIGNS = {"GLU_Valid": 1, "GLU_Invalid": -1}

SHOWN = 12
"""Neurons of a GLU set whose value on every sample is kept."""


def upper_half(model: LanguageModel) -> range:
    """The layers whose GLU vectors are ranked."""
    return range(model.n_layers // 2, model.n_layers)


def glu_sets(
    context: VerdictContext, direction: str, k: int
) -> tuple[dict[str, list[RankedNeuron]], list[str]]:
    """GLU_Valid and GLU_Invalid along a direction of the context, and both together."""
    model, vectors = context.model, context.directions[direction]
    sets = {
        name: rank_glu(model, vectors, layers=upper_half(model), k=k, sign=sign)
        for name, sign in SIGNS.items()
    }
    return sets, list(dict.fromkeys(label(n) for ranked in sets.values() for n in ranked))


def glu(context: VerdictContext, direction: str, k: int) -> Result:
    """GLU_Valid and GLU_Invalid: the neurons of the upper half that write along a direction.

    A set holds the k neurons of every layer of the upper half with the largest cosine with the
    direction of that layer. Measured are: that cosine, and the one that random directions get by
    the same selection; what the neurons write, with both signs; how opposite the two sets are, also
    with the directions projected out, against sets selected along random directions of both signs
    (`null`) and against other neurons of the layers (`null_neurons`); and what they do on valid and
    invalid test samples, split into gate and up. `top` holds the first `SHOWN` of a set, `rest` the
    others. The authors rank by the softmax probe.
    """
    model, settings = context.model, context.settings
    directions, upper = context.directions[direction], upper_half(model)
    found: Result = {"layers": list(upper), "top_k": k, "direction": direction}
    chosen, both = glu_sets(context, direction, k)
    samples = context.test  # the sets were chosen on find
    captured = glu_activations(
        model, samples.tokens, samples.t_paren, both, runs=context.runs(samples.tokens)
    )
    for name, ranked in chosen.items():
        columns = [both.index(label(neuron)) for neuron in ranked]
        active = GluActivations(
            neurons=tuple(captured.neurons[c] for c in columns),
            gate=captured.gate[:, columns],
            up=captured.up[:, columns],
            product=captured.product[:, columns],
        )
        seen = label_contrast(active, samples.valid.tolist())
        null = rank_null(
            model, directions, layers=upper, k=k, sign=SIGNS[name],
            draws=settings.draws, seed=settings.seed,
        )  # fmt: skip
        rows = _neurons(model, ranked, seen)
        found[name] = {
            "neurons": [str(neuron) for neuron in seen.neurons],
            "cosines": [neuron.score for neuron in ranked],
            "null": null,
            "top": rows[:SHOWN],
            "rest": rows[SHOWN:],
            "samples": {
                "valid": samples.valid,
                **{
                    part: [
                        [round(x, 4) for x in row]
                        for row in getattr(active, part)[:, :SHOWN].tolist()
                    ]
                    for part in ("gate", "up", "product")
                },
            },
            "difference": seen.difference,
            "parts": seen.parts.abs().sum(1),
        }
    a, b = chosen["GLU_Valid"], chosen["GLU_Invalid"]
    random = _opposed_at_random(model, directions[upper.start :], upper, k, settings)
    for number, (name, gone) in enumerate(
        (("opposed_neurons", None), ("antipodes_without_probes", directions[upper.start :]))
    ):
        opposite = opposed_neurons(
            model, a, b, without=gone, draws=settings.draws, seed=settings.seed
        )
        mean = float(opposite.cosine.mean())
        found[name] = {
            "mean_cosine": mean,
            "null": null_of(-mean, random[:, number]),
            "null_neurons": opposite.null,
            "pairs": [[str(x), str(y), cosine] for x, y, cosine in opposite.pairs],
        }
    return plain(found)


def _opposed_at_random(
    model: LanguageModel,
    vectors: torch.Tensor,
    layers: range,
    k: int,
    settings: VerificationSettings,
) -> np.ndarray:
    """How opposite neurons selected along random directions w and -w are: `opposed_neurons`.

    (draws, 2): as selected, and with those directions projected out. The directions of all layers
    are turned together, so that the angles between them stay.
    """
    found = []
    for turned in turned_directions(vectors, settings.draws, seed=settings.seed):
        along = dict(zip(layers, turned, strict=True))
        sides = []
        for sign in SIGNS.values():
            ranked = rank_glu(model, along, k=k, sign=sign)
            sides.append(_values(model, ranked).float())
        axes = torch.linalg.qr(turned.float().T).Q
        beyond = [side - side @ axes @ axes.T for side in sides]
        found.append([_opposition(*sides), _opposition(*beyond)])
    return np.array(found)


def _opposition(a: torch.Tensor, b: torch.Tensor) -> float:
    """Minus the mean over a of each one's most negative cosine with b."""
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    return -float((a @ b.T).amin(-1).mean())


def _neurons(
    model: LanguageModel, ranked: Sequence[RankedNeuron], seen: LabelContrast
) -> list[Result]:
    """Each neuron's cosine, what it writes, and what it does on valid and invalid samples."""
    written = _tokens(model, _values(model, ranked))
    return [
        {
            "neuron": label(n),
            "cosine": n.score,
            "valid": float(seen.mean[1, i]),
            "invalid": float(seen.mean[0, i]),
            "parts": seen.parts[:, i].tolist(),
            "auc": float(seen.auc[i]),
            **{f"writes_{key}": words for key, words in tokens.items()},
        }
        for i, (n, tokens) in enumerate(zip(ranked, written, strict=True))
    ]


def _values(model: LanguageModel, ranked: Sequence[RankedNeuron]) -> torch.Tensor:
    """(neurons, d_model) what each neuron writes."""
    return torch.stack([glu_vectors(model, n.layer, n.index).value for n in ranked])


def label(neuron: RankedNeuron) -> str:
    """The name of a neuron, such as L26N6475."""
    return f"L{neuron.layer}N{neuron.index}"


def attention(context: VerdictContext) -> Result:
    """A_Prev: the heads that attend from a verdict to earlier occurrences of the target.

    Over all find samples: from t_ans (the published query) to all earlier occurrences, and to those
    in the question alone; and the same from t_paren. Each is compared with other positions at like
    distances.
    """
    find = context.find
    return {
        "t_ans to earlier": _attention(context, find.t_ans, find.targets),
        "t_ans to asked": _attention(context, find.t_ans, find.asked),
        "t_paren to earlier": _attention(context, find.t_paren, find.targets),
        "t_paren to asked": _attention(context, find.t_paren, find.asked),
    }


def _attention(
    context: VerdictContext, queries: Sequence[int], keys: Sequence[Sequence[int]]
) -> Result:
    tokens = context.find.tokens
    seen = attention_to(
        context.model, tokens, queries, keys, drop_empty=True, seed=context.settings.seed,
        runs=context.runs(tokens),
    )  # fmt: skip
    top = []
    for ranked in top_heads(seen, 12):
        layer, head = place(ranked.label)
        about = {"head": ranked.label, "attention": seen.estimate(ranked.label)}
        top.append(about | {"control": np.nanmean(seen.control[:, layer, head])})
    heads = select_heads(seen, threshold=context.settings.threshold)
    about = {"n": seen.n, "values": seen.values, "excess": seen.excess}
    return plain(about | {"heads": heads, "top": top})
