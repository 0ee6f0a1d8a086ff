"""Which habits does a model that checks its sums show in its own texts, and which heads begin them?

    python experiments/habits.py --out experiments/results/habits.json

Greedy texts of CountDown problems, one of each problem. For each habit with enough onsets: pairs
that end where it begins and at a matched place where it does not (`interp.tasks.habit_task`). One
gradient on the first half of the pairs names heads; each is patched on the second half, alone and
together with the others, beside random heads of the same layers, and at places without the habit.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import interp
from interp.core.files import versions
from interp.core.nulls import holm
from interp.results.provenance import commit
from interp.tasks.countdown import make_countdown
from interp.tasks.habits import RULES

parser = argparse.ArgumentParser(description="Habits in CountDown texts, and the heads of each.")
parser.add_argument("--models", nargs="+", default=["countdown-tiny", "countdown-smollm2"])
parser.add_argument("--n", type=int, default=200, help="problems")
parser.add_argument("--tokens", type=int, default=72, help="of each text, about three attempts")
parser.add_argument("--pairs", type=int, default=32, help="at most, half of them for the gradient")
parser.add_argument("--least", type=int, default=16, help="pairs below which no head is asked for")
parser.add_argument("--k", type=int, default=5, help="heads that are tested together")
parser.add_argument("--draws", type=int, default=19, help="random sets of heads")
parser.add_argument("--seed", type=int, default=21)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

started = time.process_time()
result = {
    "command": "python experiments/habits.py --out experiments/results/habits.json",
    "rules": RULES,
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "versions": versions(),
    "commit": commit(),
    "models": {},
}


def keep(model, **stage):
    result["models"].setdefault(model.name, {"hash": model.hash}).update(stage)
    result["seconds of one core"] = round(time.process_time() - started)
    print(model.name, json.dumps(stage, default=float)[:900], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


def heads_of(model, task, null):
    """The heads that begin a habit: named on one half of the pairs, tested on the other."""
    found, tested = task.split(0.5)
    report = task.check(model)
    estimated = interp.attribution_patching(model, found).top(options.k)
    heads = [one.label for one in estimated]
    alone = [interp.joint_patching(model, tested, [head], draws=0) for head in heads]
    adjusted = holm([one.flips.p for one in alone])
    row = {
        "pairs": len(task),
        "accuracy": asdict(report.accuracy),
        "clean": asdict(report.clean),
        "corrupted": asdict(report.corrupted),
        "named": [
            {"head": one.label, "estimated": one.value, "p": p, **asdict(exact.effect)}
            for one, exact, p in zip(estimated, alone, adjusted, strict=True)
        ],
        "together": asdict(interp.joint_patching(model, tested, heads, draws=options.draws)),
        "together, in logits": asdict(
            interp.joint_patching(model, tested, heads, unit="metric", draws=0).effect
        ),
    }
    if null is not None:
        plain = interp.joint_patching(model, null, heads, unit="metric", draws=0)
        row["where it does not begin, in logits"] = asdict(plain.effect)
        row["the metric there"] = asdict(null.check(model).clean)
    return row


for name in options.models:
    model = interp.load_model(name)
    problems = make_countdown(options.n, operands=[3], seed=options.seed)
    texts = interp.generate(model, [one.prompt() for one in problems], options.tokens)
    habits = interp.tasks.find_habits([one.text for one in texts])
    keep(model, habits=habits.to_dataframe().to_dict("records"))
    rows = {}
    for habit in habits.names:
        onsets = int((habits.counts(habit) > 0).sum())
        if onsets < options.least:
            rows[habit] = {"texts that show it": onsets}
            continue
        made = interp.tasks.habit_task(model, texts, habit)
        task = made.task.first(min(options.pairs, len(made.task)))
        rows[habit] = {"texts that show it": onsets, "without a matched place": made.unmatched}
        if len(task) >= options.least:
            null = made.null and made.null.first(min(options.pairs // 2, len(made.null)))
            rows[habit] |= heads_of(model, task, null)
        else:
            rows[habit]["pairs"] = len(task)
        keep(model, heads=rows)
