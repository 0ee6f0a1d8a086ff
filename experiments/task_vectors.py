"""Task vectors and function vectors of the default model, with their nulls.

    python experiments/task_vectors.py --out docs/results/task_vectors.json

It takes about ten minutes on one core.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import interp
from interp.core.errors import InterpError
from interp.core.files import versions
from interp.overview.vector_circuit import circuit_of_vector
from interp.results.provenance import commit
from interp.steering.vector_transfer import transfer_matrix
from interp.tasks.word_pairs import word_tasks

parser = argparse.ArgumentParser(description="Which vector makes a model do which task.")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--tasks", nargs="+")
parser.add_argument("--examples", type=int, default=4, help="examples in a prompt")
parser.add_argument("--heads", type=int, default=10, help="heads of a function vector")
parser.add_argument("--draws", type=int, default=20, help="random vectors, and sets of heads")
parser.add_argument("--circuit", type=int, default=6, help="prompts of edge scores")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

model = interp.load_model(options.model)
tasks = word_tasks(options.tasks, model)
kept = {}


def keep(**stage):
    """Add what a stage measured to the file."""
    kept.update(stage)
    print(*stage.items(), sep="\n", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


shared = {"examples": options.examples, "seed": options.seed}
keep(
    command="python experiments/task_vectors.py --out docs/results/task_vectors.json",
    options={name: value for name, value in vars(options).items() if name != "out"},
    model=model.name,
    model_hash=model.hash,
    versions=versions(),
    commit=commit(),
)
sources = ("bare", "examples", "instruction", "both", "heads")
found = transfer_matrix(
    model,
    tasks,
    sources,
    heads=options.heads,
    draws=options.draws,
    progress=lambda done, total: print(f"{done} of {total} tasks", flush=True),
    **shared,
)
keep(
    best_heads={
        name: [[one.label, round(one.value, 4)] for one in scores.top(options.heads)]
        for name, scores in found.effects.items()
    },
    transfer=found.to_json(),
)
circuits = {}
for task in tasks:
    first, _ = task.split(seed=options.seed)
    few = replace(first, pairs=first.pairs[: options.circuit])
    try:
        edges = interp.circuits.score_edges(model, few.prompts("examples", source=first, **shared))
        one = circuit_of_vector(
            model,
            first,
            heads=options.heads,
            effects=found.effects[task.name],
            edges=edges,
            **shared,
        )
        circuits[task.name] = asdict(one)
    except InterpError as error:  # no gap between true and permuted answers
        circuits[task.name] = {"left_out": error.found}
    keep(circuits=circuits)
