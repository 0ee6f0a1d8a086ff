"""`probe_suite`: what a model knows of its sentences at each layer, and what tuning changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.nulls import holm
from interp.core.records import Record
from interp.core.schema import Brief
from interp.engine.memory import says_too_little
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.probing.class_probes import ClassFitKeywords, ClassFitOptions, probe_classes
from interp.probing.held_out_probes import HeldOutProbes, ProbeDifference
from interp.probing.output_signatures import states_and_signature
from interp.probing.sentence_tasks import TASKS, SentenceTask, probe_sentences

if TYPE_CHECKING:
    from pandas import DataFrame

TOP = 50
"""Probabilities of each token in the signature of the outputs."""


@dataclass(frozen=True, kw_only=True)
class SuiteTask(Brief):
    """The probes of one task on one model, all with the same held-out sentences.

    Attributes:
        states: probes of the residual stream after each layer, at the full stop.
        words: the probe of the averaged embeddings of the tokens: it sees no order.
        outputs: the probe of the model's `OutputSignature`: it sees nothing internal.
    """

    states: HeldOutProbes
    words: HeldOutProbes
    outputs: HeldOutProbes

    @property
    def beyond_words(self) -> ProbeDifference:
        """What the layers read better than the words do."""
        return self.states.minus(self.words)

    @property
    def beyond_outputs(self) -> ProbeDifference:
        """What the layers read better than the outputs tell."""
        return self.states.minus(self.outputs)


@dataclass(frozen=True, kw_only=True)
class ProbeSuite(Tabled, Record):
    """Accuracy of probes by task and layer, beside three controls, for one model or two.

    Attributes:
        model, against: names of the models; `against` is None for one model.
        model_hash, against_hash: their hashes.
        tasks: task -> probes of the model.
        base: task -> probes of the model that it is compared with; empty for one model.
        n: sentences of a task.
    """

    model: str
    model_hash: str
    against: str | None
    against_hash: str | None
    tasks: Mapping[str, SuiteTask]
    base: Mapping[str, SuiteTask]
    n: int

    def __repr__(self) -> str:
        beside = "" if self.against is None else f" against {self.against}"
        best = ", ".join(f"{k} {float(v.states.values.max()):z.2f}" for k, v in self.tasks.items())
        return f"ProbeSuite({self.model}{beside}, n={self.n} a task; best layer: {best})"

    @property
    def differences(self) -> dict[str, ProbeDifference]:
        """Task -> accuracy of the model minus that of the other, paired by sentence.

        Raises:
            InterpError: there is no other model.
        """
        if not self.base:
            found, do = "one model", "call probe_suite(model, against=other)"
            raise InterpError("differences between two models", found, do)
        return {name: one.states.minus(self.base[name].states) for name, one in self.tasks.items()}

    @property
    def p_of_differences(self) -> dict[str, float]:
        """Task -> p that any layer differs, corrected for the layers and (Holm) for the tasks."""
        found = self.differences
        return dict(zip(found, holm([one.p_any for one in found.values()]), strict=True))

    def to_dataframe(self) -> DataFrame:
        """One row per task and layer: accuracies, intervals, controls and paired differences."""
        import pandas as pd

        tables = []
        apart = self.differences if self.base else {}
        for name, one in self.tasks.items():
            table = one.states.to_dataframe()
            table.insert(0, "task", name)
            table["words"], table["outputs"] = float(one.words.values), float(one.outputs.values)
            columns = {"beyond_words": one.beyond_words, "beyond_outputs": one.beyond_outputs}
            if name in apart:
                columns["difference"] = apart[name]
            for label, part in columns.items():
                table[label] = part.values
                table[f"{label}_low"], table[f"{label}_high"] = part.low, part.high
            if name in apart:
                table["difference_p"] = apart[name].p
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def plot(self) -> Any:
        """A Plotly figure of the accuracy of every task, layer by layer."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, one in self.tasks.items():
            layers = one.states.coordinates["layer"]
            figure.add_scatter(x=list(layers), y=one.states.values.tolist(), name=name)
        return figure.update_layout(
            xaxis_title="layer", yaxis_title="held-out accuracy", title=self.model
        )


@reads_arguments
@says_too_little
def probe_suite(
    model: LanguageModel,
    *,
    against: LanguageModel | None = None,
    tasks: Sequence[str] | SentenceTask | Sequence[SentenceTask] | None = None,
    n: int = 1000,
    layers: Iterable[int] | None = None,
    sentence_seed: int = 0,
    **fit: Unpack[ClassFitKeywords],
) -> ProbeSuite:
    """What can be read of a sentence at each layer: eight probing tasks, and what tuning changed.

    For every task of `probe_sentences`, `probe_classes` is fitted to the residual stream after each
    layer, at the full stop, and evaluated on held-out sentences. An accuracy stands beside

    - permuted labels (`shuffled`, `p`) and the most frequent class (`constant`);
    - `words`, a probe of the averaged token embeddings: what no order is needed for;
    - `outputs`, a probe of the model's `output_signature`: what its outputs tell anyway.

    A task whose layers beat neither shows no syntax and nothing internal. With `against`, the same
    sentences are probed in both models, and the difference is paired by sentence. Its interval is
    over held-out sentences; another `sentence_seed` shows how much the fitted ones matter. That a
    probe reads less does not show that the model lost it: it may be written in another form.

    Args:
        model: a loaded model with a tokeniser.
        against: another one, such as the one it was tuned from.
        tasks: names of `probe_sentences`, or labelled sentences of its form; all eight by default.
        n: sentences of each task that is named.
        layers: layers to probe; all by default. Of another model, the same ones.
        sentence_seed: seed of the sentences.
        fit: kind, shuffles, regularisation, hidden, seed, progress and cancelled of
            `probe_classes`; progress counts tasks of a model.

    Raises:
        InterpError: an unknown or repeated task, no task, folds (the sentences are split as they
            are made), a layer that a model lacks, and all that `probe_sentences`, `probe_classes`
            and `output_signature` refuse.

    Sources: Conneau et al. 2018, arXiv 1805.01070 (the tasks); arXiv 2312.15922 (probing a tuned
    model against its base). Departs from both: nulls, intervals and the two baselines.
    """
    if "folds" in fit:
        do = "leave folds= out, and give test_share to probe_sentences"
        raise InterpError("folds of a probe suite", "its sentences have a split of their own", do)
    options = ClassFitOptions(**fit)
    given = list(TASKS) if tasks is None else listed(tasks)
    sets = [
        one if isinstance(one, SentenceTask) else probe_sentences(one, n=n, seed=sentence_seed)
        for one in given
    ]
    names = [one.name for one in sets]
    if not sets or len({*names}) < len(names):
        raise InterpError("a probe suite", f"the tasks {names}", "give tasks, each once")
    models = [model] if against is None else [model, against]
    chosen = [within(layers, one.n_layers, "layer", one.name) for one in models]
    if len({*map(tuple, chosen)}) > 1:
        sizes = f"{model.n_layers} and {models[1].n_layers} layers"
        raise InterpError("the same layers of two models", sizes, "give layers that both have")
    found: list[dict[str, SuiteTask]] = [{} for _ in models]
    for one in sets:
        for place, which in enumerate(models):
            found[place][one.name] = _probed(which, one, chosen[place], {**fit, "progress": None})
            if options.progress is not None:
                done = sum(map(len, found))
                options.progress(done, len(sets) * len(models))
    return ProbeSuite(
        model=model.name,
        model_hash=model.hash,
        against=None if against is None else against.name,
        against_hash=None if against is None else against.hash,
        tasks=found[0],
        base={} if against is None else found[1],
        n=max(len(one.sentences) for one in sets),
    )


def _probed(
    model: LanguageModel, task: SentenceTask, layers: list[int], fit: Mapping[str, Any]
) -> SuiteTask:
    """The three kinds of probe of one task."""
    texts = [one.text for one in task.sentences]
    labels, test = [one.label for one in task.sentences], [one.test for one in task.sentences]
    states, signature = states_and_signature(model, texts, layers=layers, k=min(TOP, model.d_vocab))
    facts = {"model": model.name, "model_hash": model.hash, "task": task.name}
    read = {
        "resid_post": (states, {"layer": layers}),
        "embeddings": (averaged_embeddings(model, texts), {}),
        "outputs": (signature.vectors(), {}),
    }
    probes = [
        probe_classes(X, labels, test=test, coordinates=axes, source={**facts, "site": site}, **fit)
        for site, (X, axes) in read.items()
    ]
    return SuiteTask(states=probes[0], words=probes[1], outputs=probes[2])


def averaged_embeddings(model: LanguageModel, texts: Sequence[str]) -> Tensor:
    """(n, width) the mean of the token embeddings of each text, without positions."""
    table = model.hf_model.get_input_embeddings().weight.detach()
    rows = [torch.tensor(model.tokenize(text).tokens, device=table.device) for text in texts]
    return torch.stack([table[row].double().mean(0).cpu() for row in rows])
