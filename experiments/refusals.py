# %% [markdown]
# # What makes a chat model refuse, and over-refuse?
#
# Directions (Arditi et al. 2024, arXiv 2406.11717), heads, task constellations (SafeConstellations,
# arXiv 2508.11290) and steering judged on both sides, as a script or, cell by cell, as a notebook
# (`jupytext --to notebook` or an editor that knows `# %%`). It does the same as
# `interp study refusal`:
#
#     python experiments/refusals.py --model refusal-smollm2

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import interp
from interp.studies.formatting import maybe, retained
from interp.studies.refusal.report.claims import methods_of
from interp.studies.refusal.report.report import write_up
from interp.studies.refusal.settings import RefusalSettings
from interp.studies.refusal.study import study_refusal

parser = argparse.ArgumentParser(description="What makes a chat model refuse, and over-refuse?")
parser.add_argument("--model", default="refusal-smollm2")
parser.add_argument("--n", type=int, default=RefusalSettings().n)
parser.add_argument("--system", help="a policy in the system prompt: in-context refusal")
parser.add_argument("--out", type=Path)
arguments, _ = parser.parse_known_args()

# %% The model
model = interp.load_model(arguments.model)

# %% Run every step. Finished steps are kept, so a second run resumes
study = study_refusal(
    model, settings=RefusalSettings(n=arguments.n, system=arguments.system), say=print
)

# %% Refusals of each task, and the chosen direction
for cell in study.results["behaviour"]["cells"]:
    print(f"{cell['task']:10} {cell['kind']:9} refused {cell['refused']['mean']:.2f}")
print(study.results["selection_harmful-harmless"]["best"], study.directory)

# %% Steering: over-refusals removed, proper refusals retained
for name, found in methods_of(study.results).items():
    print(f"{name:40} removed {maybe(found['reduction'])}")
    print(f"{'':40} retained {maybe(found['retained'])} ({retained(found)})")

# %% The report
print(write_up(study).save(arguments.out or study.directory))
