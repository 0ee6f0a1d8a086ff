"""Verdicts changed by a direction, in several layers at once and one layer at a time.

A direction added in the last layers changes any answer if it points at the answer's words. So a
direction found on samples is compared with directions that know nothing of verdicts: the one that
the unembedding itself gives, those of shuffled labels, and those of other facts of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.core.nulls import null_of, turned_directions
from interp.models.unembedding import logit_direction
from interp.results.direction import Direction
from interp.runs.change import Change
from interp.runs.next_tokens import ablate
from interp.steering.at_trigger import steer_at_trigger, vector_steering
from interp.studies.steps import Result, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import VerdictContext
from interp.studies.verification.steps.verdicts import NULL_PAIRS, STOPS

SCALES = (0.05, 0.1, 0.2, 0.4)
"""Doses in every layer steered, as shares of the mean length of the stream at t_paren there."""

DOSES = (0.25, 0.5, 1.0)
"""Doses of one layer alone, as shares of the mean length of its stream at t_paren."""

SIGNS = {"this": 1, "not": -1}
"""The wanted verdict, and the sign with which a direction towards valid is added."""

LEARNT = ("mean difference", "logistic")
"""Directions of the context that are tried one layer at a time."""

SHUFFLED = 12
"""Differences of class means under shuffled labels."""

ANSWER = "unembedding, this - not"
"""The name of the direction that the unembedding gives."""


def steering(context: VerdictContext) -> Result:
    """Verdicts changed by a direction added at t_paren, in the last third of the layers.

        x_l <- x_l + sign * scale * length * d_l / |d_l|

    For every direction of the context and every dose of `SCALES`: the share of invalid test
    samples judged "this" (sign +), of valid ones judged "not" (sign -), and of samples given
    neither. null: the same share with all layers' directions turned together at random
    (`turned_directions`), `draws` times, on the first `NULL_PAIRS` samples; share: the share of
    draws as large as the direction's own on the same samples. chosen: for each verdict the row
    that changes most find samples, with the weakest such dose; `text` uses that of "this".

    The dose is that of one layer; over the layers steered it adds up to as many times as much.

    Departs from the paper, which adds 20 times the unit vector of its softmax probe at t_ans and
    shows three texts.
    """
    model, settings = context.model, context.settings
    layers = range(2 * model.n_layers // 3, model.n_layers)
    states = context.states["resid_post"][list(layers), :, 1].double()
    length = float(states.norm(dim=-1).mean())
    rows = []
    for name, vectors in context.directions.items():
        random = list(turned_directions(vectors, settings.draws, seed=settings.seed))
        for scale in SCALES:
            row: Result = {"direction": name, "scale": scale}
            for word, sign in SIGNS.items():
                own, *null = (
                    vector_steering(model, d, scale=sign * scale * length, layers=layers)
                    for d in (vectors, *random)
                )
                found = _turned(context, context.find, word, [own])
                seen = _turned(context, context.test, word, [own])
                null = _turned(context, context.test, word, null, NULL_PAIRS)
                here, shares = seen["turned"][0], null["turned"].mean(1)
                row[word] = {
                    **share_of(here),
                    "neither": float(seen["neither"].mean()),
                    "find": float(found["turned"].mean()),
                    "null": shares.tolist(),
                    "share": null_of(float(here[:NULL_PAIRS].mean()), shares).share,
                }
            rows.append(row)
    chosen = {
        word: rows.index(max(rows, key=lambda row, word=word: (row[word]["find"], -row["scale"])))
        for word in SIGNS
    }
    best = rows[chosen["this"]]
    vectors, scale = context.directions[best["direction"]], best["scale"] * length
    return {
        "rows": rows,
        "layers": [layers.start, layers.stop - 1],
        "length": length,
        "null_n": min(NULL_PAIRS, len(context.test) // 2),
        "chosen": chosen,
        "text": _text(context, vectors, scale, layers),
    }


def rivals(context: VerdictContext) -> dict[str, torch.Tensor]:
    """Directions that know nothing of verdicts, (layer, d_model) each.

    The unembedding's (`logit_direction`, the same in every layer); differences of class means at
    t_paren with the verdicts shuffled, `SHUFFLED` of them; and those of other facts of the find
    samples: an early or late attempt, three or four operands, an odd or even result, a result above
    or below the median. A fact that all samples share is left out.
    """
    at = context.states["resid_post"][:, :, 1].double()
    find, rng = context.find, np.random.default_rng(context.settings.seed)
    written = find.written
    facts = {
        "late - early attempt": find.attempt > np.median(find.attempt),
        "more - fewer operands": find.operands > find.operands.min(),
        "odd - even result": written % 2 == 1,
        "large - small result": written > np.median(written),
    }
    facts |= {f"shuffled verdicts {i}": rng.permutation(find.valid) for i in range(SHUFFLED)}
    answer = logit_direction(context.model, [context.ids.this], [context.ids.no]).double()
    found = {ANSWER: answer.to(at.device).expand(len(at), -1)}
    for name, fact in facts.items():
        if 0 < fact.sum() < len(fact):
            side = torch.from_numpy(fact)
            found[name] = at[:, side].mean(1) - at[:, ~side].mean(1)
    return found


def steering_by_layer(context: VerdictContext) -> Result:
    """Verdicts changed by a direction added at t_paren in one layer alone, and by its rivals.

        x_l <- x_l + sign * dose * mean |x_l| * d_l / |d_l|

    for every layer, every dose of `DOSES`, the directions `LEARNT` and those of `rivals`. turned:
    share of invalid test samples judged "this" (sign +) and of valid ones judged "not" (sign -), on
    the first `NULL_PAIRS` of each; (layers, doses). cosine: with the unembedding's direction, layer
    by layer; near 1 a direction is the answer's words, not the verdict. find: the same shares of
    find samples by the first learnt direction; the dose and the layer of the claim are chosen on
    them. dose: the index of the dose that turns most of them, over all layers.
    """
    model, learnt = context.model, {name: context.directions[name] for name in LEARNT}
    every = learnt | rivals(context)
    answer = every[ANSWER]
    lengths = context.states["resid_post"][:, :, 1].double().norm(dim=-1).mean(-1)
    found: Result = {
        "doses": DOSES,
        "lengths": lengths.tolist(),
        "n": min(NULL_PAIRS, len(context.test) // 2),
        "learnt": list(learnt),
        "directions": {},
    }
    find = {
        word: _layer_by_layer(context, context.find, word, learnt[LEARNT[0]], lengths)
        for word in SIGNS
    }
    for name, vectors in every.items():
        row: Result = {
            "cosine": torch.nn.functional.cosine_similarity(vectors, answer, dim=-1).tolist()
        }
        for word in SIGNS:
            row[word] = _layer_by_layer(context, context.test, word, vectors, lengths).tolist()
        found["directions"][name] = row
    dose = int(np.sum([*find.values()], (0, 1)).argmax())
    return found | {
        "find": {word: shares.tolist() for word, shares in find.items()},
        "dose": dose,
        "layers": model.n_layers,
    }


def chosen_direction(context: VerdictContext, found: Result) -> dict[str, Direction]:
    """The first of `LEARNT`, towards valid, in the layer that turns most find samples.

    By its name, with the length of the raw difference; `found` is what `steering_by_layer` gives.
    """
    name, dose = LEARNT[0], found["dose"]
    layer = int(np.sum([np.array(x)[:, dose] for x in found["find"].values()], 0).argmax())
    valid = int(context.find.valid.sum())
    direction = Direction(
        vector=context.directions[name][layer].double().cpu(),
        kind="contrast",
        site="resid_post",
        layer=layer,
        position=-1,
        sign=1,
        n=(valid, len(context.find) - valid),
        model_hash=context.model.hash,
        made='valid minus invalid attempts at " (", difference in means',
    )
    return {"valid-invalid": direction}


def _layer_by_layer(
    context: VerdictContext,
    samples: Samples,
    word: str,
    vectors: torch.Tensor,
    lengths: torch.Tensor,
) -> np.ndarray:
    """(layers, doses) the share of samples turned to a verdict."""
    made = [
        vector_steering(
            context.model, vectors, scale=SIGNS[word] * dose * float(lengths[at]), layers=[at]
        )
        for at in range(context.model.n_layers)
        for dose in DOSES
    ]
    turned = _turned(context, samples, word, made, NULL_PAIRS)["turned"]
    return turned.mean(1).reshape(context.model.n_layers, len(DOSES))


def _turned(
    context: VerdictContext,
    samples: Samples,
    word: str,
    made: Sequence[Change],
    most: int | None = None,
) -> dict[str, np.ndarray]:
    """Whether each verdict becomes the other, or neither, under each change."""
    ids = context.ids
    wanted = {"this": ids.this, "not": ids.no}[word]
    context.runs(samples.tokens, 1)  # holds the runs of either side
    some = samples.take(np.flatnonzero(samples.valid == (word == "not"))[:most])
    seen = ablate(
        context.model, some.tokens, made, tokens=[ids.this, ids.no], where=1,
        runs=context.runs(some.tokens, 1),
    )  # fmt: skip
    top = seen.top[1:]
    return {"turned": top == wanted, "neither": ~np.isin(top, [ids.this, ids.no])}


def _text(
    context: VerdictContext, vectors: torch.Tensor, scale: float, layers: Sequence[int]
) -> dict[str, str]:
    """What follows the first invalid test sample's result, plain and steered behind it."""
    invalid = context.test.take(np.flatnonzero(~context.test.valid)[:1])
    prompt = invalid.tokens[0][:-1]
    made = steer_at_trigger(
        context.model, [prompt], vectors, scale=scale, max_new_tokens=80, layers=layers,
        trigger=context.ids.paren, where=1, stop=STOPS,
    )  # fmt: skip
    line = "".join(context.model.strings(prompt)).rpartition("\n")[2]
    return {"before": line, "plain": made.plain[0].text, "steered": made.steered[0].text}
