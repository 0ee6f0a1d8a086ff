import json
import shutil

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.models import embedded, organisms
from interp.models.language_model import fingerprint
from interp.studies.verification.behaviour import behaviour, countdown_texts
from interp.studies.verification.context import Settings
from interp.studies.verification.samples import find_samples, verdict_tokens
from interp.studies.verification.study import kept_studies, study_verification
from interp.studies.verification.write_up import write_up
from interp.tasks.arithmetic import read_attempts
from interp.tasks.countdown import make_countdown


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(tmp_path_factory.mktemp("organism")))
        return interp.load_model("countdown-tiny")


@pytest.fixture(scope="module")
def played(tiny):
    problems = make_countdown(120, seed=5)
    return problems, countdown_texts(tiny, problems)


def test_shipped_models_are_listed_with_their_cards():
    entries = {entry.name: entry for entry in interp.known_models() if entry.kind == "organism"}
    assert "countdown-tiny" in entries
    for name, folder in organisms.organisms().items():
        about = organisms.describe(folder)
        assert f"# {name}" in organisms.card(folder)
        assert about["behaviour"]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12.5e6


def test_tiny_judges_its_own_attempts(tiny, played):
    problems, texts = played
    shares = behaviour(problems, texts)
    assert shares.this.n >= 30
    assert shares.no.n >= 100
    assert shares.this.mean >= 0.95
    assert shares.no.mean >= 0.95
    assert "own" in tiny.card or "countdown-tiny" in tiny.card


def test_samples_end_behind_the_result_and_agree_with_the_text(tiny, played):
    problems, texts = played
    ids = verdict_tokens(tiny)
    samples = find_samples(tiny, [t.prompt + t.tokens for t in texts], problems)
    assert (np.diff(samples.problems) >= 0).all()
    for i in range(len(samples)):
        tokens, problem = samples.tokens[i], problems[samples.problems[i]]
        strings = tiny.strings(tokens)
        assert tokens[samples.t_paren[i]] == ids.paren
        assert strings[samples.t_ans[i]].isdigit()
        text = "".join(strings)
        assert text.rsplit("=", 1)[1].replace(" ", "") == f"{samples.written[i]}("
        for end in samples.targets[i]:
            assert "".join(strings[: end + 1]).endswith(str(problem.target))
            assert end < samples.t_ans[i]
        before = text.split("Let's try")[0]
        inside = [e for e in samples.targets[i] if len("".join(strings[: e + 1])) <= len(before)]
        assert list(samples.asked[i]) == inside
    counts = [len(read_attempts(p.prompt() + t.text)) for p, t in zip(problems, texts, strict=True)]
    assert abs(sum(counts) - len(samples)) <= 0.05 * len(samples)


def test_the_study_runs_resumes_and_reports(tiny, played, tmp_path, monkeypatch):
    lines = []
    settings = Settings(n=40, draws=3, pairs=12, max_new_tokens=200, top_k=4)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    done = study_verification(tiny, settings=settings, say=lines.append)
    assert not any(line.endswith("kept") for line in lines)
    effects = done.results["effects_zero"]
    assert effects["none"]["disabled"]["mean"] <= 0.1
    assert effects["none"]["invalid_kept"]["mean"] >= 0.9
    for found in effects["sets"].values():
        assert len(found["null"]["disabled"]) == 3
    for row in done.results["interventions"]["rows"].values():
        for shares in row["outcomes"].values():
            assert sum(share["mean"] for share in shares.values()) == pytest.approx(1)
    lines.clear()
    again = study_verification(tiny, settings=settings, say=lines.append)
    assert all(line.endswith("kept") for line in lines)
    assert again.results == done.results
    assert kept_studies()[0].results == done.results
    path = write_up(done).save(tmp_path / "report")
    text = path.read_text()
    assert "A_Verif" in text
    assert "nan" not in text
    assert len(list((path.parent / "figures").iterdir())) >= 10


def test_a_study_needs_the_pattern_and_a_gate(toy, smollm, family_models, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    with pytest.raises(InterpError, match="cuts it into|tokeniser"):
        study_verification(toy)
    with pytest.raises(InterpError, match="no tokeniser"):
        study_verification(family_models["gpt2"])


def test_texts_without_verdicts_are_refused_with_counts(tiny):
    problems = make_countdown(2, seed=1)
    texts = [tiny.token_id(problem.prompt()) for problem in problems]
    with pytest.raises(InterpError, match="none of"):
        find_samples(tiny, texts, problems)


def test_an_adapter_on_other_weights_is_refused(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = organisms.organisms()["countdown-tiny"]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    monkeypatch.setattr(organisms, "directory", lambda: folder)
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False),
    )
    target = tmp_path / "adapted"
    adapted.save_pretrained(target)
    about = {"description": "x", "base": embedded.NAME, "base_hash": ""}
    about["base_hash"] = fingerprint(base.state_dict(), base.config.to_dict())
    (target / "organism.json").write_text(json.dumps(about))
    merged, _ = organisms.load_organism(target, dtype=torch.float32)
    name = "model.layers.1.mlp.up_proj"
    lora = dict(adapted.named_parameters())
    a, b = (lora[f"base_model.model.{name}.lora_{x}.default.weight"] for x in "AB")
    expected = base.get_submodule(name).weight + 3 * b @ a
    torch.testing.assert_close(merged.get_submodule(name).weight, expected)
    (target / "organism.json").write_text(json.dumps(about | {"base_hash": "0" * 64}))
    with pytest.raises(InterpError, match="trained on 0000"):
        organisms.load_organism(target, dtype=torch.float32)
    (target / "organism.json").write_text(json.dumps(about | {"base": "other"}))
    with pytest.raises(InterpError, match="not an embedded model"):
        organisms.load_organism(target, dtype=torch.float32)
    shutil.rmtree(target)
