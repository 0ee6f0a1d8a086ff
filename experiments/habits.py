"""Which habits of reasoning does a model show that writes CountDown, and which heads begin one?

    python experiments/habits.py --out docs/results/habits.json

Texts of the model that was taught the task, and of the model it was tuned from, by the same rules.
Heads are found on one half of the onsets of "(not ...)" and measured on the other half.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import interp
from interp.core.files import versions
from interp.results.provenance import commit
from interp.tasks.countdown import make_countdown

parser = argparse.ArgumentParser(description="Habits, and the heads behind one of them.")
parser.add_argument("--model", default="countdown-smollm2")
parser.add_argument("--base", default="smollm2-135m-instruct")
parser.add_argument("--habit", default="rejecting")
parser.add_argument("--n", type=int, default=120, help="texts of the model")
parser.add_argument("--n-base", type=int, default=24, help="texts of the base")
parser.add_argument("--pairs", type=int, default=16, help="most pairs of each half")
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--heads", type=int, default=5)
parser.add_argument("--draws", type=int, default=10)
parser.add_argument("--seed", type=int, default=3)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

started = time.process_time()
result = {
    "command": "python experiments/habits.py --out docs/results/habits.json",
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "versions": versions(),
    "commit": commit(),
}


def keep(**stage):
    result.update(stage)
    result["seconds of one core"] = round(time.process_time() - started)
    print(json.dumps(stage, indent=1, default=float), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


problems = make_countdown(options.n, operands=[3], seed=options.seed)
model = interp.load_model(options.model)
texts = interp.generate(model, [one.prompt() for one in problems], options.tokens)
base = interp.load_model(options.base)
asked = [one.prompt("in-context") for one in problems[: options.n_base]]
others = interp.generate(base, asked, options.tokens)
keep(
    model_hash=model.hash,
    base_hash=base.hash,
    habits={
        name: interp.tasks.find_habits([one.text for one in some]).to_dataframe().to_dict("records")
        for name, some in ((options.model, texts), (options.base, others))
    },
)

# %% Which heads begin it: found on one half, measured on the other
made = interp.tasks.habit_task(model, texts, options.habit)
found, test = (half.first(options.pairs) for half in made.task.split(seed=options.seed))
keep(
    onsets={
        "pairs": len(made.task),
        "unmatched": made.unmatched,
        "check": asdict(made.task.check(model)),
        "null check": None if made.null is None else asdict(made.null.check(model)),
    }
)
scores = interp.activation_patching(model, found, site="z", by=("layer", "head"), positions="last")
best = [one.label for one in scores.top(options.heads)]

together = interp.joint_patching(model, test, best, draws=options.draws, seed=options.seed)
keep(heads=best, found_on=len(found), measured_on=len(test), together=asdict(together))
in_logits = {
    name: asdict(
        interp.joint_patching(model, task, best, unit="metric", draws=options.draws, seed=0)
    )
    for name, task in (("onset", test), ("no onset", made.null and made.null.first(options.pairs)))
    if task is not None
}
keep(in_logits=in_logits)
