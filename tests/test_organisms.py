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
from interp.studies.verification.samples import find_samples, verdict_tokens
from interp.studies.verification.study import study_verification
from interp.tasks.arithmetic import read_attempts
from interp.tasks.countdown import make_countdown
from interp.toys import build_toy, save_tokenizer
from tests.families import tiny


@pytest.fixture(scope="module")
def played():
    """The shipped organism, problems, and what it writes on them."""
    model = interp.load_model("countdown-smollm2")
    problems = make_countdown(24, seed=5)
    return model, problems, countdown_texts(model, problems, max_new_tokens=140)


def test_shipped_models_are_listed_with_their_cards():
    entries = {entry.name: entry for entry in interp.known_models() if entry.kind == "organism"}
    assert "countdown-smollm2" in entries
    for name, folder in organisms.organisms().items():
        about = organisms.describe(folder)
        assert f"# {name}" in organisms.card(folder)
        assert about["behaviour"]
        assert organisms.base_of(name) == about["base"]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12.5e6
    assert organisms.base_of("gpt2") is None


@pytest.mark.slow
def test_it_judges_its_own_attempts(played):
    _, problems, texts = played
    shares = behaviour(problems, texts)
    assert shares.no.n >= 40
    assert shares.no.mean >= 0.95
    assert shares.this.mean >= 0.9


@pytest.mark.slow
def test_samples_end_behind_the_result_and_agree_with_the_text(played):
    model, problems, texts = played
    ids = verdict_tokens(model)
    samples = find_samples(model, [t.prompt + t.tokens for t in texts], problems)
    assert (np.diff(samples.problems) >= 0).all()
    for i in range(len(samples)):
        tokens, problem = samples.tokens[i], problems[samples.problems[i]]
        strings = model.strings(tokens)
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
        assert samples.attempt[i] == text.count(" (not") + text.count(" (this")
    counts = [len(read_attempts(p.prompt() + t.text)) for p, t in zip(problems, texts, strict=True)]
    # A text cut in the middle of its last verdict has a sample more than attempts.
    assert 0 <= len(samples) - sum(counts) <= sum(not text.stopped for text in texts)


@pytest.mark.slow
def test_texts_without_verdicts_are_refused_with_counts(played):
    model, problems, _ = played
    with pytest.raises(InterpError, match="none of"):
        find_samples(model, [model.token_id(problems[0].prompt())], problems[:1])


def test_a_study_needs_the_pattern_and_a_gate(toy, family_models, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    with pytest.raises(InterpError, match="cuts it into|tokeniser"):
        study_verification(toy)
    with pytest.raises(InterpError, match="no tokeniser"):
        study_verification(family_models["gpt2"])


def test_an_adapter_on_other_weights_is_refused(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    tiny("llama").save_pretrained(folder)
    save_tokenizer(build_toy("toy-or"), folder)
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
