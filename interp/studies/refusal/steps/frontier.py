"""Steering methods compared: over-refusals removed, against proper refusals and fluency lost.

And chance levels: random directions and random heads in place of the chosen ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.nulls import null_of
from interp.core.statistics import auc_estimate
from interp.refusal.judging import REFUSALS, JudgedReplies, Label
from interp.refusal.over_refusal import eval_over_refusal
from interp.refusal.score import log_odds, score_refusals
from interp.refusal.selection import smoothed_kl
from interp.refusal.task_steering import plan_steering
from interp.results.direction import Direction, random_direction
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation, random_like
from interp.runs.losses import text_losses
from interp.runs.next_tokens import ablate
from interp.steering.doses import dose_response
from interp.steering.edits import add_direction
from interp.steering.runs import steer
from interp.studies.refusal.settings import LEAST, Places, Plain, RefusalContext
from interp.studies.refusal.steps.behaviour import baseline, judged, replies
from interp.studies.refusal.steps.constellations import options_of
from interp.studies.refusal.steps.methods import Made, Method
from interp.studies.steps import Result, mean_of, plain, share_of

RETAINED, SENSE = 0.95, 0.5
REDUCTION = 0.7292
"""The published reduction of over-refusal (Llama-3.1-8B), of rows selected as refused."""

QUALITY = 24
"""Answered rows that KL and losses are measured on."""

LEDGER = 60
JUDGED = 60
"""The most test rows of a class whose scores say how well a method's scores tell classes apart."""

ALONE = "zero the first trigger alone"
OTHERS = "zero the other triggers"
VERSION = 4
"""Version of what is measured of a method; part of its step's key."""

DRAWS, ROWS = 20, 8
SUBTRACTED, ZEROED = "add - over-refusal", "zero triggers"
REFUSED_SIDES = {"over-refused": "answer", "properly refused": "refuse"}


def choose_dose(context: RefusalContext, method: Method) -> Result:
    """The dose that releases most over-refused select rows and keeps proper refusals and fluency.

    By the refusal score of the next token and its threshold, without generating. A nonsense token
    is no refusal either, so the KL is limited. A method towards refusals is to turn requests with
    an invented answer into refusals (released) and to leave answered prompts alone (lost). Among
    doses that retain 95 % of the proper refusals, with a mean KL of at most `SENSE` on answered
    rows, the one that releases most is taken (the smallest of equals). If no dose does (`fits`),
    the one with the largest released minus lost.
    """
    over, asked = ({"should": side} for side in ("answer", "refuse"))
    if method.refuse:
        wrong = context.rows("select", refused=False, **asked)
        proper = context.few(context.rows("select", refused=False, **over), len(wrong))
    else:
        wrong, proper = (context.rows("select", refused=True, **x) for x in (over, asked))
    tasks = context.refused_tasks or context.proper_tasks
    calm = context.rows("select", should="answer", refused=False, tasks=tasks)
    calm = context.few(calm, QUALITY)
    plain_logits = context.logits(calm)

    def logits(dose: float, rows: Sequence[int]) -> Tensor:
        return _logits(context, rows, method.make(dose, rows)) if dose else context.logits(rows)

    doses = (0.0, *method.doses)
    begun = context.counted(doses)

    def measure(dose: float) -> dict[str, np.ndarray]:
        next(begun)
        found = {}
        for name, rows in (("released", wrong), ("lost", proper)):
            if not rows:  # such as no over-refusals: nothing to release
                found |= {name: np.zeros(1), f"{name} score": np.zeros(1)}
                continue
            scores = score_refusals(logits(dose, rows), context.tokens)
            found[name] = ((scores > context.threshold) == method.refuse).double().numpy()
            found[f"{name} score"] = scores.numpy()
        return found | {"kl": smoothed_kl(plain_logits, logits(dose, calm)).numpy()}

    curve = dose_response(measure, doses)
    released, lost, kl = (curve.values[name].mean(1) for name in ("released", "lost", "kl"))
    place, fits = best_dose(released, lost, kl)
    return plain(
        {
            "name": method.name,
            "dose": curve.doses[place],
            "doses": curve.doses,
            "released": released,
            "lost": lost,
            "kl": kl,
            "scores": {name: curve.curve(f"{name} score") for name in ("released", "lost")},
            "fits": fits,
            "n": [len(wrong), len(proper), len(calm)],
        }
    )


def best_dose(released: np.ndarray, lost: np.ndarray, kl: np.ndarray) -> tuple[int, np.ndarray]:
    """The index of the dose that `choose_dose` takes, and which fit; the first is no change."""
    fits = ((1 - lost) >= RETAINED * (1 - lost[0])) & (kl <= SENSE)
    fits[0] = False
    value = np.where(fits, released, -np.inf) if fits.any() else released - lost
    value[0] = -np.inf
    return int(np.argmax(value)), fits


def evaluate(context: RefusalContext, behaviour: Result, method: Method, dose: float) -> Result:
    """Texts of the compared rows under a method at a dose, judged; and its costs on answered rows.

    KL: of the next token of answered rows, plain against steered. loss: mean negative
    log-likelihood of the tokens of their own plain replies, steered minus plain; perplexity: of
    all these tokens together, plain and steered.
    """
    rows, calm = context.compared, _calm(context)
    made, there = method.make(dose, rows), method.make(dose, calm)
    plainly = context.plain(calm)
    with steer(context.model, there[0], context.prompts[calm]):
        losses = text_losses(context.model, plainly.texts, starts=plainly.starts)
    return {
        "name": method.name,
        "null": method.null,
        "of": method.of,
        "dose": dose,
        "refuse": method.refuse,
        **_both_sides(context, behaviour, _replies(context, behaviour, rows, made), made[1]),
        **costs(plainly, _logits(context, calm, there), losses),
        "apart": told_apart(context, lambda some: _logits(context, some, method.make(dose, some))),
    }


def _replies(
    context: RefusalContext, behaviour: Result, rows: Sequence[int], made: Made
) -> JudgedReplies:
    """Verdicts on some rows under a steering; rows it does not change keep their plain reply."""
    steering, marks = made
    found = baseline(context, behaviour, rows)
    if not (touched := np.flatnonzero(marks).tolist()):
        return found
    after, _ = replies(context, [rows[i] for i in touched], steering.only(touched))
    return found.replaced(touched, after)


def _logits(context: RefusalContext, rows: Sequence[int], made: Made) -> Tensor:
    """(n, d_vocab) of the next token of some rows; unchanged rows are not run again."""
    steering, marks = made
    found, touched = context.logits(rows).clone(), np.flatnonzero(marks).tolist()
    if touched:
        found[touched] = context.logits([rows[i] for i in touched], steering.only(touched))
    return found


def evaluate_heads(
    context: RefusalContext, behaviour: Result, name: str, heads: Sequence[str], of: str = ""
) -> Result:
    """`evaluate` with heads zeroed in the prompt and in the text; `of` marks random heads."""
    model, rows, calm = context.model, context.compared, _calm(context)
    ablation = make_ablation(model, heads)
    made = generate(
        model,
        context.prompts[rows].rows,
        change=ablation,
        where="all",
        max_new_tokens=context.settings.max_new_tokens,
        progress=context.progress,
    )
    after, plainly = judged(context, rows, made), context.plain(calm)
    with intervene(model, ablation):
        logits = model.last_logits(context.prompts[calm].rows).cpu()
        losses = text_losses(model, plainly.texts, starts=plainly.starts)

    def zeroed(some: list[int]) -> Tensor:
        with intervene(model, ablation):
            return model.last_logits(context.prompts[some].rows).cpu()

    return {
        "name": name,
        "null": bool(of),
        "of": of,
        "dose": 1.0,
        "refuse": False,
        "apart": told_apart(context, zeroed),
        "heads": list(heads),
        **_both_sides(context, behaviour, after, np.ones(len(rows), dtype=bool)),
        **costs(plainly, logits, losses),
    }


def _both_sides(
    context: RefusalContext, behaviour: Result, after: JudgedReplies, marks: np.ndarray
) -> Result:
    """`eval_over_refusal` of the compared rows, those that `marks` names steered."""
    rows = context.compared
    known, before = [context.cases[i] for i in rows], baseline(context, behaviour, rows)
    found = eval_over_refusal(known, before, after, steered=marks)
    names = (
        "benign", "everything", "answered", "harmful", "tasks", "counts", "why", "changed",
        "reached", "gated", "reduction", "retained", "retained_reached", "selectivity",
    )  # fmt: skip
    counts = {side: each["after"] for side, each in found.counts.items()}
    invented = [i for i, row in enumerate(rows) if context.invented(row)]
    return plain(
        {name: getattr(found, name) for name in names}
        | {"counts": counts, "became": "".join(code(label) for label in after.labels)}
        | {"induced": share_of(after.refused[invented] == 1) if invented else None}
    )


def code(label: Label) -> str:
    """One letter for what became of a row: refused, answered or neither."""
    return "R" if label in REFUSALS else "A" if label == "direct_answer" else "-"


def told_apart(context: RefusalContext, logits: Callable[[list[int]], Tensor]) -> dict[str, Result]:
    """Whether a change takes away a difference between classes, or only moves a threshold.

    By the refusal score of the next token on test rows: auc, the chance that a refused row scores
    above another one, plain and changed; shift, the mean change of the score of either class, in
    nats. Classes: proper refusals against answered rows of their tasks; against requests with an
    invented answer; over-refusals against answered rows of their tasks. Classes of fewer than
    `LEAST` rows are left out.
    """
    proper = context.rows("test", should="refuse", refused=True)
    over = context.rows("test", should="answer", refused=True)
    pairs = {
        "proper refusals / answered": (proper, context.proper_tasks, "answer"),
        "proper refusals / invented": (proper, context.proper_tasks, "refuse"),
        "over-refusals / answered": (over, {context.cases[i].task for i in over}, "answer"),
    }
    found: dict[str, Result] = {}
    for name, (first, tasks, should) in pairs.items():
        second = context.rows("test", should=should, refused=False, tasks=tasks)
        sides = [context.few(side, JUDGED) for side in (first, second)]
        if min(map(len, sides)) < LEAST:
            continue
        before, after = (
            [score_refusals(run(side), context.tokens) for side in sides]
            for run in (context.logits, logits)
        )
        marks = np.repeat([True, False], [len(side) for side in sides])
        found[name] = plain(
            {
                "before": auc_estimate(torch.cat(before).numpy(), marks),
                "after": auc_estimate(torch.cat(after).numpy(), marks),
                "shift": [mean_of(b - a) for a, b in zip(before, after, strict=True)],
            }
        )
    return found


def _calm(context: RefusalContext) -> list[int]:
    """Answered test rows, which no method should change."""
    return context.few(context.rows("test", should="answer", refused=False), QUALITY)


def costs(plainly: Plain, logits: Tensor, losses: Tensor) -> Result:
    """KL of the next token, what the plain replies lose (nats a token), and their perplexity."""
    sizes = [len(text) - at for text, at in zip(plainly.texts, plainly.starts, strict=True)]
    each = torch.tensor(sizes, dtype=torch.float64)
    runs = {"before": plainly.losses, "after": losses}
    return {
        "kl": mean_of(smoothed_kl(plainly.logits, logits)),
        "loss": mean_of(losses - plainly.losses),
        "perplexity": {
            name: float(((loss * each).sum() / each.sum()).exp()) for name, loss in runs.items()
        },
    }


def rows_of_ledger(context: RefusalContext, gate: Result, dose: float) -> Result:
    """What the published method decides for test rows: in total, and row by row."""
    test = context.trajectories[context.rows("test")]
    ledger = plan_steering(test, context.bank, options_of(context, gate, dose))
    table = ledger.to_dataframe()
    few = table.iloc[np.linspace(0, len(table) - 1, min(LEDGER, len(table))).astype(int)]
    return {
        "text": str(ledger),
        "steered": int(ledger.steered.sum()),
        "wrong": int(ledger.wrong_task.sum()),
        "n": len(table),
        "rows": plain(
            [{name: _cell(value) for name, value in row.items()} for row in few.to_dict("records")]
        ),
    }


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return ", ".join(f"{x:z.2f}" if isinstance(x, float) else str(x) for x in value)
    return value


def chance(
    context: RefusalContext, places: Places, dose: float | None, heads: Sequence[str]
) -> Result:
    """Two selections compared with twenty random ones each, on refused test rows.

    Measured by the refusal score of the next token: twenty draws cost less than one set of texts.
    The over-refusal direction subtracted at a dose (None: left out), against random directions of
    its length at its place; and heads zeroed at all tokens (empty: left out), against random heads
    of their layers. fall: plain minus changed refusal score, nats. released: share of rows whose
    score falls below the threshold.
    """
    rows = {
        name: context.few(context.rows("test", should=should, refused=True), ROWS)
        for name, should in REFUSED_SIDES.items()
    }
    rows = {name: some for name, some in rows.items() if len(some) > 1}
    found: Result = {"n": {name: len(some) for name, some in rows.items()}}
    if dose is not None and "over-refusal" in places:
        own = context.direction("over-refusal", places["over-refusal"])
        scores = {side: _subtracted(context, own, dose, some) for side, some in rows.items()}
        found[SUBTRACTED] = {x: _judged(each, context.threshold) for x, each in scores.items()}
    if heads:
        scores = {side: _zeroed(context, heads, some) for side, some in rows.items()}
        found[ZEROED] = {x: _judged(each, context.threshold) for x, each in scores.items()}
    return found


def _subtracted(
    context: RefusalContext, own: Direction, dose: float, rows: Sequence[int]
) -> Tensor:
    """Scores: one row for the plain run, the chosen direction and each random one."""
    drawn = [own, *(random_direction(own, seed=seed) for seed in range(DRAWS))]
    edits = [add_direction(context.model, one, coefficient=-dose) for one in drawn]
    return torch.stack([context.scores(rows, edit) for edit in context.counted((None, *edits))])


def _zeroed(context: RefusalContext, heads: Sequence[str], rows: Sequence[int]) -> Tensor:
    """Scores: one row for the plain run, the chosen heads zeroed and each random set."""
    model = context.model
    sets = [list(heads), *random_like(model, heads, DRAWS, seed=context.settings.seed)]
    seen = ablate(
        model,
        context.prompts[rows].rows,
        [make_ablation(model, labels) for labels in sets],
        tokens=context.tokens,
        where="all",
    )
    return log_odds(torch.from_numpy(seen.probabilities.sum(-1)))


def _judged(scores: Tensor, threshold: float) -> Result:
    before, own, *random = scores.double()
    refused = before > threshold
    released = [(after <= threshold)[refused] for after in (own, *random)]
    found: Result = {
        "fall": mean_of(before - own),
        "released": share_of(released[0]),
        "fall_null": None,
        "released_null": None,
    }
    if random:
        falls = np.array([float((before - after).mean()) for after in random])
        found["fall_null"] = plain(null_of(found["fall"]["mean"], falls))
        if refused.any():
            shares = np.array([int(x.sum()) / len(x) for x in released[1:]])
            found["released_null"] = plain(null_of(found["released"]["mean"], shares))
    return found
