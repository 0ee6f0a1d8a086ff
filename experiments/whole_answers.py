"""Does the first token of an answer tell which heads carry all of it?

    python experiments/whole_answers.py --out docs/results/whole_answers.json

Heads are ranked by attribution patching, and the best are patched exactly. It takes about a minute
on one core.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import interp
from interp.core.files import versions
from interp.core.statistics import ratio_estimate
from interp.results.provenance import commit

parser = argparse.ArgumentParser(description="Heads of first tokens and of whole answers.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=36, help="prompts, one for each country")
parser.add_argument("--heads", type=int, default=5, help="heads selected on one half")
parser.add_argument("--draws", type=int, default=20, help="random sets of heads")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--out", type=Path)
options = parser.parse_args()
COMMAND = "experiments/whole_answers.py --out docs/results/whole_answers.json"

model = interp.load_model(options.model)
task = interp.load_task("long_capitals", model, n=options.n, seed=options.seed)
strings = task.encode(model, strings=True).targets.strings or ()
kept = [i for i, (right, wrong) in enumerate(strings) if right[0] != wrong[0]]
whole = replace(task, pairs=tuple(task.pairs[i] for i in kept))
first = replace(
    whole,
    pairs=tuple(
        replace(task.pairs[i], answers=(strings[i][0][0],), wrong=(strings[i][1][0],)) for i in kept
    ),
).with_metric("logit_diff")
tasks = {
    "first token": first,
    "whole answer": whole,
    "per token": whole.with_metric("log_prob_diff_per_token"),
}
swept, told = {}, {}
for name, one in tasks.items():
    report = one.check(model)
    print(name, report, sep="\n", flush=True)
    swept[name] = interp.attribution_patching(model, one, direction="noise")
    told[name] = {
        "accuracy": asdict(report.accuracy),
        "preferred": asdict(report.preferred),
        "clean": asdict(report.clean),
        "corrupted": None if report.corrupted is None else asdict(report.corrupted),
        "top": [[x.label, round(x.value, 4)] for x in swept[name].top(10)],
    }


def ranks(one, other):
    return float(np.asarray(spearmanr(one.ravel(), other.ravel()))[0])


rng = np.random.default_rng(options.seed)
order = rng.permutation(len(kept))
halves = [np.sort(half) for half in np.array_split(order, 2)]
means = {name: [scores.effects[half].mean(0) for half in halves] for name, scores in swept.items()}
gaps = {name: scores.clean - scores.corrupted for name, scores in swept.items()}
share = ratio_estimate(gaps["first token"], gaps["whole answer"])
correlations = {
    "first token and whole answer, other half": ranks(
        means["first token"][0], means["whole answer"][1]
    ),
    "whole answer, two halves": ranks(*means["whole answer"]),
    "first token, two halves": ranks(*means["first token"]),
    "whole answer and per token, same prompts": ranks(
        swept["whole answer"].values, swept["per token"].values
    ),
}
print(share, correlations, flush=True)
held = {}
side = replace(whole, pairs=tuple(whole.pairs[i] for i in halves[1]))
for name in ("first token", "whole answer"):
    best = np.argsort(-means[name][0].ravel())[: options.heads]
    labels = [
        f"L{layer}H{head}"
        for layer, head in zip(*np.unravel_index(best, means[name][0].shape), strict=True)
    ]
    found = interp.joint_patching(
        model, side, labels, direction="noise", draws=options.draws, seed=options.seed
    )
    print(name, found, flush=True)
    held[name] = {
        "heads": labels,
        "effect": asdict(found.effect),
        "flips": asdict(found.flips),
        "null": None if found.null is None else asdict(found.null),
    }
result = {
    "command": f"python {COMMAND}",
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "model": model.name,
    "model_hash": model.hash,
    "versions": versions(),
    "commit": commit(),
    "n": len(kept),
    "tokens of answers": [len(strings[i][0]) for i in kept],
    "metrics": told,
    "first token's share of the gap": asdict(share),
    "rank correlations over heads": correlations,
    "selected on one half, measured on the other": held,
}
if options.out is not None:
    shown = json.dumps(result, indent=1, default=lambda value: np.asarray(value).tolist())
    options.out.write_text(shown + "\n")
