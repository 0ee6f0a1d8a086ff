"""Find circuits on one half of the prompts, evaluate them on the other half, and compare them.

    python experiments/circuits.py --model toy-or --task toy-or
    python experiments/circuits.py --model smollm2-135m-instruct --task ioi --n 32 --edges 400

A percent script, which opens as a notebook in VS Code or Jupytext. It takes seconds on a toy and
minutes for IOI on the default model.
"""

# %% Options, model and task
import argparse
import json
from dataclasses import asdict
from pathlib import Path

import interp
from interp.circuits.discovery.find import Finder

parser = argparse.ArgumentParser(description="Find, evaluate and compare circuits.")
parser.add_argument("--model", default="toy-or")
parser.add_argument("--task", default="toy-or")
parser.add_argument("--n", type=int, default=32)
parser.add_argument(
    "--edges", type=int, help="Edges of every circuit; without it, all edges above 0.02."
)
parser.add_argument("--methods", default="EAP,EAP-IG-inputs")
parser.add_argument("--random", type=int, default=10)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
task = interp.load_task(options.task, model, n=options.n)
print(task.check(model))
find, confirm = task.split(0.5, seed=0)
print(interp.circuits.graph_of(model).n_edges, "edges")

# %% Find on one half: score every edge, then keep the strongest connected ones
found, circuits = {}, {}
for method in options.methods.split(","):
    found[method] = interp.find_circuit(model, find, Finder(method=method))
    circuits[method] = found[method].circuit(options.edges)
    print(found[method].protocol)
    print(circuits[method], f"{found[method].share(circuits[method].mask):.1%} of all |scores|")

# %% Evaluate on the other half: every size at once, against random circuits of the same kind
curves = {}
for method, scores in found.items():
    curves[method] = interp.circuits.faithfulness_curve(
        model, confirm, scores, random=options.random
    )
    print(method)
    print(curves[method])
    print("CPR:", curves[method].null())

# %% Redundancy: components that replace each other, which single edges miss
last = list(circuits.values())[-1]
pairs = interp.circuits.redundancy(model, confirm, last)
print(pairs)

# %% Compare the methods' circuits
compared = None
if len(circuits) > 1:
    compared = interp.circuits.compare_circuits(*list(circuits.values())[-2:])
    print(compared)

# %% Save
if options.out is not None:
    result = {
        "command": f"python experiments/circuits.py --model {options.model} --task {options.task} "
        f"--n {options.n}",
        "edges": {method: circuit.edges() for method, circuit in circuits.items()},
        "curves": {
            method: {
                "protocol": curve.protocol,
                "rows": curve.to_dataframe().to_dict("records"),
                "cpr": asdict(curve.cpr()),
                "cmd": asdict(curve.cmd()),
            }
            for method, curve in curves.items()
        },
        "comparison": compared and compared.to_dict(),
        "provenance": {method: asdict(one.provenance) for method, one in found.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, default=str) + "\n")
