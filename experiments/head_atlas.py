"""The head atlas of the default model, and whether composition predicts path effects.

    python experiments/head_atlas.py --out docs/results/head_atlas.json

It takes about half an hour on one core, nearly all of it for the path effects. What the file holds
already is not measured again. A file of other settings is refused, and so is one that does not tell
them, as the committed one: give another.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import interp
from interp.core.files import versions
from interp.heads.atlas import head_atlas
from interp.heads.composition import head_composition
from interp.heads.copying import copying_scores
from interp.overview.path_agreement import composition_agreement
from interp.results.provenance import commit, resumed

parser = argparse.ArgumentParser(description="What every head does by itself.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--tasks", nargs="+", default=["induction", "ioi"])
parser.add_argument("--n", type=int, default=8, help="prompts of each task")
parser.add_argument("--k", type=int, default=6, help="receiving heads of each task")
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
settings = {name: value for name, value in vars(options).items() if name != "out"}
kept = resumed(options.out, **settings, model_hash=model.hash)


def keep(**stage):
    """Add what a stage measured to the file."""
    kept.update(stage)
    print(*stage.items(), sep="\n", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


if "named" not in kept:
    atlas = head_atlas(model)
    copying = copying_scores(model)
    keep(
        command=f"python experiments/head_atlas.py --n {options.n} --k {options.k}",
        model=model.name,
        model_hash=model.hash,
        versions=versions(),
        commit=commit(),
        named={kind: atlas.named(kind) for kind in atlas.scores},
        strongest=atlas.strongest(3).round(4).to_dict("records"),
        copying=copying.to_dataframe().nlargest(5, "copying").round(4).to_dict("records"),
    )

composition = head_composition(model)
if "composition" not in kept:
    keep(
        chance=composition.chance,
        composition=composition.to_dataframe().nlargest(10, "score").round(4).to_dict("records"),
    )
for name in options.tasks:
    if f"paths {name}" in kept:
        continue
    task = interp.load_task(name, model, n=options.n)
    effects = interp.activation_patching(
        model, task, unit="metric", layers=range(1, model.n_layers)
    )
    heads = [one.label for one in effects.top(options.k)]
    found = composition_agreement(model, task, heads, composition=composition)
    keep(
        **{
            f"paths {name}": {
                "heads": heads,
                "spearman": {kind or "all": asdict(found.mean(kind)) for kind in (None, *"qkv")},
                "beyond_control": {
                    kind or "all": asdict(found.beyond_control(kind)) for kind in (None, *"qkv")
                },
                "receivers": found.to_dataframe().round(4).to_dict("records"),
                "prompts": found.n,
            }
        }
    )
