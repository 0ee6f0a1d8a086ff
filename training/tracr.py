"""Compile RASP programs to transformers with Tracr, and save their weights.

    python -m venv tracr-env && tracr-env/bin/pip install tracr-pypi==1.0.0 safetensors
    tracr-env/bin/python training/tracr.py --out interp/models/programs

Run it once, in a separate environment, because Tracr needs JAX and this project does not. Programs
are compiled with a causal mask, because the models of this package are causal. Tracr's causal
evaluator defines what a program then computes, and every compiled model is compared with it here.
Source: Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for Interpretability"
(arXiv 2301.05062); code: google-deepmind/tracr.
"""

# %% The programs
# pyright: reportMissingImports=false
import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import causal_eval, rasp

BOS, UNKNOWN, SLOT = "<bos>", "<unk>", "?"
PAIRS = 24


def counting_sort(length: int) -> rasp.SOp:
    """Sorts `length` digits from 1 to 3, and writes the result at slots after the digits."""

    def at_most(limit: int) -> rasp.SOp:
        chosen = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k != SLOT and k <= limit)
        return rasp.SelectorWidth(chosen).named(f"at_most_{limit}")

    enough = [
        rasp.SequenceMap(lambda n, i: n > i - length, at_most(v), rasp.indices).named(f"enough_{v}")
        for v in (1, 2)
    ]
    return rasp.SequenceMap(lambda a, b: 1 if a else 2 if b else 3, *enough).named("counting_sort")


def every(vocabulary: Sequence[Any], longest: int) -> list[tuple[Any, ...]]:
    """All sequences of up to `longest` tokens."""
    lengths = range(1, longest + 1)
    return [s for n in lengths for s in itertools.product(vocabulary, repeat=n)]


PROGRAMS: dict[str, tuple[rasp.SOp, tuple[Any, ...], list[tuple[Any, ...]], str]] = {
    "reverse": (
        lib.make_reverse(rasp.tokens),
        ("a", "b", "c"),
        every("abc", 4),
        "Reverses the sequence. Under the causal mask each position reverses what it sees, so it "
        "holds the first token: the last position's answer is that of the plain program.",
    ),
    "frac_prevs": (
        lib.make_frac_prevs(rasp.tokens == "x"),
        ("x", "y", "z"),
        every("xyz", 5),
        "The share of x among the tokens so far, as the logit of =value (the logit of =zero is 0).",
    ),
    "hist": (
        lib.make_hist(),
        ("a", "b", "c"),
        every("abc", 5),
        "How often the token occurred so far; at the last position, how often it occurs.",
    ),
    "sort": (
        lib.make_sort_unique(rasp.tokens, rasp.tokens),
        (1, 2, 3, 4),
        every((1, 2, 3, 4), 4),
        "Tracr's sort of unique keys. Under the causal mask a rank counts earlier tokens only, so "
        "the last position outputs its token if it is the largest, and otherwise nothing.",
    ),
    "counting_sort": (
        counting_sort(3),
        (1, 2, 3, SLOT),
        [(*s, *[SLOT] * n) for s in itertools.product((1, 2, 3), repeat=3) for n in (1, 2, 3)],
        "Three digits, then slots: slot i holds the i-th smallest digit. A sort that is one under "
        "the causal mask too.",
    ),
}


# %% The weights of a program, and its outputs
def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Tracr's parameters with simple names; unembed is (residual, outputs)."""

    def unembed(residual: jax.Array) -> jax.Array:
        return model.get_compiled_model().unembed(residual, use_unembed_argmax=False)

    width = len(model.residual_labels)
    read = hk.without_apply_rng(hk.transform(unembed)).apply({}, jnp.eye(width))
    tables = {name: model.params[name]["embeddings"] for name in ("token_embed", "pos_embed")}
    found = {**tables, "unembed": np.asarray(read).reshape(width, -1)}
    parts = {f"attn/{x}": x for x in ("query", "key", "value", "linear")}
    parts |= {"mlp/linear_1": "mlp_in", "mlp/linear_2": "mlp_out"}
    for layer, (path, name) in itertools.product(
        range(model.model_config.num_layers), parts.items()
    ):
        for letter in "wb":
            value = model.params[f"transformer/layer_{layer}/{path}"][letter]
            found[f"blocks.{layer}.{name}.{letter}"] = value
    return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}


def check(name: str, decoded: Sequence[Any], meant: Sequence[Any]) -> None:
    """Check that a compiled model computes its program; None stands for any output."""
    for got, want in zip(decoded, meant, strict=True):
        if want is None:
            continue
        close = abs(got - want) < 1e-3 if isinstance(want, float) else got == want
        if not close:
            raise SystemExit(f"{name}: compiled {decoded}, program {meant}")


def pairs_of(
    cases: list[tuple[Any, ...]], answers: list[Any], outputs: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """Clean and corrupted sequences of equal length whose last outputs differ."""
    rng, pairs = random.Random(0), {}
    while len(pairs) < min(PAIRS, len(cases) // 2):
        one, other = (rng.randrange(len(cases)) for _ in range(2))
        right, wrong = answers[one], answers[other]
        if len(cases[one]) != len(cases[other]) or right is None or right == wrong:
            continue
        if outputs is None and not float(right) > float(wrong):
            continue
        if outputs is not None and wrong is None:
            wrong = rng.choice([value for value in outputs if value != right])
        pairs[one, other] = {
            "clean": " ".join(map(str, (BOS, *cases[one]))),
            "corrupted": " ".join(map(str, (BOS, *cases[other]))),
            "answer": "=value" if outputs is None else f"={right}",
            "wrong": "=zero" if outputs is None else f"={wrong}",
        }
    return list(pairs.values())


def export(name: str, folder: Path) -> None:
    """Compile a program, run it on all its cases, and write its two files."""
    program, alphabet, cases, description = PROGRAMS[name]
    longest = max(map(len, cases))
    model = compiling.compile_rasp_to_model(
        program, set(alphabet), longest, causal=True, compiler_bos=BOS
    )
    arrays, forward = weights_of(model), jax.jit(model.forward)
    encoding = model.input_encoder.encoding_map
    outputs = getattr(model.output_encoder, "encoding_map", None)
    tokens = np.full((len(cases), longest + 1), -1, dtype=np.int64)
    expected = np.zeros((*tokens.shape, arrays["unembed"].shape[1]), dtype=np.float32)
    words = [BOS, UNKNOWN, *map(str, alphabet)]
    words += [f"={value}" for value in outputs] if outputs else ["=value", "=zero"]
    answers = []
    for row, case in enumerate(cases):
        inputs = jnp.array([[encoding[x] for x in (BOS, *case)]])
        last = forward(model.params, inputs).transformer_output.output[0]
        values = np.asarray(last) @ arrays["unembed"]
        tokens[row, : len(case) + 1] = [words.index(str(x)) for x in (BOS, *case)]
        expected[row, : len(case) + 1] = values
        meant = causal_eval.evaluate(program, list(case))
        if outputs is None:
            decoded, meant = values[1:, 0].tolist(), [float(x) for x in meant]
        else:
            decoded = [list(outputs)[i] for i in values[1:].argmax(-1)]
        check(name, decoded, meant)
        answers.append(meant[-1])
    arrays["token_embed"] = arrays["token_embed"][[encoding[x] for x in (BOS, *alphabet)]]
    config = model.model_config
    facts = {
        "name": name,
        "description": description,
        "made_by": "training/tracr.py with tracr-pypi 1.0.0 (Apache-2.0)",
        "causal": config.causal,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "key_size": config.key_size,
        "residual": model.residual_labels,
        "words": words,
        "inputs": len(alphabet),
        "outputs": expected.shape[-1],
        "pairs": pairs_of(cases, answers, list(outputs) if outputs else None),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**arrays, "tokens": tokens, "expected": expected}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {len(cases)} cases, {config.num_layers} layers, {len(facts['pairs'])} pairs")


# %% Compile all programs
parser = argparse.ArgumentParser(description="Compile RASP programs to small weight files.")
parser.add_argument("--out", type=Path, default=Path("interp/models/programs"))
parser.add_argument("names", nargs="*", default=list(PROGRAMS))
options = parser.parse_args()
for chosen in options.names:
    export(chosen, options.out)
