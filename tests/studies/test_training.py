"""What training changed, on a toy: every step is what its function gives, kept, and reported."""

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.deltas.after_change import survival
from interp.deltas.compression import compress
from interp.deltas.merging import merge
from interp.deltas.self_reports import self_report
from interp.deltas.sizes import change_sizes
from interp.models.language_model import LanguageModel
from interp.studies.steps import plain
from interp.studies.training import settings as parts
from interp.studies.training import study as steps
from interp.studies.training.report.report import write_up
from interp.studies.training.settings import TaughtBehaviour, TrainingSettings
from interp.studies.training.study import study_training
from interp.tasks.registry import load_task

NAMES = ("countdown-smollm2", "refusal-smollm2")
SETTINGS = TrainingSettings(n=12, heads=("L1H2",), texts=2, draws=2)


@pytest.fixture
def small(toy, monkeypatch, tmp_path):
    """The study of two random changes of a toy, cut to a compression and two merges."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    task = load_task("toy-induction", toy).first(12)
    signs = np.where(np.arange(12) % 2, 1.0, -1.0)

    def read(model: LanguageModel) -> np.ndarray:
        return survival_values(model, task)

    deltas = {
        name: compress(toy, "random", share=0.2 + seed / 10, seed=seed)
        for seed, name in enumerate(NAMES)
    }
    deltas = {name: type(x)(name=name, base=x.base, dense=x.dense) for name, x in deltas.items()}
    monkeypatch.setattr(parts, "adapters_of", lambda base: dict.fromkeys(NAMES, ""))
    monkeypatch.setattr(parts, "load_delta", lambda name, model: deltas[name])
    monkeypatch.setattr(parts, "load_task", lambda *given, **options: task)
    made = {name: lambda model, n, s=s: TaughtBehaviour(read=read, signs=s)
            for name, s in zip(NAMES, (signs, None), strict=True)}  # fmt: skip
    monkeypatch.setattr(parts, "BEHAVIOURS", made)
    monkeypatch.setattr(steps, "RULES", (("sum", 1e-5), ("ram", 1e-3)))
    monkeypatch.setattr(steps, "COMPRESSIONS", (("round", {"bits": 4}),))
    monkeypatch.setattr(steps, "TOPICS", ("a", "b", "c"))
    monkeypatch.setattr(steps, "ASKED", ("d e {} f e", "{} g h {}"))
    monkeypatch.setattr(LanguageModel, "single_token", lambda self, word, asked="": len(word))
    return toy, task, deltas


def survival_values(model, task) -> np.ndarray:
    encoded = task.encode(model)
    from interp.core.metrics import Logits

    return task.metric(Logits(model.last_logits(encoded.clean)), encoded.targets).numpy()


def test_steps_are_what_their_functions_give_and_are_kept(small):
    toy, task, deltas = small
    said = []
    study = study_training(toy, settings=SETTINGS, say=said.append)
    found = study.results
    before, (first, second) = survival_values(toy, task), deltas.values()
    for name, delta in deltas.items():
        with delta.applied(toy):
            after = survival_values(toy, task)
        for told in found["alone"][name].values():
            assert told["after"]["mean"] == pytest.approx(after.mean(), rel=1e-6)
            assert told["change"]["mean"] == pytest.approx((after - before).mean(), rel=1e-6)
        sizes = change_sizes(toy, delta).values
        assert [*found["where"][name].values()] == pytest.approx(sizes.T, abs=1e-5)
        asked = [f"{question} Answer yes or no." for question in steps.ASKED]
        report = self_report(toy, delta, asked, "a", ["b", "c"])
        assert found["self-report"][name]["gardening"] == plain(report.topic)
        assert found["self-report"][name]["other topics"] == plain(report.controls)
    assert found["plain"][NAMES[1]]["auc"] is None
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
    assert "<table>" in report.html()


def test_a_base_without_adapters_is_refused(toy):
    with pytest.raises(InterpError, match="0 ship"):
        study_training(toy)
