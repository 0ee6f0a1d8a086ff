"""What can be read from unchanged runs: probes, lens, GLU vectors, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from interp.probing.lens import logit_lens
from interp.probing.probes import Probes, probe_geometry
from interp.runs.changed_runs import ChangedRuns
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.stored_runs import StoredRuns
from interp.studies.steps import Result, plain
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Context, Settings

WATCHED = ("this", "not", " this", " not", " success", " correct", " yes", " wrong", " fail", " no")


WITHOUT = 40
"""Valid samples whose lens is read with each set zeroed."""


def probes(context: Context) -> Result:
    """Is the verdict linear in the model: from which layer, at which token, and in which head?

    Logistic probes with a grouped split and shuffled labels at t_ans and t_paren. At t_paren also
    one for every head, and the authors' two-class softmax, whose geometry shows how much of the
    "antipodal" pair the parametrisation forces.
    """
    found = Result()
    for column, place in enumerate(("t_ans", "t_paren")):
        sites = ("resid_post", "attn_out", "mlp_out", *(("z",) if place == "t_paren" else ()))
        found[place] = {site: _accuracy(context.probes(site, column)) for site in sites}
    softmax = context.softmax
    geometry = probe_geometry(softmax)
    assert geometry.pair is not None
    assert geometry.pair_forced is not None
    assert geometry.pair_shuffled is not None
    found["softmax"] = _accuracy(softmax) | {
        "pair": geometry.pair.tolist(),
        "pair_forced": geometry.pair_forced.tolist(),
        "pair_shuffled": geometry.pair_shuffled.mean(0).tolist(),
        "adjacent": geometry.adjacent.tolist(),
        "adjacent_shuffled": geometry.adjacent_shuffled.mean(0).tolist(),
        "random_limit": geometry.random_limit,
        "start": _start(softmax).tolist(),
        "tokens": _tokens(context.model, softmax.directions),
    }
    return found


def _start(fitted: Probes) -> torch.Tensor:
    """Cosine of every softmax direction with its own initialisation; 1 if it never turned."""
    assert fitted.initial is not None
    start = fitted.initial[..., 1] - fitted.initial[..., 0]
    return torch.nn.functional.cosine_similarity(fitted.directions, start, dim=-1)


def _accuracy(fitted: Probes) -> Result:
    _, low, high = fitted.control("accuracy")
    held = fitted.heldout
    return {
        "accuracy": held.accuracy.tolist(),
        "low": held.low[0].tolist(),
        "high": held.high[0].tolist(),
        "auc": held.auc.tolist(),
        "shuffled_low": low.tolist(),
        "shuffled_high": high.tolist(),
        "n_train": fitted.n_train,
        "n_test": fitted.n_test,
    }


def _tokens(model: LanguageModel, vectors: torch.Tensor, k: int = 6) -> list[Result]:
    return [
        {"valid": [t.text for t in row.promoted], "invalid": [t.text for t in row.suppressed]}
        for row in unembed(model, vectors, k=k)
    ]


def lens(context: Context) -> Result:
    """Mean probabilities of the next token, layer by layer, at t_valid and at t_invalid."""
    samples = context.test
    groups = ["valid" if valid else "invalid" for valid in samples.valid]
    return _lens(context, samples, groups, context.runs(samples.tokens))


def lens_without(context: Context, sets: Mapping[str, Sequence[str]]) -> Result:
    """The lens at `WITHOUT` t_valid with each set zeroed over the window, one group a set."""
    samples = context.test.take(np.flatnonzero(context.test.valid)[:WITHOUT])
    runs, window = context.runs(samples.tokens), context.settings.window
    found: Result = {"n": len(samples), "groups": {}}
    for name, labels in sets.items():
        made, groups = make_ablation(context.model, labels), [name] * len(samples)
        if runs is not None:
            changed = ChangedRuns(runs=runs, change=made, where=window)
            found["groups"] |= _lens(context, samples, groups, changed)["groups"]
            continue
        with intervene(context.model, made.last(window)):
            found["groups"] |= _lens(context, samples, groups, None)["groups"]
    return found


def _lens(
    context: Context,
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
                "probability": {
                    word: [plain(seen.probability(word, at, group=group)) for at in seen.layers]
                    for word in words
                },
            }
            for group in dict.fromkeys(groups)
        },
    }


SIGNS = {"GLU_Valid": 1, "GLU_Invalid": -1}

SHOWN = 12
"""Neurons of a GLU set whose value on every sample is kept."""


def upper_half(model: LanguageModel) -> range:
    """The layers whose GLU vectors are ranked."""
    return range(model.n_layers // 2, model.n_layers)


def glu_sets(
    context: Context, direction: str, k: int
) -> tuple[dict[str, list[RankedNeuron]], list[str]]:
    """GLU_Valid and GLU_Invalid along a direction of `Context.directions`, and both together."""
    model, vectors = context.model, context.directions[direction]
    sets = {
        name: rank_glu(model, vectors, layers=upper_half(model), k=k, sign=sign)
        for name, sign in SIGNS.items()
    }
    return sets, list(dict.fromkeys(label(n) for ranked in sets.values() for n in ranked))


def glu(context: Context, direction: str, k: int) -> Result:
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
    options = {"layers": upper, "k": k}
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
            model, directions, sign=SIGNS[name], draws=settings.draws, seed=settings.seed, **options
        )
        rows = _neurons(model, ranked, seen)
        found[name] = {
            "neurons": [str(neuron) for neuron in seen.neurons],
            "cosines": [neuron.score for neuron in ranked],
            "null": plain(null),
            "top": rows[:SHOWN],
            "rest": rows[SHOWN:],
            "samples": {
                "valid": samples.valid.tolist(),
                **{
                    part: [
                        [round(x, 4) for x in row]
                        for row in getattr(active, part)[:, :SHOWN].tolist()
                    ]
                    for part in ("gate", "up", "product")
                },
            },
            "difference": seen.difference.tolist(),
            "parts": seen.parts.abs().sum(1).tolist(),
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
            "null": plain(null_of(-mean, random[:, number])),
            "null_neurons": plain(opposite.null),
            "pairs": [[str(x), str(y), cosine] for x, y, cosine in opposite.pairs],
        }
    return found


def _opposed_at_random(
    model: LanguageModel, vectors: torch.Tensor, layers: range, k: int, settings: Settings
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
            values = [glu_vectors(model, n.layer, n.index).value.float() for n in ranked]
            sides.append(torch.stack(values))
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
    vectors = torch.stack([glu_vectors(model, n.layer, n.index).value for n in ranked])
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
        for i, (n, tokens) in enumerate(zip(ranked, _tokens(model, vectors), strict=True))
    ]


def label(neuron: RankedNeuron) -> str:
    """The name of a neuron, such as L26N6475."""
    return f"L{neuron.layer}N{neuron.index}"


def attention(context: Context) -> Result:
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


def _attention(context: Context, queries: Sequence[int], keys: Sequence[Sequence[int]]) -> Result:
    tokens = context.find.tokens
    seen = attention_to(
        context.model, tokens, queries, keys, drop_empty=True, seed=context.settings.seed,
        runs=context.runs(tokens),
    )  # fmt: skip
    top = []
    for ranked in top_heads(seen, 12):
        part = ranked.component
        control = seen.control[:, part.layer, part.index or 0]
        top.append(
            {
                "head": ranked.label,
                "attention": plain(seen.estimate(ranked.label)),
                "control": float(np.nanmean(control)),
            }
        )
    return {
        "n": seen.n,
        "values": seen.values.tolist(),
        "excess": seen.excess.tolist(),
        "heads": select_heads(seen, threshold=context.settings.threshold),
        "top": top,
    }
