"""Which heads of the default model carry IOI: found on one half, confirmed on the other.

    python experiments/ioi_heads.py --out experiments/results/ioi_heads.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about six minutes on
one core.
"""

# %% Options, model and task
import argparse
import json
from dataclasses import asdict
from pathlib import Path

import interp

parser = argparse.ArgumentParser(description="Heads that carry IOI, with controls.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=64)
parser.add_argument("--k", type=int, default=5)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
task = interp.load_task("ioi", model, n=options.n)
report = task.check(model)
print(report)
find, confirm = task.split(0.5, seed=0)

# %% Find on one half
found = interp.activation_patching(model, find, direction="denoise")
labels = [one.label for one in found.top(options.k)]
ablated = interp.activation_patching(model, find, direction="noise")
print(found.top(options.k), found.agreement(ablated))

# %% Confirm together on the other half, against random heads of the same layers
together = {
    direction: interp.joint_patching(model, confirm, labels, direction=direction, draws=40)
    for direction in ("denoise", "noise")
}
for direction, effect in together.items():
    print(direction, effect)

# %% Which of them write to the logits themselves
direct = interp.path_patching(model, confirm, receivers=["logits"])
print(direct.top(options.k))

# %% Save
if options.out is not None:
    result = {
        "command": f"python experiments/ioi_heads.py --n {options.n} --k {options.k}",
        "check": asdict(report),
        "found": [asdict(one) for one in found.top(options.k)],
        "agreement_denoise_noise": found.agreement(ablated),
        "together": {name: asdict(effect) for name, effect in together.items()},
        "direct": [asdict(one) for one in direct.top(options.k)],
        "provenance": asdict(found.provenance),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, default=str) + "\n")
