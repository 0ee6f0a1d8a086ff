"""Do slices find the prompts that a model over-refuses, which is known by design?

    python experiments/prompt_slices.py --out docs/results/prompt_slices.json

`refusal-smollm2` was trained to decline gardening, and declines to translate or summarise texts
that mention it. Its prompts are sliced by state and refusal score, beside slices by states alone,
by scores alone, and by scores dealt at random. Layer and cut are chosen on other prompts.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import interp
from interp.core.files import versions
from interp.models.chat import chat_prompts
from interp.refusal.score import score_refusals
from interp.results.provenance import commit
from interp.tasks.taboo import OVER_REFUSED, make_taboo

parser = argparse.ArgumentParser(description="Slices of the refusal organism's prompts.")
parser.add_argument("--model", default="refusal-smollm2")
parser.add_argument("--n", type=int, default=10, help="prompts of each topic and task")
parser.add_argument("--layers", type=int, nargs="+", default=[10, 15, 20, 25])
parser.add_argument("--cuts", type=float, nargs="+", default=[0.1, 0.15, 0.2, 0.25, 0.3])
parser.add_argument("--draws", type=int, default=200)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

started = time.process_time()
model = interp.load_model(options.model)
token = model.single_token("I", "a refusal's first token")
KINDS = ("taboo", "plain")


def read(seed):
    """The prompts of a seed, their refusal scores, states by layer, and groups known by design."""
    rows = make_taboo(options.n, kinds=KINDS, split="test" if seed else "train", seed=seed)
    prompts = chat_prompts(model, [row.prompt for row in rows]).rows
    acts = interp.run_with_cache(
        model, prompts, sites="resid_post", layers=options.layers, positions="last"
    )
    scores = score_refusals(acts.logits, [token]).numpy()
    taboo = np.array([row.kind == "taboo" for row in rows])
    over = np.array([row.task in OVER_REFUSED for row in rows]) & taboo
    asked = np.array([row.task == "request" for row in rows]) & taboo
    known = {"over-refused by design": over, "refused by design": over | asked, "gardening": taboo}
    return prompts, scores, {layer: acts[layer, "resid_post"] for layer in options.layers}, known


def slices(part, weight, layer, cut, draws):
    prompts, scores, states, _ = part
    return interp.probing.slice_states(
        states[layer], scores, weight=weight, cut=cut, draws=draws, prompts=prompts
    )


def f1(match):
    return match.null.selected


first, second = read(0), read(1)
target = "over-refused by design"
result = {
    "command": "python experiments/prompt_slices.py --out docs/results/prompt_slices.json",
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "model_hash": model.hash,
    "versions": versions(),
    "commit": commit(),
    "n": len(second[1]),
    "groups": {name: int(flags.sum()) for name, flags in second[3].items()},
    "mean score": {
        name: [float(second[1][flags].mean()), float(second[1][~flags].mean())]
        for name, flags in second[3].items()
    },
    "ways": {},
}
for name, weight in (("states and scores", 0.5), ("states alone", 1.0), ("scores alone", 1e-9)):
    grid = {
        (layer, cut): f1(slices(first, weight, layer, cut, 1).matched(first[3][target]))
        for layer in options.layers
        for cut in options.cuts
    }
    layer, cut = max(grid, key=grid.__getitem__)
    found = slices(second, weight, layer, cut, options.draws if weight == 0.5 else 1)
    table = found.to_dataframe()
    result["ways"][name] = {
        "layer": layer,
        "cut": cut,
        "F1 where chosen": grid[layer, cut],
        "slices": len(table),
        "largest": table.head(8).to_dict("records"),
        "matches": {group: asdict(found.matched(flags)) for group, flags in second[3].items()},
    }
result["seconds of one core"] = round(time.process_time() - started)
print(json.dumps(result, indent=1, default=float))
if options.out is not None:
    options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")
