# %% [markdown]
# # How does a model check its own answer?
#
# The study of Lee et al. 2025 (arXiv 2504.14379) step by step, as a script or, cell by cell, as a
# notebook (`jupytext --to notebook` or an editor that knows `# %%`). It does the same as
# `interp study verification`:
#
#     python experiments/self_verification.py --model countdown-smollm2 --n 300

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import interp
from interp.models.registry import base_of
from interp.studies.verification.report.report import write_up
from interp.studies.verification.settings import VerificationSettings
from interp.studies.verification.study import study_verification

parser = argparse.ArgumentParser(description="How does a model check its own answer?")
parser.add_argument("--model", default="countdown-smollm2")
parser.add_argument("--n", type=int, default=300)
parser.add_argument("--draws", type=int, default=50)
parser.add_argument("--out", type=Path, default=None)
arguments, _ = parser.parse_known_args()

# %% The model, and the one it was trained from
model = interp.load_model(arguments.model)
base = interp.load_model(name) if (name := base_of(arguments.model)) else None

# %% Run every step. Finished steps are kept, so a second run resumes
study = study_verification(
    model, base, settings=VerificationSettings(n=arguments.n, draws=arguments.draws), say=print
)

# %% Head sets that disable verification, against random heads of the same layers
for name, found in study.results["effects_zero"]["sets"].items():
    share, random = found["disabled"]["mean"], found["null"]["disabled"]
    print(f"{name:28} {share:.2f}   random {min(random):.2f} to {max(random):.2f}")

# %% The report
print(write_up(study).save(arguments.out or study.directory))
