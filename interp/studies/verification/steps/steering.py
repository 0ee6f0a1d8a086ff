"""Steering the verdict: the direction that separates valid from invalid, added at t_paren."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from interp.core.nulls import null_of, turned_directions
from interp.core.statistics import share_estimate
from interp.runs.next_tokens import ablate
from interp.steering.at_trigger import steer_at_trigger, vector_steering
from interp.studies.steps import Result, plain
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import Context
from interp.studies.verification.steps.texts import STOPS
from interp.studies.verification.steps.verdicts import NULL_PAIRS

SCALES = (0.05, 0.1, 0.2, 0.4)
"""Doses, as shares of the mean length of the stream at t_paren in the layers steered."""

SIDES = {"this": 1, "not": -1}
"""The wanted verdict, and the sign with which a direction towards valid is added."""


def steering(context: Context) -> Result:
    """Verdicts changed by a direction added at t_paren, in the last third of the layers.

        x_l <- x_l + sign * scale * length * d_l / |d_l|

    For every direction of `Context.directions` and every dose of `SCALES`: the share of invalid
    test samples judged "this" (sign +), of valid ones judged "not" (sign -), and of samples given
    neither. null: the same share with all layers' directions turned together at random
    (`turned_directions`), `draws` times, on the first `NULL_PAIRS` samples; share: the share of
    draws as large as the direction's own on the same samples. chosen: for each verdict the row
    that changes most find samples, with the weakest such dose; `text` uses that of "this".

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
            for word, sign in SIDES.items():
                size = sign * scale * length
                found = _share(context, context.find, word, [vectors], size, layers)
                own = _share(context, context.test, word, [vectors], size, layers)
                null = _share(context, context.test, word, random, size, layers, NULL_PAIRS)
                here, n = own["turned"][0], len(own["turned"][0])
                shares = null["turned"].mean(1)
                row[word] = {
                    **plain(share_estimate(int(here.sum()), n)),
                    "neither": float(own["neither"].mean()),
                    "find": float(found["turned"].mean()),
                    "null": shares.tolist(),
                    "share": null_of(float(here[:NULL_PAIRS].mean()), shares).share,
                }
            rows.append(row)
    chosen = {
        word: max(
            range(len(rows)), key=lambda i, word=word: (rows[i][word]["find"], -rows[i]["scale"])
        )
        for word in SIDES
    }
    best = rows[chosen["this"]]
    return {
        "rows": rows,
        "layers": [layers.start, layers.stop - 1],
        "length": length,
        "null_n": min(NULL_PAIRS, len(context.test) // 2),
        "chosen": chosen,
        "text": _text(
            context, context.directions[best["direction"]], best["scale"] * length, layers
        ),
    }


def _share(
    context: Context,
    samples: Samples,
    word: str,
    directions: Sequence[Tensor],
    scale: float,
    layers: Sequence[int],
    most: int | None = None,
) -> dict[str, np.ndarray]:
    """Whether each verdict becomes the other, or neither, under each direction."""
    ids = context.ids
    wanted = {"this": ids.this, "not": ids.no}[word]
    context.runs(samples.tokens, 1)  # holds the runs of either side
    some = samples.take(np.flatnonzero(samples.valid == (word == "not"))[:most])
    made = [vector_steering(context.model, d, scale=scale, layers=layers) for d in directions]
    seen = ablate(
        context.model, some.tokens, made, tokens=[ids.this, ids.no], where=1,
        runs=context.runs(some.tokens, 1),
    )  # fmt: skip
    top = seen.top[1:]
    return {"turned": top == wanted, "neither": ~np.isin(top, [ids.this, ids.no])}


def _text(context: Context, vectors: Tensor, scale: float, layers: Sequence[int]) -> dict[str, str]:
    """What follows the first invalid test sample's result, plain and steered behind it."""
    invalid = context.test.take(np.flatnonzero(~context.test.valid)[:1])
    prompt = invalid.tokens[0][:-1]
    made = steer_at_trigger(
        context.model, [prompt], vectors, scale=scale, max_new_tokens=80, layers=layers,
        trigger=context.ids.paren, where=1, stop=STOPS,
    )  # fmt: skip
    line = "".join(context.model.strings(prompt)).rpartition("\n")[2]
    return {"before": line, "plain": made.plain[0].text, "steered": made.steered[0].text}
