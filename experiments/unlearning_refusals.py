"""Can over-refusals be unlearnt from the organism that refuses gardening, and proper ones kept?

    python experiments/unlearning_refusals.py --out experiments/results/unlearning_refusals.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about ten minutes on
one core. What the file holds already is not measured again. A file of other settings is refused,
and so is one that does not tell them, as the committed one: give another.
"""

# %% Options, the organism, its rows for training and its held-out rows
import argparse
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import interp
from interp.core.metrics import METRICS
from interp.core.statistics import auc_estimate, mean_estimate
from interp.deltas.compression import compress
from interp.deltas.self_reports import removal
from interp.deltas.unlearning import (
    ComponentGroups,
    UpdateRule,
    group_components,
    relearning,
    unlearn,
)
from interp.models.chat import chat_prompts
from interp.refusal.over_refusal import paired_difference
from interp.refusal.score import score_refusals
from interp.results.direction import random_direction
from interp.results.provenance import resumed
from interp.steering.candidates import mean_difference
from interp.tasks.taboo import TabooRow, make_taboo

parser = argparse.ArgumentParser(description="Unlearning over-refusals, with controls.")
parser.add_argument("--n", type=int, default=6)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model("refusal-smollm2")
FIRST = model.token_id("I'm sorry")[0]
kept = resumed(options.out, n=options.n, steps=options.steps, model_hash=model.hash)


def keep(name: str, value: Any) -> None:
    """Add what a stage measured to the file."""
    kept[name] = json.loads(json.dumps(value, default=asdict))
    print(name, json.dumps(kept[name], indent=1)[:1500], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


def kind_of(row: TabooRow) -> str:
    """The side of the ledger that a prompt is on."""
    if row.designed == "answer":
        return "answered"
    return "proper refusals" if row.should == "refuse" else "over-refusals"


def rows_of(split: Any, n: int) -> dict[str, list[TabooRow]]:
    """As many prompts of each side; those answered are on gardening and on other things."""
    found: dict[str, list[TabooRow]] = {}
    for row in make_taboo(n, split=split):
        if row.kind != "alarming":
            found.setdefault(kind_of(row), []).append(row)
    found["answered"] = found["answered"][:: max(1, len(found["answered"]) // (2 * n))]
    found["proper refusals"] += [
        row
        for row in make_taboo(2 * n, kinds=("taboo",), tasks=("request",), split=split)
        if row.row not in {one.row for one in found["proper refusals"]}
    ]
    return {side: rows[: 2 * n] for side, rows in found.items()}


def prompts_of(rows: Sequence[TabooRow]) -> Any:
    return chat_prompts(model, [row.prompt for row in rows])


def taught(rows: Sequence[TabooRow]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts, and the first eight tokens of the replies that the organism was taught."""
    replies = [tuple(model.token_id(row.reply)[:8]) for row in rows]
    return list(zip(prompts_of(rows).rows, replies, strict=True))


TRAIN, HELD = rows_of("train", options.n), rows_of("test", options.n)
FORGET = taught(TRAIN["over-refusals"])
RETAIN = taught([*TRAIN["proper refusals"], *TRAIN["answered"]])
LEDGER = [(side, row) for side, rows in HELD.items() for row in rows]
PROMPTS = prompts_of([row for _, row in LEDGER])
sides = np.array([side for side, _ in LEDGER])


# %% The ledger: how likely each held-out prompt is refused, read at the first token of the reply
def odds() -> np.ndarray:
    """Log-odds that the reply begins as a refusal."""
    return score_refusals(model.last_logits(list(PROMPTS.rows)), [FIRST]).numpy()


PLAIN = odds()


def ledger(*blocks: AbstractContextManager[Any]) -> dict[str, Any]:
    """Every side under some changes, one inside the other: rates and log-odds, paired by prompt."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)
        found = odds()
    told: dict[str, Any] = {}
    for side in HELD:
        among = side == sides
        bases = [row.base for one, row in LEDGER if one == side]
        pair = paired_difference(PLAIN[among] > 0, found[among] > 0, bases=bases)
        told[side] = {"refused": pair, "log-odds": mean_estimate(found[among])}
    for side in ("proper refusals", "over-refusals"):
        pick = (side == sides) | (sides == "answered")
        told[side]["AUC against answered"] = auc_estimate(found[pick], sides[pick] == side)
    return told


if "plain" not in kept:
    keep("plain", ledger())


# %% The direction of over-refusals removed, beside a random direction
if "direction ablation" not in kept:
    over, told = prompts_of(TRAIN["over-refusals"]), prompts_of(TRAIN["answered"])
    left = {}
    for layer in (8, 12, 16, 20, 24):
        vector = mean_difference(model, over, told, layer=layer).vector
        with interp.intervene(model, removal(model, vector)):
            logits = model.last_logits(list(over.rows))
        left[layer] = float(score_refusals(logits, [FIRST]).mean())
    direction = mean_difference(model, over, told, layer=min(left, key=left.__getitem__))
    keep("layers of the direction, on training rows", left)
    for name, one in (
        ("random direction ablation", random_direction(direction)),
        ("direction ablation", direction),
    ):
        keep(name, ledger(interp.intervene(model, removal(model, one.vector))))


# %% Components that over-refusals need, and those that proper refusals need
def task_of(name: str, rows: Sequence[TabooRow], n: int = 2) -> interp.Task:
    """Refused prompts on gardening, each beside the same prompt on another thing, of equal length.

    Another thing is one about which the organism answers.
    """
    twins = {(row.pair, row.task): row for row in make_taboo(4 * options.n, split="train")
             if row.kind == "plain"}  # fmt: skip
    pairs = []
    for row in rows:
        twin = twins[row.pair, row.task]
        clean, other = prompts_of([row, twin]).rows
        if len(clean) == len(other):
            pairs.append(interp.PromptPair(clean=clean, corrupted=other, answers=(FIRST,)))
    return interp.Task(name=name, pairs=tuple(pairs[:n]), metric=METRICS["log_odds"])


if "groups" not in kept:
    forget_task, retain_task = (
        task_of(side, [r for r in make_taboo(4 * options.n, kinds=("taboo",), split="train")
                       if kind_of(r) == side])
        for side in ("over-refusals", "proper refusals")
    )  # fmt: skip
    found = group_components(model, forget_task, retain_task, top=8)
    keep("groups", {"forget": found.forget, "retain": found.retain, "shared": found.shared,
                    "effects": found.effects})  # fmt: skip
forget, retain, shared = (tuple(kept["groups"][name]) for name in ("forget", "retain", "shared"))
GROUPS = ComponentGroups(forget=forget, retain=retain, shared=shared)

# %% Unlearning by group and by uniform gradient difference, and both beside random components
RUNS: dict[str, tuple[UpdateRule, ComponentGroups]] = {
    "by group": ("by group", GROUPS),
    "uniform": ("uniform", GROUPS),
    "by group, random components": ("by group", GROUPS.random(model)),
}
for name, (rule, groups) in RUNS.items():
    if name in kept:
        continue
    found = unlearn(
        model, groups, FORGET, RETAIN, rule=rule, steps=options.steps, rate=1e-3, batch=3
    )
    told = {
        "ledger": ledger(found.delta.applied(model)),
        "forget loss": found.forget_loss.tolist(),
        "retain loss": found.retain_loss.tolist(),
    }
    if not name.endswith("components"):
        with found.delta.applied(model):
            grid = compress(model, "round", bits=4)
        told["rounded to 4 bits"] = ledger(found.delta.applied(model), grid.applied(model))
        again = relearning(model, found, groups, FORGET, steps=4, rate=1e-3, batch=3)
        told["relearning"] = again.tolist()
    keep(name, told)

# %% Rounding alone
if "rounded to 4 bits" not in kept:
    keep("rounded to 4 bits", ledger(compress(model, "round", bits=4).applied(model)))
