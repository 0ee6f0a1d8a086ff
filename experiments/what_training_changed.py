"""What training changed in the shipped organisms, and what merging and compression leave of it.

    python experiments/what_training_changed.py --out experiments/results/what_training_changed.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about half an hour on
one core. Finished steps are kept in the cache, and the same call goes on from them.
`interp weights report` writes the same as a report.
"""

# %% Options and the base
import argparse
from pathlib import Path

import interp
from interp.core.files import json_text
from interp.studies.training.settings import TrainingSettings
from interp.studies.training.study import study_training

parser = argparse.ArgumentParser(description="What training changed, with controls.")
parser.add_argument("--n", type=int, default=48)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

# %% Every step, and the file
model = interp.load_model("smollm2-135m-instruct")
study = study_training(model, settings=TrainingSettings(n=options.n), say=print)
if options.out is not None:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json_text(study.results, indent=1) + "\n")
