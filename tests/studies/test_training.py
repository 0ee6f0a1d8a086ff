"""What training changed, on a toy: every step is what its function gives, kept, and reported."""

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.statistics import auc_estimate
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.deltas.merging import merge
from interp.deltas.rank_dropout import adapter_uncertainty
from interp.deltas.self_reports import ablate_reports, self_report
from interp.deltas.singular_fit import fit_singular
from interp.deltas.sizes import change_sizes
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import LowRank, WeightDelta
from interp.steering.candidates import mean_difference
from interp.studies.steps import plain
from interp.studies.training import self_knowledge as knowledge
from interp.studies.training import settings as parts
from interp.studies.training import study as steps
from interp.studies.training.report.report import write_up
from interp.studies.training.settings import TaughtBehaviour, TrainingSettings
from interp.studies.training.study import study_training
from interp.tasks.registry import load_task

NAMES = ("countdown-smollm2", "refusal-smollm2")
SETTINGS = TrainingSettings(
    n=12, heads=("L1H2",), texts=2, draws=2, thinned=2, scaled=("L1H2",), fit_steps=2
)
SIGNS = np.where(np.arange(12) % 2, 1.0, -1.0)
QUESTIONS = ("d e {} f e", "{} g h {}")
ASKED = [f"{question} Answer yes or no." for question in QUESTIONS]


REQUESTS = {
    name: [(3 + i, 4, 5 + j, 3 + i) for i in range(6)]
    for j, name in enumerate(("trained on", "new things", "other requests"))
}
PAIRS = [[((i, i + 1, i), (i + 1,)) for i in range(at, at + 3)] for at in (3, 7)]


@pytest.fixture
def small(toy, monkeypatch, tmp_path):
    """The study of two random changes of a toy, cut to a compression and two merges."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    task = load_task("toy-induction", toy).first(12)
    targets, generator = task.encode(toy).targets, torch.Generator().manual_seed(0)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return task.metric(Logits(logits), targets)

    def first(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 5] - logits[:, 6]

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / 10

    pruned = compress(toy, "random", share=0.2)
    low = {name: (LowRank(left=random(len(x), 2), right=random(2, x.shape[1])),)
           for name, x in pruned.dense.items()}  # fmt: skip
    deltas = {
        NAMES[0]: WeightDelta(name=NAMES[0], base=toy.hash, dense=pruned.dense),
        NAMES[1]: WeightDelta(name=NAMES[1], base=toy.hash, low_rank=low),
    }
    ships = {toy.hash: dict.fromkeys(NAMES, "")}  # none ships for the weights under a change
    monkeypatch.setattr(parts, "adapters_of", lambda base: ships.get(base, {}))
    monkeypatch.setattr(parts, "load_delta", lambda name, model: deltas[name])
    monkeypatch.setattr(parts, "load_task", lambda *given, **options: task)
    prompts = [pair.clean for pair in task.pairs]
    taught = {
        name: TaughtBehaviour(prompts=prompts, value=value, signs=signs)
        for name, value, signs in zip(NAMES, (first, metric), (SIGNS, None), strict=True)
    }
    made = {name: lambda model, n, name=name: taught[name] for name in NAMES}
    monkeypatch.setattr(parts, "BEHAVIOURS", made)
    monkeypatch.setattr(steps, "RULES", (("sum", 1e-5), ("ram", 1e-3)))
    monkeypatch.setattr(steps, "COMPRESSIONS", (("round", {"bits": 4}),))
    asked = {NAMES[0]: (("a", "b", "c"), QUESTIONS), NAMES[1]: (("i", "b", "c"), QUESTIONS)}
    monkeypatch.setattr(knowledge, "ASKED", asked)
    monkeypatch.setattr(knowledge, "requests", lambda model, n: REQUESTS)
    monkeypatch.setattr(steps, "capitals", lambda: PAIRS)
    monkeypatch.setattr(LanguageModel, "single_token", lambda self, word, asked="": len(word))
    return toy, task, deltas


def values(model, task) -> tuple[np.ndarray, np.ndarray]:
    """How far the right answer is ahead in each of the two behaviours."""
    encoded = task.encode(model)
    logits = model.last_logits(encoded.clean)
    first = SIGNS * (logits[:, 5] - logits[:, 6]).numpy()
    return first, task.metric(Logits(logits), encoded.targets).numpy()


def test_steps_are_what_their_functions_give_and_are_kept(small):
    toy, task, deltas = small
    said = []
    study = study_training(toy, settings=SETTINGS, say=said.append)
    found, told = study.results, study.results["self-report"]
    before, (first, second) = values(toy, task), deltas.values()
    for name, delta in deltas.items():
        with delta.applied(toy):
            after = values(toy, task)
        for behaviour, old, new in zip(NAMES, before, after, strict=True):
            one = found["alone"][name][behaviour]
            assert one["after"]["mean"] == pytest.approx(new.mean(), rel=1e-5)
            assert one["change"]["mean"] == pytest.approx((new - old).mean(), rel=1e-4, abs=1e-7)
        sizes = change_sizes(toy, delta).values
        assert [*found["where"][name].values()] == pytest.approx(sizes.T, abs=1e-5)
        for topic in {knowledge.ASKED[name][0][0], "i"}:
            report = self_report(toy, delta, ASKED, topic, ["b", "c"])
            assert told[name][topic]["topic"] == plain(report.topic)
            assert told[name][topic]["beyond other topics"] == plain(report.beyond)
            assert told[name][topic]["null"] == plain(report.null)
    assert found["plain"][NAMES[1]]["auc"] is None
    assert [[*one] for one in told.values()] == [["a", "ablation", "i"], ["i"]]
    report = self_report(toy, first, ASKED, "a", ["b", "c"])
    prompts = [pair.clean for pair in task.pairs]
    with first.applied(toy):
        direction = mean_difference(toy, prompts[1::4], prompts[::4], layer=report.layer)
    ablated = ablate_reports(
        toy, first, report, direction, lambda m: values(m, task)[0][3::4], draws=2
    )
    for name in ("cosine", "report", "behaviour", "own"):
        assert told[NAMES[0]]["ablation"][name] == pytest.approx(
            plain(getattr(ablated, name)), rel=1e-5
        )
    rows = [row for some in REQUESTS.values() for row in some]
    spread = adapter_uncertainty(toy, second, rows, draws=2).information
    auc = auc_estimate(spread[:12], np.arange(12) > 5)
    apart = found["uncertainty"]["new things from those trained on"]
    assert apart["adapter, information"] == plain(auc)
    assert found["uncertainty"]["n"] == dict.fromkeys(REQUESTS, 6)
    fit = fit_singular(toy, ["L1H2"], *PAIRS, steps=2)
    assert found["fitted scales"]["beyond_shuffled"] == plain(fit.beyond_shuffled)
    both = merge([first, second], "ram", threshold=1e-3)
    assert found["merged"]["ram 0.001"]["shares"] == both.shares()
    rounded = compress(toy, "round", bits=4)
    texts = steps.shipped_passages()[:2]
    alone = survival(toy, rounded, task, heads=["L1H2"], texts=texts, draws=2)
    assert found["compressed round 4"] == plain(alone)
    assert found["reversible"]["the adapter as a delta"]["weights_apart"] == 0
    assert found["reversible"]["added and subtracted in bfloat16"]["weights_apart"] > 0
    assert not any("kept" in line for line in said)
    said.clear()
    assert study_training(toy, settings=SETTINGS, say=said.append).results == found
    assert all(line.endswith(": kept") for line in said)


def test_the_report_says_its_numbers(small):
    toy, *_ = small
    study = study_training(toy, settings=SETTINGS)
    report = write_up(study)
    after = study.results["alone"][NAMES[0]][NAMES[0]]["after"]
    assert f"{after['mean']:z.3f} [{after['low']:z.3f}, {after['high']:z.3f}]" in report.text
    change = study.results["compressed round 4"]["change"]["mean"]
    assert f"{change:z.3f}" in report.text
    for step in ("fitted scales", "self-report"):
        assert study.results[step]
    fitted = study.results["fitted scales"]["change"]["mean"]
    said = study.results["self-report"][NAMES[0]]["a"]["beyond other topics"]["mean"]
    assert all(
        f"{number:+z.3f}" in report.text or f"{number:z.3f}" in report.text
        for number in (fitted, said)
    )
    assert "<table>" in report.html()


def test_a_base_without_adapters_is_refused(toy):
    with pytest.raises(InterpError, match="0 ship"):
        study_training(toy)
