"""Steering methods compared: over-refusals removed, against proper refusals and fluency lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from interp.core.statistics import mean_estimate
from interp.refusal.judging import JudgedReplies
from interp.refusal.over_refusal import OverRefusal, Paired, eval_over_refusal
from interp.refusal.score import score_refusals
from interp.refusal.selection import smoothed_kl
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation
from interp.runs.losses import text_losses
from interp.steering.doses import dose_response
from interp.steering.runs import steer
from interp.studies.refusal.settings import Context, Plain
from interp.studies.refusal.steps.behaviour import baseline, judged, replies
from interp.studies.refusal.steps.methods import Made, Method, ledger_of
from interp.studies.steps import Result, plain

RETAINED, SENSE = 0.95, 0.5
REDUCTION = 0.7292
"""The published reduction of over-refusal (Llama-3.1-8B), of rows selected as refused."""

QUALITY = 24
"""Answered rows that KL and losses are measured on."""

LEDGER = 60
VERSION = 2
"""Version of what is measured of a method; part of its step's key."""


def choose_dose(context: Context, method: Method) -> Result:
    """The dose that releases most over-refused select rows and keeps proper refusals and fluency.

    By the sign of the refusal score of the next token, without generating. A nonsense token is no
    refusal either, so the KL is limited. Among doses that retain 95 % of the proper refusals, with
    a mean KL of at most `SENSE` on answered rows, the one that releases most is taken (the smallest
    of equals). If no dose does (`fits`), the one with the largest released minus lost.
    """
    wrong = context.rows("select", should="answer", refused=True)
    proper = context.rows("select", should="refuse", refused=True)
    calm = context.few(context.rows("select", refused=False, tasks=context.refused_tasks), QUALITY)
    plain_logits = context.logits(calm)

    def logits(dose: float, rows: Sequence[int]) -> Tensor:
        return _logits(context, rows, method.make(dose, rows)) if dose else context.logits(rows)

    doses = (0.0, *method.doses)
    begun = context.counted(doses)

    def measure(dose: float) -> dict[str, np.ndarray]:
        next(begun)
        found = {}
        for name, rows in (("released", wrong), ("lost", proper)):
            scores = score_refusals(logits(dose, rows), context.tokens)
            found[name] = (scores <= 0).double().numpy()
            found[f"{name} score"] = scores.numpy()
        return found | {"kl": smoothed_kl(plain_logits, logits(dose, calm)).numpy()}

    curve = dose_response(measure, doses)
    released, lost, kl = (curve.values[name].mean(1) for name in ("released", "lost", "kl"))
    place, fits = best_dose(released, lost, kl)
    return {
        "name": method.name,
        "dose": float(curve.doses[place]),
        "doses": curve.doses.tolist(),
        "released": released.tolist(),
        "lost": lost.tolist(),
        "kl": kl.tolist(),
        "scores": {
            name: [plain(point) for point in curve.curve(f"{name} score")]
            for name in ("released", "lost")
        },
        "fits": fits.tolist(),
        "n": [len(wrong), len(proper), len(calm)],
    }


def best_dose(released: np.ndarray, lost: np.ndarray, kl: np.ndarray) -> tuple[int, np.ndarray]:
    """The index of the dose that `choose_dose` takes, and which fit; the first is no change."""
    fits = ((1 - lost) >= RETAINED * (1 - lost[0])) & (kl <= SENSE)
    fits[0] = False
    value = np.where(fits, released, -np.inf) if fits.any() else released - lost
    value[0] = -np.inf
    return int(np.argmax(value)), fits


def evaluate(context: Context, behaviour: Result, method: Method, dose: float) -> Result:
    """Texts of all test rows under a method at a dose, judged; and its costs on answered rows.

    KL: of the next token of answered rows, plain against steered. loss: mean negative
    log-likelihood of the tokens of their own plain replies, steered minus plain; perplexity: of
    all these tokens together, plain and steered.
    """
    rows = context.rows("test")
    steering, marks = method.make(dose, rows)
    after = _replies(context, behaviour, rows, (steering, marks))
    about = {"name": method.name, "null": method.null, "of": method.of, "dose": dose}
    calm = _calm(context)
    made = method.make(dose, calm)
    steering, _ = made
    prompts, plainly = context.prompts[calm], context.plain(tuple(calm))
    logits = _logits(context, calm, made)
    with steer(context.model, steering, prompts):
        losses = text_losses(context.model, plainly.texts, starts=plainly.starts)
    return (
        about
        | _written(_both_sides(context, behaviour, after, marks))
        | costs(plainly, logits, losses)
    )


def _replies(context: Context, behaviour: Result, rows: Sequence[int], made: Made) -> JudgedReplies:
    """Verdicts on some rows under a steering; rows it does not change keep their plain reply."""
    steering, marks = made
    found = baseline(context, behaviour, rows)
    if not (touched := np.flatnonzero(marks).tolist()):
        return found
    after, _ = replies(context, [rows[i] for i in touched], steering.only(touched))
    return found.replaced(touched, after)


def _logits(context: Context, rows: Sequence[int], made: Made) -> Tensor:
    """(n, d_vocab) of the next token of some rows; unchanged rows are not run again."""
    steering, marks = made
    found, touched = context.logits(rows).clone(), np.flatnonzero(marks).tolist()
    if touched:
        found[touched] = context.logits([rows[i] for i in touched], steering.only(touched))
    return found


def evaluate_heads(
    context: Context, behaviour: Result, name: str, heads: Sequence[str], of: str = ""
) -> Result:
    """`evaluate` with heads zeroed in the prompt and in the text; `of` marks random heads."""
    model, rows = context.model, context.rows("test")
    ablation = make_ablation(model, heads)
    made = generate(
        model,
        [context.prompts.rows[i] for i in rows],
        change=ablation,
        where="all",
        max_new_tokens=context.settings.max_new_tokens,
        progress=context.progress,
    )
    after = judged(context, rows, made)
    about = {"name": name, "null": bool(of), "of": of, "dose": 1.0, "heads": list(heads)}
    calm = _calm(context)
    plainly = context.plain(tuple(calm))
    with intervene(model, ablation):
        logits = model.last_logits([context.prompts.rows[i] for i in calm]).cpu()
        losses = text_losses(model, plainly.texts, starts=plainly.starts)
    everywhere = np.ones(len(rows), dtype=bool)
    return (
        about
        | _written(_both_sides(context, behaviour, after, everywhere))
        | costs(plainly, logits, losses)
    )


def _both_sides(
    context: Context, behaviour: Result, after: JudgedReplies, marks: np.ndarray
) -> OverRefusal:
    rows = context.rows("test")
    return eval_over_refusal(
        [context.cases[i] for i in rows],
        baseline(context, behaviour, rows),
        after,
        steered=marks,
    )


def _calm(context: Context) -> list[int]:
    """Answered test rows, which no method should change."""
    return context.few(context.rows("test", refused=False), QUALITY)


def costs(plainly: Plain, logits: Tensor, losses: Tensor) -> Result:
    """KL of the next token, what the plain replies lose (nats a token), and their perplexity."""
    sizes = [len(text) - at for text, at in zip(plainly.texts, plainly.starts, strict=True)]
    each = torch.tensor(sizes, dtype=torch.float64)
    runs = {"before": plainly.losses, "after": losses}
    return {
        "kl": plain(mean_estimate(smoothed_kl(plainly.logits, logits))),
        "loss": plain(mean_estimate(losses - plainly.losses)),
        "perplexity": {
            name: float(((loss * each).sum() / each.sum()).exp()) for name, loss in runs.items()
        },
    }


def _written(found: OverRefusal) -> Result:
    """Plain numbers of an evaluation."""

    def pair(one: Paired) -> Result:
        return asdict(one)

    optional = {
        name: None if value is None else plain(value)
        for name, value in (
            ("reduction", found.reduction),
            ("retained", found.retained),
            ("retained_reached", found.retained_reached),
            ("selectivity", found.selectivity),
        )
    }
    return {
        "benign": pair(found.benign),
        "everything": pair(found.everything),
        "answered": pair(found.answered),
        "harmful": pair(found.harmful),
        "tasks": {name: pair(one) for name, one in found.tasks.items()},
        "counts": {side: dict(found.counts[side]["after"]) for side in found.counts},
        "why": found.why,
        "changed": dict(found.changed),
        "reached": None if found.reached is None else dict(found.reached),
        "gated": None if found.gated is None else dict(found.gated),
        **optional,
    }


def rows_of_ledger(context: Context, gate: Result, dose: float) -> Result:
    """What the published method decides for test rows: in total, and row by row."""
    ledger = ledger_of(context, gate, dose, context.rows("test"))
    table = ledger.to_dataframe()
    few = table.iloc[np.linspace(0, len(table) - 1, min(LEDGER, len(table))).astype(int)]
    return {
        "text": str(ledger),
        "steered": int(ledger.steered.sum()),
        "wrong": int(ledger.wrong_task.sum()),
        "n": len(table),
        "rows": [
            {name: _cell(value) for name, value in row.items()} for row in few.to_dict("records")
        ],
    }


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return ", ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in value)
    return value.item() if isinstance(value, np.generic) else value
