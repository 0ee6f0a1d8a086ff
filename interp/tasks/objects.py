"""Colored Objects: the task of naming the colour of one of three objects on a table."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Literal

from interp.core.arguments import Tokenizing
from interp.core.errors import unknown
from interp.core.prompts import PromptPair
from interp.tasks.words import COLOURS, OBJECTS, single_token

Split = Literal["any", "train", "test"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Three things on a table, with their colours."""

    things: tuple[str, ...]
    hues: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the table is in the held-out fifth, on which no model here is trained.

        This is decided by a hash of the sorted (colour, thing) pairs, so that a held-out table is
        never seen in training, in any order or with any question.
        """
        key = ",".join(sorted(f"{hue} {thing}" for hue, thing in self.pairs))
        return hashlib.sha256(key.encode()).digest()[0] % 5 == 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(colour, thing) in the order in which the text names them."""
        return list(zip(self.hues, self.things, strict=True))

    def question(self, asked: int) -> str:
        """The description of the table and a question about one thing, up to "A:"."""
        seen = [f"{'an' if hue[0] in 'aeiou' else 'a'} {hue} {thing}" for hue, thing in self.pairs]
        there = f"Q: On the table, there is {seen[0]}, {seen[1]}, and {seen[2]}."
        return f"{there} What color is the {self.things[asked]}?\nA:"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An example (a table and the thing shown) and a question (a table and two things)."""

    example: Table
    table: Table
    shown: int
    asked: int
    other: int

    def prompt(self, *, asked: int | None = None, shots: int = 1) -> str:
        """The text up to the answer, after the example unless `shots` is 0."""
        question = self.table.question(self.asked if asked is None else asked)
        if not shots:
            return question
        return f"{self.example.question(self.shown)} {self.example.hues[self.shown]}\n{question}"

    @property
    def answer(self) -> str:
        """The colour of the thing asked for."""
        return self.table.hues[self.asked]

    def recoloured(self) -> Scene:
        """The same question, with the colours of its table shifted by one thing."""
        turned = self.table.hues[1:] + self.table.hues[:1]
        return replace(self, table=replace(self.table, hues=turned))


def make_scenes(
    n: int, seed: int, model: Tokenizing | None = None, *, split: Split = "any"
) -> list[Scene]:
    """Random scenes. `split` is "test" if both tables must be held out, "train" if neither may be.

    Raises:
        InterpError: the split is unknown, or too few words are single tokens.
    """
    if split not in ("any", "train", "test"):
        raise unknown("split", split, ("any", "train", "test"))
    rng = random.Random(seed if split == "any" else f"{seed} {split}")
    objects, colours = single_token(OBJECTS, model, 6), single_token(COLOURS, model, 6)
    found: list[Scene] = []
    while len(found) < n:
        things, hues = rng.sample(objects, 6), rng.sample(colours, 6)
        example, table = (
            Table(things=tuple(things[i : i + 3]), hues=tuple(hues[i : i + 3])) for i in (0, 3)
        )
        shown, asked = rng.randrange(3), rng.randrange(3)
        other = rng.choice([i for i in range(3) if i != asked])
        sides = {example.held_out, table.held_out}
        if split == "any" or sides == {split == "test"}:
            found.append(Scene(example=example, table=table, shown=shown, asked=asked, other=other))
    return found


def colored_objects(
    n: int,
    seed: int,
    model: Tokenizing | None = None,
    *,
    shots: Literal[0, 1] = 1,
    split: Split = "any",
) -> tuple[PromptPair, ...]:
    """Colored Objects, one example first (Merullo et al. 2024, arXiv 2310.08744).

    The answer is the colour of the object asked for, and the wrong answers are the colours of the
    two others. The corrupted prompt asks for another object. `shots=0` omits the example. `split`
    "train" uses only tables that models here may be trained on, and "test" only held-out tables.
    Positions: object (in the question), right, wrong1 and wrong2 (the colours of its table), thing
    (the object in the description of the table).

    Raises:
        InterpError: as in `make_scenes`.
    """
    pairs = []
    for scene in make_scenes(n, seed, model, split=split):
        table, asked = scene.table, scene.asked
        wrong = [i for i in range(3) if i != asked]
        named = {"right": asked, "wrong1": wrong[0], "wrong2": wrong[1]}
        pairs.append(
            PromptPair(
                clean=scene.prompt(shots=shots),
                corrupted=scene.prompt(asked=scene.other, shots=shots),
                answers=(f" {scene.answer}",),
                wrong=tuple(f" {table.hues[i]}" for i in wrong),
                positions={
                    "object": (f" the {table.things[asked]}", -1),
                    **{name: f" {table.hues[i]}" for name, i in named.items()},
                    "thing": f" {table.hues[asked]} {table.things[asked]}",
                },
            )
        )
    return tuple(pairs)
