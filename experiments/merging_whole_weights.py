"""Two runs that trained all weights, merged: which behaviours survive, and do their heads?

    python training/small_tasks.py        # the two changes of weights, in the cache
    python experiments/merging_whole_weights.py --out experiments/results/merging_whole_weights.json

Heads are found on some prompts in the model that was trained on a task alone; in every merge they
are patched together on other prompts, beside random heads of the same layers. The third behaviour
is the verdict of the base, which neither run was trained on. It takes a minute on one core.
"""

# %% The base, the two changes, their held-out prompts
import argparse
from contextlib import suppress
from pathlib import Path
from typing import get_args

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir, json_text
from interp.core.metrics import METRICS
from interp.core.statistics import share_estimate
from interp.deltas.merging import MergeRule, merge
from interp.models.weight_delta import load_delta
from interp.studies.steps import plain
from interp.studies.training.settings import verdict

parser = argparse.ArgumentParser(description="Merging runs that trained all weights.")
parser.add_argument("--heads", type=int, default=3)
parser.add_argument("--draws", type=int, default=20)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

base, folder = interp.load_model("countdown-tiny"), cache_dir() / "small-tasks"
deltas = [load_delta(folder / name, base) for name in ("after", "largest")]
tasks = {
    one.name: interp.Task.from_jsonl(folder / f"{one.name}.jsonl", name=one.name).with_metric(
        METRICS["logit_diff"]
    )
    for one in deltas
}
halves = {name: task.split(seed=0) for name, task in tasks.items()}
judged = verdict(base, 100)
heads: dict[str, list[str]] = {}
found: dict[str, dict] = {}


# %% What a change does to each behaviour, and what the heads of each carry there
def measured() -> dict:
    """Accuracy and metric of each task, the heads' share of the gap, and the base's verdicts."""
    right = judged.read(base) > 0
    told: dict = {"verdict": share_estimate(int(right.sum()), len(right))}
    for name, (_, test) in halves.items():
        check = test.check(base)
        told[name] = {"accuracy": check.accuracy, "logit difference": check.clean}
        if name in heads:
            with suppress(InterpError):  # there is no gap to share
                joint = interp.joint_patching(base, test, heads[name], draws=options.draws)
                told[name]["heads"] = {"effect": joint.effect, "random": joint.null}
    return told


found["base"] = measured()
for delta in deltas:
    with delta.applied(base):
        scores = interp.activation_patching(
            base, halves[delta.name][0], site="z", by=("layer", "head")
        )
        heads[delta.name] = [one.label for one in scores.top(options.heads)]
        found[f"{delta.name} alone"] = measured() | {"its heads": heads[delta.name]}
for rule in get_args(MergeRule):
    one = merge(deltas, rule)
    with one.delta.applied(base):
        found[rule] = measured() | {
            "shares": one.shares(),
            "cosine": float(one.cosines[0, 1]),
        }

# %% The file
text = json_text(plain(found), indent=1)
print(text)
if options.out is not None:
    options.out.write_text(text + "\n")
