"""Which heads of the default model carry IOI: found on one half, confirmed on the other.

    python experiments/ioi_heads.py --out experiments/results/ioi_heads.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about fifteen minutes
on one core.
"""

# %% Options, model and task
import argparse
import json
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch

import interp
from interp.core.statistics import ratio_estimate
from interp.studies.steps import plain

parser = argparse.ArgumentParser(description="Heads that carry IOI, with controls.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=64)
parser.add_argument("--k", type=int, default=5)
parser.add_argument("--draws", type=int, default=40)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
task = interp.load_task("ioi", model, n=options.n)
report = task.check(model)
print(report)
find, confirm = task.split(0.5, seed=0)

# %% Find on one half: the heads that carry most, and those that work against the answer
found = interp.activation_patching(model, find, direction="denoise")
labels = [one.label for one in found.top(options.k)]
ablated = interp.activation_patching(model, find, direction="noise")
print(found.top(options.k), found.agreement(ablated))

direct = interp.path_patching(model, find, receivers=["logits"])
weakest = np.argsort(direct.values, axis=None)[:2]
opposed = [f"L{i // model.n_heads}H{i % model.n_heads}" for i in weakest]
print(direct.top(options.k), opposed)

# %% Confirm together on the other half, against random heads of the same layers
sets = {"carrying": labels, "with opposed": labels + opposed, "opposed": opposed}
together = {
    name: {
        way: interp.joint_patching(model, confirm, heads, direction=way, draws=options.draws)
        for way in ("denoise", "noise")
    }
    for name, heads in sets.items()
}
print(*(effect for ways in together.values() for effect in ways.values()), sep="\n")

# %% The same heads under other corruptions and in other wordings
others = []
for variant in ("plain", "other", "three", "roles"):
    for corruption in ("swap", "random", "abc"):
        given = {"variant": variant, "corruption": corruption}
        _, unseen = interp.load_task("ioi", model, n=options.n, **given).split(0.5, seed=0)
        try:
            effects = {
                name: interp.joint_patching(model, unseen, heads, draws=0).effect
                for name, heads in sets.items()
            }
        except interp.InterpError as error:  # the model does not tell clean from corrupted
            effects = {"left out": str(error)}
        others.append(given | {name: plain(one) for name, one in effects.items()})
        print(given, *(f"{name} {one}" for name, one in effects.items()), flush=True)

# %% Why the effect exceeds the gap: what every part adds to the logit difference in each run
encoded, layers = confirm.encode(model), range(model.n_layers)
decoder = model.require_decoder("what every part adds")
answers, wrong = (
    decoder.unembed[tokens[:, 0]].detach().double()
    for tokens in (encoded.targets.answers, encoded.targets.wrong)
)


def parts(prompts, heads=()):
    """(n,) what every head, MLP and the embedding add to the answer's logit minus the wrong one's.

    At the last token, through the final norm at the run's own scale, so that they add up to the
    logit difference. `heads` take their values from the clean run.
    """
    patches = [interp.runs.patch(model, head, encoded.clean) for head in heads]
    with interp.intervene(model, [reduce(add, patches)] if patches else []), torch.no_grad():
        seen = interp.run_with_cache(
            model, prompts, sites=["z", "mlp_out", "resid_pre", "resid_post"], positions="last"
        )
    end = seen[layers[-1], "resid_post"]
    along = decoder.ln_final.reader(end, answers - wrong)
    added = {"input": (seen[0, "resid_pre"].double() * along).sum(-1)}
    for layer in layers:
        each = decoder.blocks[layer].head_values(seen[layer, "z"], along)
        added |= {f"L{layer}H{head}": each[:, head] for head in range(model.n_heads)}
        added[f"L{layer}.mlp_out"] = (seen[layer, "mlp_out"].double() * along).sum(-1)
    whole = (end.double() * along).sum(-1)
    torch.testing.assert_close(sum(added.values()), whole, rtol=1e-4, atol=1e-3)
    return {name: value.detach().numpy() for name, value in added.items()}


runs = {"clean": parts(encoded.clean), "corrupted": parts(encoded.corrupted)}
for name in ("carrying", "with opposed"):
    runs[name] = parts(encoded.corrupted, sets[name])
gaps = sum(runs["clean"].values()) - sum(runs["corrupted"].values())
kinds = {"carrying heads": labels, "opposed heads": opposed}
kinds["MLPs"] = [name for name in runs["clean"] if "mlp" in name]
listed = {name for names in kinds.values() for name in names}
kinds["other heads"] = [name for name in runs["clean"] if name not in listed and name != "input"]
kinds["input"] = ["input"]
kinds["all"] = list(runs["clean"])


def beyond_clean(run, names):
    """What parts add in a run beyond the clean one, as a share of the gap."""
    return asdict(
        ratio_estimate(sum(runs[run][name] - runs["clean"][name] for name in names), gaps)
    )


excess = {
    run: {kind: beyond_clean(run, names) for kind, names in kinds.items()}
    for run in ("corrupted", "carrying", "with opposed")
}
single = {name: beyond_clean("carrying", [name]) for name in runs["clean"]}
largest = dict(sorted(single.items(), key=lambda pair: -abs(pair[1]["mean"]))[:10])
for run, rows in excess.items():
    print(run, {kind: round(one["mean"], 3) for kind, one in rows.items()})
print({name: round(one["mean"], 3) for name, one in largest.items()})

# %% Save
if options.out is not None:
    result = {
        "command": f"python experiments/ioi_heads.py --n {options.n} --k {options.k}",
        "check": asdict(report),
        "found": [asdict(one) for one in found.top(options.k)],
        "opposed": {head: direct.values.flat[i] for head, i in zip(opposed, weakest, strict=True)},
        "agreement_denoise_noise": found.agreement(ablated),
        "together": {
            name: {way: asdict(effect) for way, effect in ways.items()}
            for name, ways in together.items()
        },
        "other_prompts": others,
        "beyond_clean": excess,
        "beyond_clean_largest": largest,
        "direct": [asdict(one) for one in direct.top(options.k)],
        "provenance": asdict(found.provenance),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, default=str) + "\n")
