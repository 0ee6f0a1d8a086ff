"""Which of the short tasks of language and knowledge the default model does.

    python experiments/language_tasks.py --out docs/results/language_tasks.json

It takes about two minutes on one core.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import interp
from interp.core.files import versions
from interp.results.provenance import commit
from interp.tasks.language import LANGUAGE_TASKS

parser = argparse.ArgumentParser(description="Accuracy of the default model on short tasks.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=64, help="prompts of a task")
parser.add_argument("--seed", type=int, default=1, help="no template was chosen on this seed's")
parser.add_argument("--out", type=Path)
options = parser.parse_args()
COMMAND = "experiments/language_tasks.py --out docs/results/language_tasks.json"

model = interp.load_model(options.model)
rows = {}
for name in ("capitals", *LANGUAGE_TASKS):
    n = min(options.n, 32) if name == "long_capitals" else options.n
    report = interp.load_task(name, model, n=n, seed=options.seed).check(model)
    print(report, flush=True)
    rows[name] = {
        "metric": report.metric,
        "repeated": report.repeated,
        "accuracy": asdict(report.accuracy),
        "preferred": asdict(report.preferred),
        "clean": asdict(report.clean),
    }
    if options.out is not None:
        told = {
            "command": f"python {COMMAND}",
            "options": {key: value for key, value in vars(options).items() if key != "out"},
            "model": model.name,
            "model_hash": model.hash,
            "versions": versions(),
            "commit": commit(),
            "tasks": rows,
        }
        options.out.write_text(json.dumps(told, indent=1) + "\n")
