# %% [markdown]
# # What makes a chat model refuse, and over-refuse?
#
# Directions (Arditi et al. 2024, arXiv 2406.11717), heads, task constellations (SafeConstellations,
# arXiv 2508.11290) and steering judged on both sides, as a script or, cell by cell, as a notebook
# (`jupytext --to notebook` or an editor that knows `# %%`). The same as `interp study refusal`:
#
#     python experiments/refusals.py --model refusal-smollm2

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import interp
from interp.studies.refusal.context import Settings
from interp.studies.refusal.sections_steered import methods_of
from interp.studies.refusal.study import study_refusal
from interp.studies.refusal.write_up import write_up

parser = argparse.ArgumentParser(description="What makes a chat model refuse, and over-refuse?")
parser.add_argument("--model", default="refusal-smollm2")
parser.add_argument("--n", type=int, default=Settings().n)
parser.add_argument("--system", help="a policy in the system prompt: in-context refusal")
parser.add_argument("--out", type=Path)
arguments, _ = parser.parse_known_args()

# %% The model
model = interp.load_model(arguments.model)

# %% Every step, kept as it ends; run again, it goes on from there
study = study_refusal(model, settings=Settings(n=arguments.n, system=arguments.system), say=print)

# %% What becomes of each task, and what the directions are
for cell in study.results["behaviour"]["cells"]:
    print(f"{cell['task']:10} {cell['kind']:9} refused {cell['refused']['mean']:.2f}")
print(study.results["selection_harmful-harmless"]["best"], study.directory)

# %% Steering: over-refusals removed, proper refusals retained
for name, found in methods_of(study.results).items():
    sides = (found[side] for side in ("reduction", "retained"))
    removed, retained = ("none before" if x is None else f"{x['mean']:.2f}" for x in sides)
    print(f"{name:40} removed {removed}   retained {retained}")

# %% The report
print(write_up(study).save(arguments.out or study.directory))
