"""Directions in the residual stream: one vector, and all it must be used with.

Five objects are called "the refusal direction". A `Direction` says which it is, where and on what
it was read, and which way it points; steering refuses one that does not belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.ablation import site_values
from interp.capture import run_with_cache
from interp.chat import PLAIN, ChatFormat, ChatPrompts, Prompts, plain_prompts
from interp.components import SITES, within
from interp.errors import InterpError, unknown
from interp.files import content_key
from interp.inputs import listed, reads_arguments
from interp.models.language_model import LanguageModel
from interp.records import Record
from interp.schema import brief

Kind = Literal["harmful-harmless", "behaviour", "over-refusal", "false-refusal", "task"]
"""What is subtracted from what.

harmful-harmless: harmful - harmless requests (arXiv 2406.11717). behaviour: harmful and refused -
harmless and answered; over-refusal: benign and refused - benign and answered (2603.27518).
false-refusal: pseudo-harmful - harmless, orthogonalised to the first (2410.03415). task: answered
- refused rows of one task (2508.11290); the only one that points to compliance.
"""

KINDS: tuple[Kind, ...] = get_args(Kind)

Normalisation = Literal["none", "unit"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A vector with its contract.

    Attributes:
        vector: (d_model,) float64.
        kind: which difference it is.
        site, layer: where it was read.
        position: which token, counted from the prompt's end: -1 is the last.
        token: that token's text, where it is the same in every prompt.
        sign: +1 points towards refusal, -1 towards compliance.
        format: the chat template of the prompts it was read from.
        n: prompts of the first and of the second class.
        model_hash: the weights it was read from.
        made: how, in words.
        normalisation: "none", the raw difference, or "unit", divided by its length.
        rows: hashes of the prompts it was read from (`ChatPrompts.hashes`); () where not known.
    """

    vector: Tensor
    kind: Kind
    site: str
    layer: int
    position: int
    sign: int
    n: tuple[int, int]
    model_hash: str
    token: str = ""
    format: ChatFormat = PLAIN
    made: str = "difference in means"
    normalisation: Normalisation = "none"
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of direction", self.kind, KINDS)
        if self.normalisation not in get_args(Normalisation):
            raise unknown("normalisation", self.normalisation, get_args(Normalisation))
        good = self.vector.dim() == 1 and self.vector.dtype == torch.float64
        if not good or self.sign not in (1, -1) or not bool(self.vector.isfinite().all()):
            raise InterpError(
                f"direction {self}",
                f"{self.vector.dtype} of shape {tuple(self.vector.shape)}, sign {self.sign}",
                "give finite float64 numbers, one per dimension, and a sign of 1 or -1",
            )
        if self.normalisation == "unit" and abs(self.norm - 1) > 1e-6:
            raise InterpError(f"unit direction {self}", f"length {self.norm:g}", "divide by it")

    def __str__(self) -> str:
        return f"{self.kind} L{self.layer}.{self.site} at {self.position}"

    __repr__ = brief

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    @property
    def towards_refusal(self) -> Tensor:
        """The vector times its sign: every kind on one scale."""
        return self.sign * self.vector

    @property
    def unit(self) -> Tensor:
        """The vector towards refusal, of length one.

        Raises:
            InterpError: it is zero, as where a template puts the same token in every prompt.
        """
        if self.norm == 0:
            raise InterpError(f"direction {self}", "a vector of length 0", "take another position")
        return self.towards_refusal / self.norm

    @property
    def rows_hash(self) -> str:
        """One hash of the set of prompts it was read from; "" where they are not known."""
        return content_key(sorted(self.rows)) if self.rows else ""

    def require_unseen(self, prompts: ChatPrompts, what: str) -> None:
        """Refuse prompts it was read from, where these are known.

        Raises:
            InterpError: it was read from some of them.
        """
        refuse_seen(self.rows, prompts, f"{what} with {self}")

    def require_model(self, model: LanguageModel) -> None:
        """Refuse a model it was not read from.

        Raises:
            InterpError: other weights or another width.
        """
        if self.model_hash != model.hash or len(self.vector) != model.d_model:
            raise InterpError(
                f"direction {self} on {model.name}",
                f"read from {self.model_hash[:12]}, of width {len(self.vector)}; the model is "
                f"{model.hash[:12]}, of width {model.d_model}",
                "read it again; to transfer one on purpose, replace its model_hash",
            )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Difference vectors of every position and layer, (positions, layers, d_model) float64.

    `reference` holds the means of the second class, which an affine edit returns to. The other
    fields are those of the `Direction`s in it, see `at`. A layer that sees only one token, the
    same in every prompt, gives a zero vector: see `zeros`.
    """

    vectors: Tensor
    reference: Tensor
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    tokens: tuple[str, ...]
    site: str
    kind: Kind
    sign: int
    n: tuple[int, int]
    format: ChatFormat
    model_hash: str
    rows: tuple[str, ...] = ()

    __repr__ = brief

    @property
    def norms(self) -> Tensor:
        """(positions, layers) lengths."""
        return self.vectors.norm(dim=-1)

    @property
    def zeros(self) -> list[tuple[int, int]]:
        """(layer, position) of vectors of length 0: there the classes do not differ at all."""
        where = (self.norms == 0).nonzero().tolist()
        return [(self.layers[layer], self.positions[p]) for p, layer in where]

    def at(self, layer: int, position: int) -> Direction:
        """One candidate.

        Raises:
            InterpError: a position or layer not among them, or a vector that is not finite.
        """
        row, column = self._place(layer, position)
        kept = ("site", "kind", "sign", "n", "format", "model_hash", "rows")
        return Direction(
            vector=self.vectors[row, column],
            position=position,
            layer=layer,
            token=self.tokens[row],
            **{name: getattr(self, name) for name in kept},
        )

    def reference_at(self, layer: int, position: int) -> Tensor:
        """(d_model,) mean of the second class."""
        return self.reference[self._place(layer, position)]

    def _place(self, layer: int, position: int) -> tuple[int, int]:
        if position not in self.positions or layer not in self.layers:
            raise InterpError(
                f"the candidate at layer {layer}, position {position}",
                "not among them",
                f"layers {self.layers}, positions {self.positions}",
            )
        return self.positions.index(position), self.layers.index(layer)


@reads_arguments
def difference_in_means(
    model: LanguageModel,
    first: Prompts,
    second: Prompts,
    *,
    kind: Kind = "harmful-harmless",
    site: str = "resid_pre",
    last: int | None = None,
    layers: Sequence[int] | None = None,
    least: int = 2,
    states: tuple[Tensor, Tensor] | None = None,
) -> Candidates:
    """mean(first) - mean(second) of the residual stream at the last tokens, in float64.

    With chat prompts the last tokens are the template's post-instruction tokens (arXiv
    2406.11717); one more includes the last token of the instruction, where 2507.11878 reads
    harmfulness instead of refusal. The sign is +1 (the first class is refused), -1 for "task".

    Args:
        model: a model whose weights are as loaded.
        first: harmful, refused or pseudo-harmful prompts; for "task" the answered ones.
        second: harmless or answered prompts; for "task" the refused ones.
        kind: what the two classes are, see `Kind`.
        site: resid_pre is the input of a block.
        last: how many tokens; the end that all prompts share by default.
        layers: which; all by default.
        least: the fewest prompts a class may have.
        states: what `end_states` gives for the two classes, where it has been read already.

    Raises:
        InterpError: an unknown kind, too few prompts, two formats, a prompt shorter than `last`,
            a site that is not as wide as the residual stream, or states of another shape.
    """
    if kind not in KINDS:
        raise unknown("kind of direction", kind, KINDS)
    sides = [plain_prompts(model, prompts) for prompts in (first, second)]
    sides[0].format.require(sides[1].format, "two classes of prompts")
    n = (len(sides[0]), len(sides[1]))
    if min(n) < least:
        raise InterpError(f"a {kind} direction", f"{n} prompts of the two classes", f"need {least}")
    tails = {side.tail for side in sides}
    count = last if last is not None else max(1, min(map(len, tails)))
    chosen = within(layers, model.n_layers, "layer", model.name)
    if states is None:
        first_states, second_states = (
            end_states(model, side, site=site, last=count, layers=chosen) for side in sides
        )
    else:
        first_states, second_states = states
        for mine, size in zip(states, n, strict=True):
            wanted = (size, count, len(chosen), model.d_model)
            if mine.shape != wanted:
                found = f"shape {tuple(mine.shape)}"
                raise InterpError(f"states for a {kind} direction", found, f"give {wanted}")
    means = [first_states.mean(0), second_states.mean(0)]
    rows = [row for side in sides for row in side.rows]
    ends = [{row[-k] for row in rows} for k in range(count, 0, -1)]
    return Candidates(
        vectors=means[0] - means[1],
        reference=means[1],
        positions=tuple(range(-count, 0)),
        layers=tuple(chosen),
        tokens=tuple(model.strings([*end])[0] if len(end) == 1 else "" for end in ends),
        site=site,
        kind=kind,
        sign=-1 if kind == "task" else 1,
        n=n,
        format=sides[0].format,
        model_hash=model.hash,
        rows=tuple(dict.fromkeys(sides[0].hashes + sides[1].hashes)),
    )


def refuse_seen(rows: Sequence[str], prompts: ChatPrompts, what: str) -> None:
    """Refuse to evaluate on prompts (`ChatPrompts.hashes`) that something was found with.

    Raises:
        InterpError: some of the prompts are among `rows`.
    """
    found = set(listed(rows))
    if seen := [place for place, name in enumerate(prompts.hashes) if name in found]:
        raise InterpError(
            what,
            f"{len(seen)} of {len(prompts)} prompts are among those it was found with, the first "
            f"is number {seen[0]}",
            "evaluate on other prompts: split the rows, and drop repeated ones",
        )


def end_states(
    model: LanguageModel,
    prompts: Prompts,
    *,
    site: str = "resid_pre",
    last: int = 1,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """A site at the last tokens of every prompt: (prompts, last, layers, d_model) in float64.

    Raises:
        InterpError: a prompt shorter than `last`, a site of another width, or inside `intervene`.
    """
    model.require_site(site)
    model.refuse_changed("reading states", "run_with_cache()")
    rows = plain_prompts(model, prompts).rows
    if SITES[site] is not None or not rows or min(map(len, rows)) < last or last < 1:
        raise InterpError(
            f"{site} at the last {last} tokens of {len(rows)} prompts",
            "no residual site, or a prompt without so many",
            "read resid_pre, resid_mid, resid_post, attn_out or mlp_out, and fewer tokens",
        )
    chosen = within(layers, model.n_layers, "layer", model.name)
    if model.decoder is not None:
        found = site_values(model, rows, [(layer, site) for layer in chosen], last=last)
        return torch.stack([found[layer, site].double().cpu() for layer in chosen], 2)
    ends = [[-back] * len(rows) for back in range(last, 0, -1)]
    seen = [run_with_cache(model, rows, sites=[site], layers=chosen, positions=end) for end in ends]
    columns = [torch.stack([one[layer, site] for layer in chosen], 1) for one in seen]
    return torch.stack(columns, 1).double()


def orthogonalise(
    direction: Direction, against: Direction, *, strength: float = 1.0, keep_norm: bool = True
) -> Direction:
    """Take out the part along another: w - strength * proj_r(w), rescaled to the length of w.

    arXiv 2410.03415 rescales to length one; with `keep_norm` False nothing is rescaled.

    Raises:
        InterpError: directions of different models or formats, or nothing is left.
    """
    direction.format.require(against.format, f"orthogonalising {direction}")
    if direction.model_hash != against.model_hash:
        raise InterpError(f"orthogonalising {direction}", "of two models", "read both from one")
    unit, vector = against.unit, direction.vector
    left = vector - strength * (vector @ unit) * unit
    if float(left.norm()) <= 1e-12 * direction.norm:
        raise InterpError(f"orthogonalising {direction}", f"parallel to {against}", "take others")
    if keep_norm:
        left = left * direction.norm / left.norm()
    made = f"{direction.made}, less {strength:g} times its part along {against}"
    rows = tuple(dict.fromkeys(direction.rows + against.rows))
    unit = "unit" if direction.normalisation == "unit" and keep_norm else "none"
    return replace(direction, vector=left, made=made, rows=rows, normalisation=unit)


def orthonormal(vectors: Sequence[Tensor]) -> Tensor:
    """(k, d_model) float64 Gram-Schmidt basis of the space these vectors span.

    Raises:
        InterpError: none, or one that the others already span.
    """
    if not len(vectors):
        raise InterpError("a basis", "no directions", "give at least one")
    units = torch.stack([vector.double() / vector.double().norm() for vector in vectors], 1)
    basis, triangle = torch.linalg.qr(units)
    if not bool((triangle.diagonal().abs() > 1e-8).all()):
        raise InterpError(f"a basis of {len(vectors)} directions", "they are dependent", "drop one")
    return (basis * triangle.diagonal().sign()).T


def random_direction(direction: Direction, *, seed: int = 0) -> Direction:
    """A random direction of the same length, in the same place: the null of any steering."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(direction.vector), generator=generator, dtype=torch.float64)
    vector = drawn / drawn.norm() * direction.norm
    return replace(direction, vector=vector, made=f"random, of equal length (seed {seed})")


@dataclass(frozen=True, kw_only=True)
class _Named(Record):
    """Directions by name, as a file holds them."""

    directions: Mapping[str, Direction]


def save_directions(path: Path, directions: Mapping[str, Direction]) -> Path:
    """Named directions in one file, each with its contract.

    Raises:
        InterpError: the file cannot be written.
    """
    return _Named(directions=directions).save(path)


def load_directions(path: Path) -> dict[str, Direction]:
    """What `save_directions` wrote.

    Raises:
        InterpError: not such a file, or a damaged or changed one.
    """
    return dict(_Named.load(path).directions)
