"""Is "the result equals the target" one variable of the model, where, and of what dimension?

    python experiments/verdict_subspace.py --out experiments/results/verdict_subspace.json

For a model that judges its own CountDown attempts, the state at " (" is exchanged between attempts
within a fitted subspace, layer by layer, beside the rivals of `interp.probing.fit_subspace`. A
percent script, which opens as a notebook in VS Code or Jupytext. It takes about half an hour on one
core. What the file holds already is not measured again: delete it to begin anew.
"""

# %% Options and texts
import argparse
import json
from pathlib import Path
from typing import Any

import interp
from interp.tasks.countdown import cut_attempts

parser = argparse.ArgumentParser(description="A subspace for the verdict.")
parser.add_argument("--n", type=int, default=96)
parser.add_argument("--dims", type=int, nargs="+", default=[1, 4])
parser.add_argument("--out", type=Path)
options = parser.parse_args()

MODELS = {
    "countdown-tiny": (range(4), 96, 80),
    "countdown-smollm2": ((19, 18, 17, 16, 21, 14), 64, 40),
}
"""Of each model: the layers, the exchanges of a half, and the steps of a fit."""

TEXTS, REACHED = cut_attempts(options.n)
kept: dict[str, Any] = (
    json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
)

# %% One fit for each model, layer and dimension; an untrained model beside the first of each
for name, (layers, n, steps) in MODELS.items():
    model = interp.load_model(name)
    for layer in layers:
        for dim in options.dims:
            key = f"{name} layer {layer}, {dim} dimensions"
            if key in kept:
                continue
            found = interp.probing.fit_subspace(
                model,
                TEXTS,
                REACHED,
                {True: "this", False: "not"},
                layer=layer,
                dim=dim,
                n=n,
                steps=steps,
                untrained=name == "countdown-tiny" and dim == options.dims[-1],
            )
            kept[key] = {
                "model_hash": found.model_hash,
                "loss": [float(found.loss[0]), float(found.loss[-1])],
                "tests": found.to_dataframe().to_dict("records"),
            }
            print(key, found, sep="\n  ", flush=True)
            print(found.to_dataframe().to_string(index=False), flush=True)
            if options.out is not None:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(kept, indent=1) + "\n")
