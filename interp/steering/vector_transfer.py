"""Which vector makes a model do which task: on held-out queries, beside four nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from interp.core.arguments import listed, reads_arguments
from interp.core.components import Axis, Component
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, matched_components, null_of
from interp.core.run_options import Progress
from interp.core.schema import Brief, Count, checked
from interp.core.statistics import Estimate, bootstrap_estimate, share_estimate
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.results.scores import Scores
from interp.steering.function_vectors import function_vector_of, head_effects_of, written
from interp.steering.task_vectors import TaskReadings, TaskVector, answered, task_vector_of
from interp.tasks.word_pairs import WordTask

VectorSource = Literal["examples", "instruction", "both", "bare", "heads"]
"""What a vector is read from: that of `task_vector`, or "heads" for a function vector."""

SOURCES: tuple[VectorSource, ...] = get_args(VectorSource)


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorTest(Brief):
    """Right answers to held-out bare queries with a vector, and with those that are its nulls.

    Attributes:
        name: the task, or the tasks together.
        spec: what the vector was read from.
        layers: the layer of each vector.
        heads: the heads of each function vector.
        hits: (n,) right answers with the vector.
        plain: (n,) right answers without a vector.
        others: (n,) share of right answers over the vectors of all other tasks; None with one task.
        shuffled: (n,) right answers with the vector read from examples with permuted answers; None
            if it was not read from examples. Its layer is chosen as that of the vector is.
        random: (draws, n) right answers with random vectors of the same length and layer.
        random_heads: (draws, n) with the summed outputs of random heads of the same layers and
            count, for a function vector.
    """

    name: str
    spec: str
    layers: tuple[int, ...]
    heads: tuple[tuple[str, ...], ...]
    hits: np.ndarray
    plain: np.ndarray
    others: np.ndarray | None
    shuffled: np.ndarray | None
    random: np.ndarray
    random_heads: np.ndarray | None

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers with the vector (Wilson interval)."""
        return share_estimate(int(self.hits.sum()), len(self.hits))

    @property
    def plain_accuracy(self) -> Estimate:
        """Share of right answers without a vector (Wilson interval)."""
        return share_estimate(int(self.plain.sum()), len(self.plain))

    @property
    def gains(self) -> dict[str, Estimate]:
        """Accuracy minus that of each null, by its name; bootstrap over queries.

        The nulls are "no vector", "other tasks", "permuted answers", "random vector" and "random
        heads" (means over their draws), as far as they were measured.
        """
        rows = {
            "no vector": self.plain,
            "other tasks": self.others,
            "permuted answers": self.shuffled,
            "random vector": self.random.mean(0),
            "random heads": None if self.random_heads is None else self.random_heads.mean(0),
        }
        return {
            name: bootstrap_estimate(self.hits - row)
            for name, row in rows.items()
            if row is not None
        }

    @property
    def nulls(self) -> dict[str, Null]:
        """The accuracy among those of the draws of each random null."""
        drawn = {"random vector": self.random, "random heads": self.random_heads}
        return {
            name: null_of(float(self.hits.mean()), rows.mean(1))
            for name, rows in drawn.items()
            if rows is not None
        }

    def to_json(self) -> dict[str, Any]:
        """The accuracy, the gains beyond every null, and the ranks among random ones."""
        return {
            "task": self.name,
            "read_from": self.spec,
            "layers": self.layers,
            "heads": self.heads,
            "accuracy": asdict(self.accuracy),
            "without": asdict(self.plain_accuracy),
            "beyond": {name: asdict(one) for name, one in self.gains.items()},
            "among": {name: asdict(one) for name, one in self.nulls.items()},
        }

    def __repr__(self) -> str:
        gains = ", ".join(f"{name} {one.mean:+z.2f}" for name, one in self.gains.items())
        return f"VectorTest({self.name}, {self.spec}: accuracy {self.accuracy}; beyond {gains})"


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferMatrix(Tabled):
    """The accuracy of every task's held-out bare queries with every task's vectors.

    Attributes:
        vectors: the vectors, those of one task after the other.
        tasks: names of the tasks.
        hits: for each task, (vectors, n) right answers.
        prompted: for each task, right answers (n,) of the same queries without a vector, by what
            the prompt shows: "none", "examples" (of the other half) or "instruction".
        tests: for each vector, the test on its own task.
        model: the model's name.
        effects: by task, the effects that the heads of function vectors were chosen by.
    """

    vectors: tuple[TaskVector, ...]
    tasks: tuple[str, ...]
    hits: tuple[np.ndarray, ...]
    prompted: tuple[Mapping[str, np.ndarray], ...]
    tests: tuple[VectorTest, ...]
    model: str
    effects: Mapping[str, Scores]

    @property
    def accuracy(self) -> np.ndarray:
        """(vectors, tasks) share of right answers."""
        return np.stack([one.mean(1) for one in self.hits], 1)

    def pooled(self, spec: str) -> VectorTest:
        """The tests of all tasks together, for vectors read from `spec`; each query counts once.

        Draw i of a random null is draw i of every task.

        Raises:
            InterpError: no vector was read from it.
        """
        some = [test for test in self.tests if test.spec == spec]
        if not some:
            raise unknown("specification of a vector", spec, {one.spec for one in self.tests})

        def joined(name: str) -> Any:
            rows = [getattr(test, name) for test in some]
            return None if rows[0] is None else np.concatenate(rows, -1)

        names = ("hits", "plain", "others", "shuffled", "random", "random_heads")
        return VectorTest(
            name=f"{len(some)} tasks",
            spec=spec,
            layers=tuple(test.layers[0] for test in some),
            heads=tuple(test.heads[0] for test in some),
            **{name: joined(name) for name in names},
        )

    def prompted_accuracy(self, task: str | None = None) -> dict[str, Estimate]:
        """Share of right answers without a vector, of one task or all, by what the prompt shows.

        Raises:
            InterpError: no such task.
        """
        if task is not None and task not in self.tasks:
            raise unknown("task of the matrix", task, self.tasks)
        chosen = [
            one for name, one in zip(self.tasks, self.prompted, strict=True) if task in (None, name)
        ]
        every = {name: np.concatenate([one[name] for one in chosen]) for name in chosen[0]}
        return {name: share_estimate(int(row.sum()), len(row)) for name, row in every.items()}

    def to_json(self) -> dict[str, Any]:
        """Accuracies with intervals, tests and nulls, as JSON values; see `VectorTest.to_json`."""
        specs = tuple(dict.fromkeys(one.spec for one in self.vectors))
        prompted = {None: "all", **{task: task for task in self.tasks}}
        return {
            "model": self.model,
            "prompted": {
                name: {shown: asdict(one) for shown, one in self.prompted_accuracy(task).items()}
                for task, name in prompted.items()
            },
            "pooled": [self.pooled(spec).to_json() for spec in specs],
            "tests": [test.to_json() for test in self.tests],
            "matrix": self.to_dataframe().to_dict("records"),
        }

    def to_dataframe(self) -> Any:
        """One row per vector: its layer, and the accuracy on every task."""
        from pandas import DataFrame

        return DataFrame(
            [
                {"vector": one.task, "read from": one.spec, "layer": one.layer}
                | dict(zip(self.tasks, row, strict=True))
                for one, row in zip(self.vectors, self.accuracy.tolist(), strict=True)
            ]
        )

    def __repr__(self) -> str:
        specs = dict.fromkeys(one.spec for one in self.vectors)
        plain = self.pooled(next(iter(specs))).plain_accuracy.mean
        shown = ", ".join(f"{spec} {self.pooled(spec).accuracy.mean:z.2f}" for spec in specs)
        return (
            f"TransferMatrix({self.model}, {len(self.tasks)} tasks; accuracy without a vector "
            f"{plain:z.2f}, with it by source: {shown})"
        )


@reads_arguments
def transfer_matrix(
    model: LanguageModel,
    tasks: WordTask | Sequence[WordTask],
    specs: str | Sequence[str] = ("examples", "instruction", "both", "heads"),
    *,
    heads: int | Sequence[str] = 10,
    layer: int | None = None,
    effects: Mapping[str, Scores] | None = None,
    draws: int = 20,
    examples: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> TransferMatrix:
    """The accuracy of bare queries of every task, with the vector of every task and source.

    Every task is split into two halves. Vectors are read, and their layers and heads chosen, on the
    first half; accuracy is measured on bare queries of the second. Each vector stands beside its
    nulls on its own task, see `VectorTest`. The interval of a share is Wilson's, that of a
    difference a bootstrap over queries.

    Args:
        model: a model with a fast engine.
        tasks: word tasks, from `interp.tasks.word_tasks` or your own.
        specs: what vectors are read from: "examples", "instruction", "both", "bare" (see
            `task_vector`) or "heads" (`function_vector`).
        heads: see `function_vector`.
        layer: one layer for all vectors; by default each has its own.
        effects: `head_task_effects` of the first half of each task, by its name; by default
            measured here.
        draws: number of random vectors, and of random sets of heads.
        examples: number of examples in a prompt.
        seed: seed of halves, examples and random vectors.
        progress: called with (tasks done, tasks in total), once vectors of a task are made.

    Raises:
        InterpError: as `task_vector` and `function_vector`, an unknown source, no tasks, or two of
            one name.
    """
    tasks, sources = listed(tasks), listed(specs)
    draws = checked(Count, draws, "draws")
    names = tuple(one.name for one in tasks)
    for source in sources:
        if source not in SOURCES:
            raise unknown("source of a vector", source, SOURCES)
    if not names or not sources or len({*names}) < len(names) or len({*sources}) < len(sources):
        found = f"tasks {list(names)}, sources {list(sources)}"
        raise InterpError("a transfer matrix", found, "give at least one of each, each once")
    halves = [one.split(seed=seed) for one in tasks]
    vectors: list[TaskVector] = []
    nulls: list[_Nulls] = []
    measured = dict(effects or {})
    for done, (first, _) in enumerate(halves, 1):
        readings = TaskReadings(model=model, task=first, examples=examples, seed=seed)
        for source in sources:
            if source == "heads":
                if isinstance(heads, int) and first.name not in measured:
                    measured[first.name] = head_effects_of(readings)
                chosen_by = measured.get(first.name)
                one = function_vector_of(readings, heads, layer, effects=chosen_by)
            else:
                one = task_vector_of(readings, source, layer)
            vectors.append(one)
            nulls.append(_nulls(readings, one, draws, layer))
        if progress is not None:
            progress(done, len(halves))
    hits, prompted, tests = [], [], []
    for column, (first, second) in enumerate(halves):
        own = [i for i, one in enumerate(vectors) if one.task == names[column]]
        added = [null for i in own for null in nulls[i].vectors]
        found, _ = answered(model, second.prompts(), [one.change() for one in (*vectors, *added)])
        plain, own_hits = found[0].astype(float), found[1 : 1 + len(vectors)].astype(float)
        rest = found[1 + len(vectors) :].astype(float)
        hits.append(own_hits)
        prompted.append({"none": plain, **_prompted(model, first, second, examples, seed)})
        for i in own:
            mine, rest = rest[: len(nulls[i].vectors)], rest[len(nulls[i].vectors) :]
            others = [
                own_hits[j]
                for j, one in enumerate(vectors)
                if one.spec == vectors[i].spec and j != i
            ]
            tests.append(nulls[i].test(vectors[i], own_hits[i], plain, others, mine))
    return TransferMatrix(
        vectors=tuple(vectors),
        tasks=names,
        hits=tuple(hits),
        prompted=tuple(prompted),
        tests=tuple(tests),
        model=model.name,
        effects=measured,
    )


def _prompted(
    model: LanguageModel, first: WordTask, second: WordTask, examples: int, seed: int
) -> dict[str, np.ndarray]:
    """(n,) right answers of held-out queries, with examples of the first half or an instruction."""
    found = {}
    for shown in ("examples", "instruction"):
        prompts = second.prompts(shown, source=first, examples=examples, seed=seed)
        found[shown] = answered(model, prompts, [])[0][0].astype(float)
    return found


@dataclass(frozen=True, kw_only=True)
class _Nulls:
    """The vectors that are nulls of one: with permuted answers, random, and of random heads."""

    shuffled: tuple[TaskVector, ...]
    random: tuple[TaskVector, ...]
    heads: tuple[TaskVector, ...]

    @property
    def vectors(self) -> tuple[TaskVector, ...]:
        return self.shuffled + self.random + self.heads

    def test(
        self,
        vector: TaskVector,
        hits: np.ndarray,
        plain: np.ndarray,
        others: Sequence[np.ndarray],
        found: np.ndarray,
    ) -> VectorTest:
        """The test of the vector; `found` holds the right answers with each of the nulls."""
        at = len(self.shuffled), len(self.shuffled) + len(self.random)
        return VectorTest(
            name=vector.task,
            spec=vector.spec,
            layers=(vector.layer,),
            heads=(vector.heads,),
            hits=hits,
            plain=plain,
            others=np.mean(others, 0) if others else None,
            shuffled=found[0] if self.shuffled else None,
            random=found[at[0] : at[1]],
            random_heads=found[at[1] :] if self.heads else None,
        )


def _nulls(readings: TaskReadings, vector: TaskVector, draws: int, layer: int | None) -> _Nulls:
    """The nulls of a vector that was made from the readings."""
    shuffled: tuple[TaskVector, ...] = ()
    if vector.spec == "examples":
        shuffled = (task_vector_of(readings, "examples", layer, shuffled=True),)
    if vector.spec == "heads":
        shuffled = (function_vector_of(readings, vector.heads, layer, shuffled=True),)
    generator = torch.Generator().manual_seed(readings.seed)
    drawn = torch.randn(draws, len(vector.vector), generator=generator, dtype=torch.float64)
    random = drawn / drawn.norm(dim=1, keepdim=True) * vector.vector.norm()
    return _Nulls(
        shuffled=shuffled,
        random=tuple(replace(vector, vector=one, heads=()) for one in random),
        heads=tuple(_random_heads(readings, vector, draws)) if vector.heads else (),
    )


def _random_heads(readings: TaskReadings, vector: TaskVector, draws: int) -> list[TaskVector]:
    """Function vectors of random heads of the same layers and count."""
    _, means = readings.means("examples")
    rng, model = np.random.default_rng(readings.seed), readings.model
    chosen = [Component.parse(label) for label in vector.heads]

    def size(axis: Axis) -> int:
        return model.n_heads

    found = []
    for _ in range(draws):
        heads = matched_components(chosen, model.n_layers, size, rng)
        summed = written(model, means, heads)
        found.append(replace(vector, vector=summed, heads=tuple(map(str, heads))))
    return found
