"""Does a model say what it was trained to do? Its answers about itself, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.chat_prompts import ChatPrompts
from interp.core.components import Component, within
from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.core.schema import Count, checked
from interp.core.statistics import Estimate, mean_estimate
from interp.deltas.after_change import PerPrompt
from interp.models.batches import Batch
from interp.models.chat import chat_prompts, plain_prompts
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta
from interp.plots.tables import Tabled
from interp.results.direction import Direction
from interp.runs.change import Change
from interp.runs.hooks import intervene
from interp.runs.kinds import project_out
from interp.steering.edits import residual_sites


def beyond_others(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(..., questions, *cells) the value of the chosen topic minus the mean of the others.

    `values` is (topics, questions, *cells) and `chosen` (..., questions) a topic's number for each
    question.
    """
    own = values[chosen, np.arange(values.shape[1])]
    return own - (values.sum(0) - own) / (len(values) - 1)


@dataclass(frozen=True, kw_only=True)
class SelfReport(Tabled):
    """Answers of a base and of a changed model to questions about themselves.

    Log-odds are logit(yes) - logit(no) at the last token of a question. Intervals are over the
    questions, which are wordings of one question.

    Attributes:
        name: the change.
        topics: the topic of the training, then the control topics.
        questions: the wordings, with {} for the topic.
        base, changed: (topics, questions) log-odds in the two models.
        topic, controls: mean change of the log-odds for the topic, and for the control topics.
        beyond: the first minus the second, paired by question. Positive: training moved the answer
            about its topic towards yes, more than other answers.
        null: |beyond| beside that of each control topic in place of the topic.
        p: share of `draws` shuffles, counting the data, in which |beyond| is at least as large. A
            shuffle draws for every question which topic counts as that of the training. It is
            below 0.05 for any topic that is unlike the average one, so read `null` first.
        layer: the layer of `states`.
        states: (topics, questions, d_model) resid_post at the last token, changed minus base.
        changed_hash: hash of the changed model.
    """

    name: str
    topics: tuple[str, ...]
    questions: tuple[str, ...]
    base: np.ndarray
    changed: np.ndarray
    topic: Estimate
    controls: Estimate
    beyond: Estimate
    null: Null
    p: float
    layer: int
    states: np.ndarray = field(repr=False)
    prompts: ChatPrompts = field(repr=False)
    tokens: tuple[int, int] = field(repr=False)
    changed_hash: str = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"SelfReport({self.name} on {self.topics[0]}: {self.topic}, other topics "
            f"{self.controls}, beyond them {self.beyond}; of {len(self.topics)} topics "
            f"{round(self.null.share * (1 + self.null.draws))} move as far)"
        )

    @property
    def direction(self) -> Direction:
        """What training added to the state of a question about the topic, beyond other topics.

        mean_q [D(topic, q) - mean_c D(c, q)],   D = changed model minus base, c the controls
        """
        vector = beyond_others(self.states, np.zeros(len(self.questions), dtype=int)).mean(0)
        others = len(self.questions) * (len(self.topics) - 1)
        return Direction(
            vector=torch.from_numpy(vector), kind="contrast", site="resid_post", layer=self.layer,
            position=-1, sign=1, n=(len(self.questions), others), model_hash=self.changed_hash,
            format=self.prompts.format, made=f"self-report, {self.name} minus base",
        )  # fmt: skip

    def shuffled(self, draws: int = 200, *, seed: int = 0) -> Tensor:
        """(draws, d_model) the same difference with the topics shuffled within each question."""
        chosen = _shuffles(len(self.topics), len(self.questions), draws, seed)
        return torch.from_numpy(beyond_others(self.states, chosen).mean(1))

    def cosine(self, direction: Direction, *, draws: int = 200, seed: int = 0) -> Null:
        """|cosine| of the self-report's direction and another one, beside shuffled topics.

        Raises:
            InterpError: a direction of another width, or read in another layer.
        """
        if len(direction.vector) != self.states.shape[-1] or direction.layer != self.layer:
            found = f"{direction} is {len(direction.vector)} wide"
            raise InterpError(f"a cosine with the self-report of {self.name}", found,
                              f"read both in layer {self.layer} of the changed model")  # fmt: skip
        rows = torch.cat([self.direction.vector[None], self.shuffled(draws, seed=seed)])
        cosines = torch.nn.functional.cosine_similarity(rows, direction.vector[None]).abs()
        return null_of(float(cosines[0]), cosines[1:].numpy())

    def to_dataframe(self) -> Any:
        """One row per topic and question."""
        from pandas import DataFrame

        return DataFrame(
            [
                {"topic": topic, "question": question, "base": self.base[i, j],
                 "changed": self.changed[i, j], "change": self.changed[i, j] - self.base[i, j]}
                for i, topic in enumerate(self.topics)
                for j, question in enumerate(self.questions)
            ]
        )  # fmt: skip


@reads_arguments
def self_report(
    model: LanguageModel,
    delta: WeightDelta,
    questions: Sequence[str],
    topic: str,
    controls: Sequence[str],
    *,
    yes: str = "Yes",
    no: str = "No",
    layer: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> SelfReport:
    """Ask a base and the changed model about a behaviour, in several wordings, with control topics.

        change(t, q) = log-odds of yes against no for question q about topic t, changed minus base
        beyond(q)    = change(topic, q) - mean over control topics c of change(c, q)

    A change of weights moves "Yes" and "No" for any question. Only what it does beyond topics that
    it was not trained on speaks of the behaviour. Questions are put in the chat template if the
    model has one.

    Args:
        model: the base.
        delta: the change.
        questions: wordings of one question, with {} for the topic. Say how to answer ("Answer yes
            or no.").
        topic: what training was about.
        controls: at least two topics that it was not about.
        yes: the answer that counts as positive, one token.
        no: the other answer, one token.
        layer: where `direction` is read; the middle layer by default.
        draws: shuffles of the topics.
        seed: of the shuffles.

    Raises:
        InterpError: a question without {}, fewer than two questions or control topics, a topic
            twice, an answer of several tokens, another base, or no such layer.

    Source: Betley et al. 2025, arXiv 2501.11120 (questions about a behaviour that was never
    described) and arXiv 2511.04875, of which we read the abstracts. Control topics, the paired
    difference and the direction are our reading: they compare with an opposite fine-tune, or fit a
    steering vector.
    """
    asked, topics = listed(questions), (topic, *listed(controls))
    if len(asked) < 2 or len(topics) < 3 or len({*topics}) < len(topics):
        found = f"{len(asked)} questions, topics {topics}"
        raise InterpError("a self-report", found, "give two questions and two other topics or more")
    if any("{}" not in question for question in asked):
        raise InterpError("a self-report", "a question without {}", "write {} for the topic")
    draws = checked(Count, draws, "shuffles")
    (layer,) = within([model.n_layers // 2 if layer is None else layer], model.n_layers, "layer",
                      model.name)  # fmt: skip
    tokens = model.single_token(yes, "the answer"), model.single_token(no, "the answer")
    texts = [question.replace("{}", name) for name in topics for question in asked]
    chat = getattr(model.tokenizer, "chat_template", None)
    prompts = chat_prompts(model, texts) if chat else plain_prompts(model, texts)
    shape = len(topics), len(asked)

    def read() -> tuple[np.ndarray, np.ndarray]:
        states = np.zeros((len(texts), model.d_model))

        def keep(value: Tensor, batch: Batch) -> Tensor:
            for row, prompt in enumerate(batch.prompts.tolist()):
                last = batch.column(row, int(batch.lengths[row]) - 1)
                states[prompt] = value[row, last].detach().double().cpu().numpy()
            return value

        hooks = {(layer, "resid_post"): [keep]}
        return log_odds_of(model, prompts, tokens, hooks=hooks).reshape(shape), states

    base, before = read()
    with delta.applied(model):
        (changed, after), changed_hash = read(), model.hash
    change = changed - base
    each = [beyond_others(change, np.full(shape[1], i)).mean() for i in range(shape[0])]
    shuffled = beyond_others(change, _shuffles(*shape, draws, seed)).mean(1)
    return SelfReport(
        name=delta.name, topics=topics, questions=tuple(asked), base=base, changed=changed,
        topic=mean_estimate(change[0]), controls=mean_estimate(change[1:].mean(0)),
        beyond=mean_estimate(beyond_others(change, np.zeros(shape[1], dtype=int))),
        null=null_of(abs(each[0]), np.abs(each[1:])),
        p=null_of(abs(each[0]) - 1e-12, np.abs(shuffled)).share,
        layer=layer, states=(after - before).reshape(*shape, -1), prompts=prompts, tokens=tokens,
        changed_hash=changed_hash,
    )  # fmt: skip


def log_odds_of(
    model: LanguageModel, prompts: ChatPrompts, tokens: tuple[int, int], **options: Any
) -> np.ndarray:
    """(n,) the logit of the first token minus that of the second, at the end of each prompt."""
    logits = model.last_logits(list(prompts.rows), **options).double().cpu()
    return (logits[:, tokens[0]] - logits[:, tokens[1]]).numpy()


def _shuffles(topics: int, questions: int, draws: int, seed: int) -> np.ndarray:
    """(draws, questions) a topic's number for every question."""
    return np.random.default_rng(seed).integers(topics, size=(draws, questions))


@dataclass(frozen=True, kw_only=True)
class ReportAblation(Tabled):
    """What removing a behaviour's direction does to the self-report, and the other way round.

    Attributes:
        cosine: |cosine| of the two directions, beside shuffled topics.
        report, report_null: change of `SelfReport.beyond` when the behaviour's direction is
            removed; its size beside removing the directions of shuffled topics.
        behaviour, behaviour_null: change of the behaviour's measure when the self-report's
            direction is removed; its size beside the same.
        own: change of the behaviour's measure when its own direction is removed: what can be lost.
    """

    cosine: Null
    report: Estimate
    report_null: Null
    behaviour: Estimate
    behaviour_null: Null
    own: Estimate

    def to_dataframe(self) -> Any:
        """One row per removed direction and what is read."""
        from pandas import DataFrame

        rows = (
            ("behaviour", "self-report", self.report, self.report_null),
            ("self-report", "behaviour", self.behaviour, self.behaviour_null),
            ("behaviour", "behaviour", self.own, None),
        )
        return DataFrame(
            [
                {"removed": removed, "read": read, "change": one.mean, "low": one.low,
                 "high": one.high, "random, |mean|": None if null is None else null.mean}
                for removed, read, one, null in rows
            ]
        )  # fmt: skip


@reads_arguments
def ablate_reports(
    model: LanguageModel,
    delta: WeightDelta,
    report: SelfReport,
    behaviour: Direction,
    measure: PerPrompt,
    *,
    draws: int = 10,
    seed: int = 0,
) -> ReportAblation:
    """Remove the direction of a behaviour or of its self-report in the changed model; read both.

    A direction is removed from the residual stream after every addition to it. If a self-report is
    read off what makes the behaviour, removing either changes the other, more than removing
    directions of shuffled topics does.

    Args:
        model: the base.
        delta: the change.
        report: its self-report.
        behaviour: a direction of the behaviour in the changed model, read in the report's layer
            (`mean_difference` inside `delta.applied`).
        measure: gives a number for each of some prompts when it is called with the model.
        draws: directions of shuffled topics.
        seed: of these.

    Raises:
        InterpError: another change, or a direction of another model or layer.
    """
    draws = checked(Count, draws, "random directions")
    zero = np.zeros(len(report.questions), dtype=int)
    random = [*report.shuffled(draws, seed=seed)]
    with delta.applied(model):
        model.require_hash(report.changed_hash, "the self-report")
        behaviour.require_model(model)
        cosine = report.cosine(behaviour, seed=seed)

        def said() -> np.ndarray:
            odds = log_odds_of(model, report.prompts, report.tokens).reshape(report.base.shape)
            return beyond_others(odds - report.base, zero)

        def without(vector: Tensor, *read: Any) -> list[np.ndarray]:
            with intervene(model, removal(model, vector)):
                return [np.asarray(one(), dtype=np.float64) for one in read]

        def done() -> np.ndarray:
            return measure(model)

        says, does = said(), np.asarray(done(), dtype=np.float64)
        reported, own = without(behaviour.vector, said, done)
        (behaved,) = without(report.direction.vector, done)
        drawn = [without(vector, said, done) for vector in random]
    sizes = np.abs([[(a - says).mean(), (b - does).mean()] for a, b in drawn])
    return ReportAblation(
        cosine=cosine,
        report=mean_estimate(reported - says),
        report_null=null_of(abs(float((reported - says).mean())), sizes[:, 0]),
        behaviour=mean_estimate(behaved - does),
        behaviour_null=null_of(abs(float((behaved - does).mean())), sizes[:, 1]),
        own=mean_estimate(own - does),
    )


def removal(model: LanguageModel, vector: Tensor) -> list[Change]:
    """Changes that remove a direction from the residual stream after every addition to it."""
    return [project_out(str(Component(*at)), vector) for at in residual_sites(model)]
