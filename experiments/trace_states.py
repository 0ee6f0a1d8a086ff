"""What does a model's state hold along a CountDown attempt, and does its next step depend on it?

    python experiments/trace_states.py --out experiments/results/trace_states.json

At each operand of the first attempt: running total, distance to the target, numbers left, verdict.
Beside every probe are permuted labels, the tokens, the outputs and other models. Then the state
before the first result takes a subspace from another attempt: does the model write its digit?
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import interp
from interp.core.files import versions
from interp.models.loading import reinitialised
from interp.results.provenance import commit
from interp.tasks.countdown import make_countdown

parser = argparse.ArgumentParser(description="States along a CountDown attempt.")
parser.add_argument("--model", default="countdown-smollm2")
parser.add_argument("--base", default="smollm2-135m-instruct")
parser.add_argument("--tiny", default="countdown-tiny")
parser.add_argument("--n", type=int, default=200, help="problems")
parser.add_argument("--tokens", type=int, default=34, help="tokens of each text: one attempt")
parser.add_argument("--layers", type=int, nargs="+", default=[5, 10, 15, 20, 25, 29])
parser.add_argument("--shuffles", type=int, default=20)
parser.add_argument("--exchanges", type=int, default=48)
parser.add_argument("--steps", type=int, default=15)
parser.add_argument("--patched", type=int, nargs="+", default=[10, 20])
parser.add_argument("--seed", type=int, default=11)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

started = time.process_time()
result = {
    "command": "python experiments/trace_states.py --out experiments/results/trace_states.json",
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "versions": versions(),
    "commit": commit(),
    "models": {},
}
STATES = ("total", "distance", "left", "verdict")


def keep(model, **stage):
    own = result["models"].setdefault(model.name, {"hash": model.hash})
    own.update(stage)
    result["seconds of one core"] = round(time.process_time() - started)
    print(model.name, json.dumps(stage, default=float)[:1500], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


def measure(model, others, layers, middle, patched):
    """Probes and exchanges of one model."""
    problems = make_countdown(options.n, operands=[3], seed=options.seed)
    texts = interp.generate(model, [one.prompt() for one in problems], options.tokens)
    every = interp.studies.trace_steps(model, texts, problems)
    steps = every.take((every.of == 3) & (every.attempt == 0))
    last = steps.operand == 3
    keep(model, attempts=int(last.sum()), works=int(steps.verdict[last].sum()))
    counts = [int((steps.verdict[last] == one).sum()) for one in (True, False)]
    states = STATES if min(counts) >= 20 else STATES[:-1]
    fit = {"shuffles": options.shuffles, "regularisation": 1.0}  # more dimensions than rows
    found = interp.studies.probe_trace(model, steps, states, others=others, layers=layers, **fit)
    keep(model, linear={name: one.to_dataframe().to_dict("records") for name, one in found.items()})
    fit |= {"kind": "mlp", "shuffles": 3}
    deeper = interp.studies.probe_trace(model, steps, states, layers=middle, **fit)
    keep(model, mlp={name: one.to_dataframe().to_dict("records") for name, one in deeper.items()})
    prompts, tokens = interp.studies.result_onsets(model, texts)
    answers = {token: token for token in sorted(set(tokens))}
    for layer in patched:
        one = interp.probing.fit_subspace(
            model,
            prompts,
            tokens,
            answers,
            layer=layer,
            dim=len(answers) - 1,
            n=options.exchanges,
            steps=options.steps,
        )
        rows = [asdict(test) for test in one.tests]
        keep(model, **{f"exchanged behind layer {layer}": {"prompts": len(prompts), "tests": rows}})


tiny = interp.load_model(options.tiny)
measure(tiny, {"untrained": reinitialised(tiny, seed=0)}, [0, 1, 2, 3], [1], [1, 2])
model = interp.load_model(options.model)
measure(model, {"base": interp.load_model(options.base)}, options.layers, [15], options.patched)
