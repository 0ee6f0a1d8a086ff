"""Which heads of the default model carry IOI: found on one half, confirmed on the other.

    python experiments/ioi_heads.py --out experiments/results/ioi_heads.json

A percent script, which opens as a notebook in VS Code or Jupytext. It takes about ten minutes on
one core. What the file holds already is not measured again. A file of other settings is refused,
and so is one that does not tell them, as the committed one: give another.
"""

# %% Options, model and task
import argparse
import json
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interp
from interp.core.components import Component
from interp.core.statistics import ratio_estimate
from interp.heads.direct_attribution import head_logit_attribution
from interp.patching.joint import set_effects
from interp.results.provenance import resumed
from interp.runs.pairs import check_gap

parser = argparse.ArgumentParser(description="Heads that carry IOI, with controls.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=64)
parser.add_argument("--k", type=int, default=5)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
task = interp.load_task("ioi", model, n=options.n)
find, confirm = task.split(0.5, seed=0)
settings = {name: value for name, value in vars(options).items() if name != "out"}
kept = resumed(options.out, **settings, model_hash=model.hash)


def keep(**stage):
    """Add what a stage measured to the file."""
    kept.update(stage)
    print(*stage.items(), sep="\n", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(kept, indent=1, default=str) + "\n")


# %% Find on one half, confirm together on the other, against random heads of the same layers
if "together" not in kept:
    found = interp.activation_patching(model, find, direction="denoise")
    ablated = interp.activation_patching(model, find, direction="noise")
    five = [one.label for one in found.top(options.k)]
    together = {
        way: interp.joint_patching(model, confirm, five, direction=way, draws=40)
        for way in ("denoise", "noise")
    }
    direct = interp.path_patching(model, confirm, receivers=["logits"])
    keep(
        command=f"python experiments/ioi_heads.py --n {options.n} --k {options.k}",
        check=asdict(task.check(model)),
        found=[asdict(one) for one in found.top(options.k)],
        agreement_denoise_noise=found.agreement(ablated),
        together={way: asdict(effect) for way, effect in together.items()},
        direct=[asdict(one) for one in direct.top(options.k)],
        provenance=asdict(found.provenance),
    )
five = [one["label"] for one in kept["found"]]

# %% The two heads that work against the answer most, on the half that the five were found on
if "opposed" not in kept:
    direct = head_logit_attribution(model, find)
    heads = {
        f"L{layer}H{head}": {"mean": value, "stderr": float(direct.stderr[layer, head])}
        for (layer, head), value in np.ndenumerate(direct.values.round(6))
    }
    least = sorted(heads, key=lambda head: heads[head]["mean"])[:2]
    keep(opposed={head: heads[head] for head in least})
sets = {"five": five, "seven": [*five, *kept["opposed"]], "opposed two": [*kept["opposed"]]}

# %% Why the effect exceeds the gap: what every part adds to the logit difference in each run
encoded, layers = confirm.encode(model), range(model.n_layers)


def parts(prompts, heads=()):
    """(n,) what every head, MLP and the embedding add to the answer's logit minus the wrong one's.

    At the last token, through the final norm at the run's own scale, so that they add up to the
    logit difference. `heads` take their values from the clean run at every token.
    """
    decoder = model.require_decoder("what every part adds")
    patches = [interp.runs.patch(model, head, encoded.clean) for head in heads]
    with interp.intervene(model, [reduce(add, patches)] if patches else []), torch.no_grad():
        seen = interp.run_with_cache(
            model, prompts, sites=["z", "mlp_out", "resid_pre", "resid_post"], positions="last"
        )
    end, targets = seen[layers[-1], "resid_post"], encoded.targets
    answer, wrong = (decoder.unembed[x[:, 0]].double() for x in (targets.answers, targets.wrong))
    along = decoder.ln_final.reader(end, (answer - wrong).detach())
    added = {"input": (seen[0, "resid_pre"].double() * along).sum(-1)}
    for layer in layers:
        each = decoder.blocks[layer].head_values(seen[layer, "z"], along)
        added |= {f"L{layer}H{head}": each[:, head] for head in range(model.n_heads)}
        added[f"L{layer}.mlp_out"] = (seen[layer, "mlp_out"].double() * along).sum(-1)
    whole = (end.double() * along).sum(-1)
    torch.testing.assert_close(sum(added.values()), whole, rtol=1e-4, atol=1e-3)
    return {name: value.detach().numpy() for name, value in added.items()}


if "beyond_clean" not in kept:
    clean, corrupted = parts(encoded.clean), parts(encoded.corrupted)
    runs = {"corrupted": corrupted}
    runs |= {name: parts(encoded.corrupted, sets[name]) for name in ("five", "seven")}
    gaps = np.sum([*clean.values()], 0) - np.sum([*corrupted.values()], 0)
    kinds = {"five heads": five, "opposed two": sets["opposed two"]}
    kinds["MLPs"] = [name for name in clean if "mlp" in name]
    kinds["input"] = ["input"]
    listed = {name for names in kinds.values() for name in names}
    kinds["other heads"] = [name for name in clean if name not in listed]
    kinds |= {"all": [*clean]} | {f"alone: {name}": [name] for name in clean if name != "input"}
    rows = {
        run: {
            kind: asdict(ratio_estimate(np.sum([added[x] - clean[x] for x in names], 0), gaps))
            for kind, names in kinds.items()
        }
        for run, added in runs.items()
    }
    single = sorted(rows["five"], key=lambda kind: -abs(rows["five"][kind]["mean"]))
    shown = [kind for kind in kinds if ":" not in kind]
    shown += [kind for kind in single if ":" in kind][:12]
    keep(beyond_clean={run: {kind: x[kind] for kind in shown} for run, x in rows.items()})

# %% The same heads under other corruptions and in other wordings
for variant in ("plain", "other", "roles", "three"):
    for corruption in ("swap", "random", "abc"):
        given: dict[str, Any] = {"variant": variant, "corruption": corruption}
        rows = kept.get("prompts", [])
        if any(given.items() <= row.items() for row in rows):
            continue
        _, unseen = interp.load_task("ioi", model, n=options.n, **given).split(0.5, seed=0)
        chosen = [[Component.parse(head) for head in heads] for heads in sets.values()]
        seen = set_effects(model, unseen, chosen, "denoise")
        gaps = seen.clean - seen.corrupted
        try:
            check_gap(seen.clean, seen.corrupted)
            row = {
                name: asdict(ratio_estimate(gained, gaps))
                for name, gained in zip(sets, seen.gained, strict=True)
            }
            row["seven minus five"] = asdict(ratio_estimate(seen.gained[1] - seen.gained[0], gaps))
        except interp.InterpError as error:  # the model does not tell clean from corrupted
            row = {"left out": str(error)}
        keep(prompts=[*rows, given | {"gap": float(gaps.mean())} | row])
