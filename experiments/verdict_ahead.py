"""Does a model know that an attempt will work before it is written out?

    python experiments/verdict_ahead.py --out experiments/results/verdict_ahead.json

First attempts of CountDown, greedy: all that the model then calls right, and as many others, drawn
at random. Behind the first, second and third operand a probe of the stream is asked which verdict
the model goes on to write. Beside it are permuted labels, the same kind of probe of the tokens so
far and of the outputs, the model before training, and one with random weights.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import interp
from interp.core.files import versions
from interp.models.loading import reinitialised
from interp.results.provenance import commit
from interp.tasks.countdown import make_countdown

parser = argparse.ArgumentParser(description="The verdict, probed while an attempt is written.")
parser.add_argument("--model", default="countdown-smollm2")
parser.add_argument("--base", default="smollm2-135m-instruct")
parser.add_argument("--n", type=int, default=1600, help="problems")
parser.add_argument("--tokens", type=int, default=34, help="tokens of each text: one attempt")
parser.add_argument("--layers", type=int, nargs="+", default=[5, 10, 15, 20, 25, 29])
parser.add_argument("--mlp-layers", type=int, nargs="+", default=[15, 20])
parser.add_argument("--shuffles", type=int, default=20)
parser.add_argument("--seed", type=int, default=31)
parser.add_argument("--out", type=Path)
options = parser.parse_args()

started = time.process_time()
model, base = interp.load_model(options.model), interp.load_model(options.base)
problems = make_countdown(options.n, operands=[3], seed=options.seed)
texts = interp.generate(model, [one.prompt() for one in problems], options.tokens)
steps = interp.studies.trace_steps(model, texts, problems)
steps = steps.take((steps.of == 3) & (steps.attempt == 0))
last = steps.operand == 3
works, fails = (steps.text[last & (steps.verdict == one)] for one in (True, False))
drawn = np.random.default_rng(options.seed).choice(fails, len(works), replace=False)
right = steps.distance[last] == 0
result = {
    "command": "python experiments/verdict_ahead.py --out experiments/results/verdict_ahead.json",
    "options": {name: value for name, value in vars(options).items() if name != "out"},
    "versions": versions(),
    "commit": commit(),
    "model": model.name,
    "model hash": model.hash,
    "attempts": int(last.sum()),
    "called right": len(works),
    "called right, and are": int((right & steps.verdict[last]).sum()),
    "are right": int(right.sum()),
}
steps = steps.take(np.isin(steps.text, [*works, *drawn]))
others = {"base": base, "random weights": reinitialised(model, seed=0)}
asked = {
    "linear": (options.layers, {"shuffles": options.shuffles, "regularisation": 1.0}),
    "mlp": (options.mlp_layers, {"shuffles": 3, "kind": "mlp"}),
}
for kind, (layers, fit) in asked.items():
    found = interp.studies.probe_trace(
        model, steps, "verdict", others=others, layers=layers, **fit
    )["verdict"]
    result[kind] = found.to_dataframe().to_dict("records")
    result["seconds of one core"] = round(time.process_time() - started)
    print(kind, found, flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")
print({name: value for name, value in result.items() if isinstance(value, int)})
