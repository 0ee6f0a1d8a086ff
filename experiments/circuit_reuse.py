# %% [markdown]
# # Do tasks share circuits?
#
# The study of Merullo et al. 2024 (arXiv 2310.08744) step by step, as a script or, cell by cell,
# as a notebook (`jupytext --to notebook` or an editor that knows `# %%`). It does the same as
# `interp study reuse`:
#
#     python experiments/circuit_reuse.py --model smollm2-135m-instruct --out report

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import interp
from interp.studies.reuse.report.report import write_up
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.reuse.study import study_reuse, trained_from

parser = argparse.ArgumentParser(description="Do tasks share circuits?")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=48)
parser.add_argument("--tested", type=int, default=150)
parser.add_argument("--sets", type=int, default=30)
parser.add_argument("--out", type=Path, default=None)
arguments, _ = parser.parse_known_args()

# %% The model, and the one trained from it on Colored Objects
model = interp.load_model(arguments.model)
trained = interp.load_model(name) if (name := trained_from(arguments.model)) else None

# %% Run every step. Finished steps are kept, so a second run resumes
settings = ReuseSettings(n=arguments.n, tested=arguments.tested, sets=arguments.sets)
study = study_reuse(model, trained, settings=settings, say=print)

# %% Overlap of each pair of circuits, against random heads of the same layers
for row in study.results["overlap"]["pairs"]:
    x = row["matched"]
    print(f"{' / '.join(row['pair']):60} {x['value']:.2f}  random {x['null']['mean']:.2f}")

# %% The repairing intervention, against random heads
none = study.results["repair"]["none"]["right"]["mean"]
for name, found in study.results["repair"]["sets"].items():
    right = found["right"]
    print(f"{name:40} {none:.2f} -> {right['mean']:.2f}  random up to {max(right['null']):.2f}")

# %% The report
print(write_up(study).save(arguments.out or study.directory))
