"""Does tuning lose syntax? Eight probing tasks on the default model and on one tuned from it.

    python experiments/probe_suites.py --out docs/results/probe_suites.json

Sentences are made by a grammar; half of the words are for training, half for test sentences. The
file is written after every task, and says how many seconds of one core it took.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import interp
from interp.core.files import versions
from interp.core.statistics import range_of_draws
from interp.probing.sentence_tasks import TASKS
from interp.results.provenance import commit

parser = argparse.ArgumentParser(description="Probing tasks before and after tuning.")
parser.add_argument("--model", default="countdown-smollm2")
parser.add_argument("--against", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=300, help="sentences of a task")
parser.add_argument("--test", type=float, default=0.4, help="share of them that is held out")
parser.add_argument("--layers", default="0,6,12,18,24,29")
parser.add_argument("--shuffles", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path)
options = parser.parse_args()
COMMAND = "experiments/probe_suites.py --out docs/results/probe_suites.json"


def told(probes):
    """Accuracy by layer, with interval and null."""
    flat = probes.shuffled.reshape(len(probes.shuffled), -1)
    columns = (probes.values, probes.low, probes.high)
    rows = [
        {
            "accuracy": a,
            "low": b,
            "high": c,
            "shuffled": cell.mean(),
            "to": max(range_of_draws(cell)),
        }
        for a, b, c, cell in zip(*(x.ravel().tolist() for x in columns), flat.T, strict=True)
    ]
    return {"p_any": probes.p_any, "rows": rows}


def gap(found):
    """A paired difference by layer."""
    columns = (found.values, found.low, found.high, found.p)
    rows = [
        {"difference": a, "low": b, "high": c, "p": p}
        for a, b, c, p in zip(*(x.ravel().tolist() for x in columns), strict=True)
    ]
    return {"p_any": found.p_any, "rows": rows}


model, against = (interp.load_model(name) for name in (options.model, options.against))
layers = [int(layer) for layer in options.layers.split(",")]
started, suite = time.process_time(), None
for task in TASKS:
    sentences = interp.probing.probe_sentences(
        task, n=options.n, test_share=options.test, seed=options.seed
    )
    one = interp.probing.probe_suite(
        model, against=against, tasks=sentences, layers=layers, shuffles=options.shuffles
    )
    if suite is not None:
        one = replace(one, tasks={**suite.tasks, **one.tasks}, base={**suite.base, **one.base})
    suite, apart = one, one.differences
    result = {
        "command": f"python {COMMAND}",
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "models": {one.model: one.model_hash, one.against: one.against_hash},
        "versions": versions(),
        "commit": commit(),
        "seconds of one core": round(time.process_time() - started),
        "layers": layers,
        "tasks": {
            name: {
                "classes": len(found.states.classes),
                "n_train": found.states.n_train,
                "n_test": found.states.n_test,
                "most frequent class": found.states.baseline,
                **{
                    which: {
                        "states": told(probes.states),
                        "words": told(probes.words),
                        "outputs": told(probes.outputs),
                        "beyond words": gap(probes.beyond_words),
                        "beyond outputs": gap(probes.beyond_outputs),
                    }
                    for which, probes in ((one.model, found), (one.against, one.base[name]))
                },
                "model minus against": gap(apart[name]),
                "p of any difference, by Holm": one.p_of_differences[name],
            }
            for name, found in one.tasks.items()
        },
    }
    print(one, result["seconds of one core"], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
