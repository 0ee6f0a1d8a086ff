"""Random cases of every main measurement against plain hooks on Hugging Face's own modules.

    python -m tests.soak.differential --cases 500 --json docs/results/soak_differential.json

A case is a family, a shape, a type, prompts of different lengths, and for each measurement random
sites, layers, components and positions. The reference runs one prompt and one change at a time, in
float64, through `tests.plain`; it shares no code with the engine. Estimates by gradients are
compared with Hugging Face's autograd. The table holds, by measurement, type and family, the number
of cases and the largest error, relative to the largest number of its case (at least 1).
"""

import argparse
import json
import random
import zlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.circuits.scoring import score_edges as scoring
from interp.circuits.scoring.score_edges import score_edges
from interp.core.components import SITES, Component
from interp.core.files import json_text, write_atomically
from interp.core.prompts import PromptPair, Task
from interp.heads import switching
from interp.heads.direct_attribution import head_logit_attribution
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.patching import path, spec
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.path import path_patching
from interp.runs.generation import generate
from interp.runs.kinds import add, scale, zero
from interp.runs.next_tokens import ablate
from tests.families import FAMILIES, tiny, true_double
from tests.plain import Plain

torch.set_num_threads(1)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LIMITS = {"float32": 1e-4, "float64": 1e-7}
"""A larger relative error is reported as a disagreement."""

Found = tuple[np.ndarray, np.ndarray]
"""What the package gives and what the reference gives."""


def reshaped(name: str, rng: random.Random) -> Any:
    """A family's configuration in another size."""
    config = FAMILIES[name]()
    said, names = config.to_dict(), config.attribute_map
    for key, choices in (("vocab_size", (61, 97, 130)), ("intermediate_size", (24, 40, 48))):
        key = names.get(key, key)
        if isinstance(said.get(key), int):
            said[key] = rng.choice(choices)
    return type(config)(**said)


class Case:
    """A random model in the package and in plain Hugging Face, and random prompts."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.family = rng.choice(list(FAMILIES))
        self.dtype = rng.choice(list(DTYPES))
        config = reshaped(self.family, rng)
        own = tiny(self.family, DTYPES[self.dtype], config=config, seed=seed)
        exact = deepcopy(own).double()
        if hasattr(exact, "set_experts_implementation"):
            exact.set_experts_implementation("eager")  # the others have no float64
        self.model: LanguageModel = wrap(own, name=f"{self.family}-{seed}", check=False)
        self.plain = Plain(self.family, exact, self.model)
        n = rng.randint(1, 3)
        self.lengths = [rng.randint(4, 14) for _ in range(n)]
        self.pairs = [self._pair(length, config.vocab_size) for length in self.lengths]
        self.task = Task(name="random", pairs=tuple(self.pairs))

    def _pair(self, length: int, words: int) -> PromptPair:
        clean = [self.rng.randrange(3, words) for _ in range(length)]
        corrupted = list(clean)
        for place in self.rng.sample(range(length), self.rng.randint(1, 3)):
            corrupted[place] = 3 + (corrupted[place] - 3 + self.rng.randint(1, 20)) % (words - 3)
        right, wrong = self.rng.sample(range(3, words), 2)
        return PromptPair(
            clean=tuple(clean),
            corrupted=tuple(corrupted),
            answers=(right,),
            wrong=(wrong,),
            positions={"one": self.rng.randrange(length), "other": self.rng.randrange(length)},
        )

    @property
    def sites(self) -> list[str]:
        """The sites that the family offers."""
        offered = {row["name"]: row["missing"] for row in _families()}[self.family]
        return [site for site in SITES if site not in offered]

    def some(self, n: int, most: int = 2) -> list[int]:
        """A few of n numbers, sorted."""
        return sorted(self.rng.sample(range(n), min(n, self.rng.randint(1, most))))

    def difference(self, logits: torch.Tensor, pair: PromptPair) -> torch.Tensor:
        """The logit difference at the last token."""
        return logits[0, -1, pair.answers[0]] - logits[0, -1, pair.wrong[0]]


@cache
def _families() -> list[dict[str, Any]]:
    from interp.models.loading import known_families

    return known_families()


def part_put(site: str, index: int | None, where: list[int], source: torch.Tensor | None):
    """An edit that gives one component, at some tokens, its value in another run, or zero."""

    def edit(value: torch.Tensor) -> torch.Tensor:
        changed, other = value.clone(), torch.zeros_like(value) if source is None else source
        for place in where:
            if index is None:
                changed[0, place] = other[0, place]
            else:
                changed[0, place, index] = other[0, place, index]
        return changed

    return edit


def edits_of(case: Case, layer: int, site: str, index: int | None, where: list[int], other: Any):
    """The plain edits for one patched cell; `other` is the other run's values, None for zeros."""
    plain = case.plain
    source = None if other is None else other[layer, site]
    if site == "resid_mid":
        return {
            (layer, "attn_out"): lambda out: (
                part_put(site, index, where, source)(plain.seen[layer, "resid_pre"] + out)
                - plain.seen[layer, "resid_pre"]
            )
        }
    if site != "pattern":
        return {(layer, site): part_put(site, index, where, source)}

    def attend(z: torch.Tensor) -> torch.Tensor:
        value = plain.seen[layer, "v"]
        each = value.repeat_interleave(z.shape[2] // value.shape[2], dim=2)
        new = z.clone()
        for head in range(z.shape[2]) if index is None else [index]:
            for place in where:
                weights = torch.zeros_like(each[0, :, head, 0])
                if source is not None:
                    weights = source[0, head, place]
                new[0, place, head] = weights @ each[0, :, head]
        return new

    return {(layer, "z"): attend}


def patched(case: Case) -> Found:
    """Activation patching at a random site, along random axes, with any source."""
    rng, model = case.rng, case.model
    site = rng.choice(case.sites)
    unit = SITES[site]
    layers = case.some(model.n_layers)
    parts = None if unit is None or rng.random() < 0.3 else case.some(model.size(unit), 3)
    by = ["layer"] + ([unit] if parts is not None else [])
    direction, source = rng.choice(("denoise", "noise")), rng.choice(("other", "other", "zero"))
    how = rng.choice(("all", "together", "swept"))
    positions = "all" if how == "all" else ["one", "last", "other"][: rng.randint(1, 3)]
    options: dict[str, Any] = {"site": site, "direction": direction, "positions": positions}
    options |= {"layers": layers, "source": source}
    if parts is not None:
        options["components"] = parts
    if how == "swept":
        by.append("position")
    found = activation_patching(
        model, case.task, by=by, unit="metric", cache=False, **options
    ).effects
    expected = np.zeros(
        (len(case.pairs), len(layers), len(parts or [0]), 1 if how != "swept" else len(positions))
    )
    for i, pair in enumerate(case.pairs):
        base, other = pair.clean, pair.corrupted
        if direction == "denoise":
            base, other = other, base
        there = dict(case.plain.run(other)[0]) if source == "other" else None
        plain = case.difference(case.plain.run(base)[1], pair)
        named = {**pair.positions, "last": len(base) - 1}
        columns = (
            [list(range(len(base)))] if how == "all" else [[named[name]] for name in positions]
        )
        if how == "together":
            columns = [sorted({place for column in columns for place in column})]
        for a, layer in enumerate(layers):
            for b, part in enumerate(parts or [None]):
                for c, where in enumerate(columns):
                    edits = edits_of(case, layer, site, part, where, there)
                    value = case.difference(case.plain.run(base, edits)[1], pair)
                    sign = 1 if direction == "denoise" else -1
                    expected[i, a, b, c] = sign * (value - plain)
    return found.reshape(expected.shape), expected


def receivers_of(case: Case) -> list[Component]:
    """Random receivers, or none for the logits."""
    rng, model, found = case.rng, case.model, []
    for _ in range(rng.randint(0, 2)):
        site = rng.choice([s for s in ("q", "k", "v", "mlp_out", "post") if s in case.sites])
        unit, layer = SITES[site], rng.randrange(1, model.n_layers)
        index = None if unit is None else rng.randrange(model.size(unit))
        found.append(Component(layer, site, index))
    return list(dict.fromkeys(found))


def paths(case: Case) -> Found:
    """Path patching, by the three runs it stands for."""
    rng, model, plain = case.rng, case.model, case.plain
    receivers, senders = receivers_of(case), rng.choice(("heads", "mlps"))
    frozen, layers = rng.random() < 0.5, case.some(model.n_layers)
    direction = rng.choice(("noise", "denoise"))
    found = path_patching(
        model, case.task, receivers=[str(one) for one in receivers] or ["logits"],
        senders=senders, layers=layers, direction=direction, freeze_mlps=frozen, unit="metric",
        cache=False,
    ).effects  # fmt: skip
    parts = range(model.n_heads) if senders == "heads" else [None]
    expected = np.zeros((len(case.pairs), len(layers), len(parts)))
    places = [(layer, site) for layer in range(model.n_layers) for site in ("z", "mlp_out")]
    for i, pair in enumerate(case.pairs):
        base, other = pair.clean, pair.corrupted
        if direction == "denoise":
            base, other = other, base
        (here, logits), (there, _) = plain.run(base), plain.run(other)
        where = list(range(len(base)))
        for a, layer in enumerate(layers):
            for b, part in enumerate(parts):
                site = "z" if senders == "heads" else "mlp_out"
                edits: dict[tuple[int, str], Any] = {}
                for at in places:
                    if at[1] == "z" or frozen:
                        edits[at] = lambda value, kept=here[at]: kept
                send = part_put(site, part, where, there[layer, site])
                first = edits.get((layer, site), lambda value: value)
                edits[layer, site] = lambda value, first=first, send=send: send(first(value))
                # What a receiver would be is read before it is frozen itself.
                recorded: dict[tuple[int, str], torch.Tensor] = {}
                for one in receivers:
                    at = (one.layer, one.site)
                    after = edits.get(at, lambda value: value)
                    edits[at] = lambda value, at=at, after=after, into=recorded: (
                        into.__setitem__(at, value) or after(value)
                    )
                last = plain.run(base, edits)[1]
                if receivers:
                    third: dict[tuple[int, str], Any] = {}
                    for one in receivers:
                        at = (one.layer, one.site)
                        put = part_put(one.site, one.index, where, recorded[at])
                        before = third.get(at, lambda value: value)
                        third[at] = lambda value, before=before, put=put: put(before(value))
                    last = plain.run(base, third)[1]
                sign = 1 if direction == "denoise" else -1
                expected[i, a, b] = sign * (
                    case.difference(last, pair) - case.difference(logits, pair)
                )
    return found.reshape(expected.shape), expected


def attributed(case: Case) -> Found:
    """Attribution patching at a random site: the gradient by autograd, times the difference."""
    rng, model, plain = case.rng, case.model, case.plain
    site = rng.choice([one for one in case.sites if one not in ("pattern", "resid_mid")])
    unit, layers = SITES[site], case.some(model.n_layers)
    parts = None if unit is None else case.some(model.size(unit), 3)
    direction = rng.choice(("denoise", "noise"))
    options: dict[str, Any] = {} if parts is None else {"components": parts}
    found = attribution_patching(
        model, case.task, site=site, by=("layer",) if unit is None else ("layer", unit),
        layers=layers, direction=direction, unit="metric", **options,
    ).effects  # fmt: skip
    expected = np.zeros((len(case.pairs), len(layers), len(parts or [0])))
    for i, pair in enumerate(case.pairs):
        base, other = pair.clean, pair.corrupted
        if direction == "denoise":
            base, other = other, base
        there = dict(plain.run(other)[0])
        here, logits = plain.run(base, grad=True)
        for a, layer in enumerate(layers):
            raw, get, _ = plain.raw[layer, site]
            slope = torch.autograd.grad(case.difference(logits, pair), raw, retain_graph=True)[0]
            scaled = 1 / plain.scale if site in ("attn_out", "mlp_out") else 1
            slope = slope * scaled if site in ("attn_out", "mlp_out") else get(slope)
            slope = slope.reshape(here[layer, site].shape)
            product = slope * (there[layer, site] - here[layer, site].detach())
            for b, part in enumerate(parts or [None]):
                one = product if part is None else product[:, :, part]
                expected[i, a, b] = (1 if direction == "denoise" else -1) * one.sum()
    return found.reshape(expected.shape), expected


def scored(case: Case) -> Found:
    """EAP: for every edge, the writer's difference times the gradient through that reader alone."""
    model, plain = case.model, case.plain
    scores = score_edges(model, case.task, method="EAP", per_prompt=True)
    graph = scores.graph
    expected = np.zeros((len(case.pairs), *graph.shape))
    for i, pair in enumerate(case.pairs):
        there = {at: value.detach() for at, value in plain.run(pair.corrupted)[0].items()}
        seen, logits = plain.run(pair.clean, grad=True)
        here, raw = dict(seen), dict(plain.raw)
        metric = case.difference(logits, pair)

        def slope(of, to, along=None):
            return torch.autograd.grad(
                of, to, along, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]

        for r, reader in enumerate(graph.readers):
            if reader == "logits":
                end = raw[model.n_layers - 1, "resid_post"][0]
                into = slope(metric, end)
            else:
                one = Component.parse(reader)
                x, get, put = raw[one.layer, one.site]
                along = slope(metric, x)
                if one.index is not None:
                    only = torch.zeros_like(get(along))
                    only[:, :, one.index] = get(along)[:, :, one.index]
                    along = put(torch.zeros_like(along), only)
                serial = one.site == "mlp_out" and not plain.parallel
                stream = here[one.layer, "resid_mid"] if serial else raw[one.layer, "resid_pre"][0]
                into = slope(x, stream, along)
                if one.site == "mlp_out" and "mlp" in plain.parts.get("adds", ()):
                    into = into - along.reshape(into.shape)
            for w, writer in enumerate(graph.writers):
                if not graph.allowed[w, r]:
                    continue
                if writer == "input":
                    change, taken = there[0, "resid_pre"] - here[0, "resid_pre"], into
                else:
                    one = Component.parse(writer)
                    change = there[one.layer, one.site] - here[one.layer, one.site]
                    taken = into
                    if one.site == "z":
                        z, get, _ = raw[one.layer, "z"]
                        wrote = raw[one.layer, "attn_out"][0]
                        taken = get(slope(wrote, z, (into * plain.scale).reshape(wrote.shape)))
                        change, taken = change[:, :, one.index], taken[:, :, one.index]
                expected[i, w, r] = -float((change * taken).sum().detach())
    return scores.per_prompt, expected


def direct(case: Case) -> Found:
    """Direct logit attribution, with the norms' own outputs in the place of formulas."""
    model, plain = case.model, case.plain
    found = head_logit_attribution(model, case.task).effects
    expected = np.zeros_like(found)
    final, head = final_norm(plain), plain.hf.get_output_embeddings()
    for i, pair in enumerate(case.pairs):
        for sign, tokens in ((1, pair.clean), (-1, pair.corrupted)):
            seen, logits = plain.run(tokens, grad=True)
            raw = dict(plain.raw)
            rows = head.weight[pair.answers[0]] - head.weight[pair.wrong[0]]
            whole = raw[model.n_layers - 1, "resid_post"][0][:, -1]
            for layer in range(model.n_layers):
                z, get, put = raw[layer, "z"]
                for number in range(model.n_heads):
                    only = torch.zeros_like(get(z))
                    only[:, -1, number] = get(z)[:, -1, number]
                    written = share_of_module(plain, layer, raw, put(torch.zeros_like(z), only))
                    part = linear_share(final, whole, written[:, -1] * plain.scale)
                    expected[i, layer, number] += (
                        sign * float((part @ rows).detach()) * logit_scale(plain)
                    )
    return found, expected


def final_norm(plain: Plain) -> Any:
    """The norm before the unembedding: the last one outside the blocks."""
    named = plain.hf.named_modules()
    outside = [(name, m) for name, m in named if not name.startswith(plain.parts["blocks"])]
    return [m for name, m in outside if "norm" in type(m).__name__.lower()][-1]


def logit_scale(plain: Plain) -> float:
    """What the logits of a vector are multiplied with behind the unembedding."""
    config = plain.hf.config
    return getattr(config, "logit_scale", None) or 1 / (
        getattr(config, "logits_scaling", None) or 1
    )


def linear_share(norm: Any, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A summand's part of a norm's output, the scale held: read off the norm's own output."""
    with torch.no_grad():
        nothing = norm(torch.zeros_like(whole))
        centred = torch.allclose(norm(whole + 1), norm(whole), atol=1e-9)
        middle = whole.mean(-1, keepdim=True) if centred else 0
        ratio = (norm(whole) - nothing) / (whole - middle)
        return (part - part.mean(-1, keepdim=True) if centred else part) * ratio


def share_of_module(plain: Plain, layer: int, raw: Any, z: torch.Tensor) -> torch.Tensor:
    """What some heads' z writes to the stream, a norm behind the output matrix held."""
    block = plain.blocks[layer]
    o = block.get_submodule(plain.parts["o"])
    with torch.no_grad():
        written = o(z) - o(torch.zeros_like(z))
        if plain.parts["attn"].endswith("norm") or "layernorm" in plain.parts["attn"]:
            whole = o(raw[layer, "z"][0])
            return linear_share(block.get_submodule(plain.parts["attn"]), whole, written)
        return written


def changes_of(case: Case) -> tuple[Any, dict[tuple[int, str], Callable]]:
    """A random change, and the same as plain edits at every token."""
    rng, model = case.rng, case.model
    kind = rng.choice(("zero", "scale", "add"))
    sites = [s for s in ("z", "post", "mlp_out", "attn_out", "resid_post") if s in case.sites]
    site = "resid_post" if kind == "add" else rng.choice(sites)
    unit, layer = SITES[site], rng.randrange(model.n_layers)
    index = None if unit is None else rng.randrange(model.size(unit))
    label = str(Component(layer, site, index))
    if kind == "add":
        vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
        return add(label, vector, coefficient=2.0), {(layer, site): lambda x: x + 2 * vector}
    factor = 0.0 if kind == "zero" else -1.5

    def edit(value: torch.Tensor) -> torch.Tensor:
        changed = value.clone()
        chosen = changed if index is None else changed[:, :, index]
        chosen *= factor
        return changed

    return (zero(label) if kind == "zero" else scale(label, factor)), {(layer, site): edit}


def ablated(case: Case) -> Found:
    """The next token's probabilities under a change at every token."""
    change, edits = changes_of(case)
    prompts = [pair.clean for pair in case.pairs]
    tokens = [3, 4, 5]
    found = ablate(case.model, prompts, change, tokens=tokens).probabilities[1]
    expected = [
        case.plain.run(prompt, edits)[1][0, -1].softmax(-1)[tokens].numpy() for prompt in prompts
    ]
    return found, np.array(expected)


def generated(case: Case) -> Found:
    """Texts under a change: the tokens, which must be equal."""
    change, edits = changes_of(case)
    prompts = [pair.clean for pair in case.pairs]
    found = generate(case.model, prompts, max_new_tokens=6, change=change)
    rows = np.zeros((2, len(prompts), 6))
    for i, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(6):
            token = int(case.plain.run(text, edits)[1][0, -1].argmax())
            if token == 2:
                break
            text.append(token)
        for row, tokens in zip(rows, (found[i].tokens, text[len(prompt) :]), strict=True):
            row[i, : len(tokens)] = tokens
    return rows[0], rows[1]


MEASUREMENTS: dict[str, Callable[[Case], Found]] = {
    "activation patching": patched,
    "path patching": paths,
    "attribution patching": attributed,
    "edge scores (EAP)": scored,
    "direct logit attribution": direct,
    "ablation": ablated,
    "texts under a change": generated,
}


def error_of(seed: int, name: str, case: Case) -> float:
    """The largest error of a measurement of a case, relative to its largest number, at least 1."""
    case.rng = random.Random(zlib.crc32(f"{seed} {name}".encode()))
    with true_double():
        found, expected = MEASUREMENTS[name](case)
    if not np.isfinite(expected).all() or found.shape != expected.shape:
        raise AssertionError(f"case {seed}, {name}: {found.shape}, {expected.shape}")
    return float(
        np.abs(found - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0))
    )


def main(arguments: Iterable[str] | None = None) -> None:
    """Add cases to the table until it has so many."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cases", type=int, default=500)
    options.add_argument("--json", type=Path, required=True)
    asked = options.parse_args(arguments)
    for module in (spec, path, scoring, switching):
        module.check_gap = lambda clean, corrupted: None
    start: dict[str, Any] = {"cases": 0, "disagreements": [], "errors": {}}
    table = json.loads(asked.json.read_text()) if asked.json.exists() else start
    for seed in range(table["cases"], asked.cases):
        case = Case(seed)
        for name in MEASUREMENTS:
            error = error_of(seed, name, case)
            row = table["errors"].setdefault(name, {}).setdefault(case.dtype, {})
            one = row.setdefault(case.family, {"cases": 0, "largest error": 0.0})
            one["cases"] += 1
            one["largest error"] = max(one["largest error"], error)
            if error > LIMITS[case.dtype]:
                table["disagreements"].append([seed, name, case.family, case.dtype, error])
                print(table["disagreements"][-1], flush=True)
        table["cases"] = seed + 1
        text = json_text(table, indent=1) + "\n"
        write_atomically(asked.json, lambda part, text=text: part.write_text(text))


if __name__ == "__main__":
    main()
