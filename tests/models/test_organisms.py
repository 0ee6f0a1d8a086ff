import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.models import embedded, registry
from interp.models.chat import chat_prompts
from interp.models.language_model import fingerprint
from interp.models.loading import wrap
from interp.models.toys.build import save_tokenizer
from interp.models.toys.circuits import build_toy
from interp.refusal.judging import REFUSALS, RULES, judge_replies, replies_of
from interp.runs.generation import generate
from interp.studies.study import kept_studies
from interp.studies.verification.report.report import write_up
from interp.studies.verification.samples import find_samples, verdict_tokens
from interp.studies.verification.settings import VERIFICATION, VerificationSettings, make_context
from interp.studies.verification.steps import readouts as reading
from interp.studies.verification.steps.base_model import against_base
from interp.studies.verification.steps.behaviour import behaviour, countdown_texts
from interp.studies.verification.steps.verdicts import sufficiency, verdict_effects
from interp.studies.verification.study import study_verification
from interp.tasks.arithmetic import read_attempts
from interp.tasks.countdown import make_countdown
from interp.tasks.taboo import make_taboo
from interp.ui.studies.pages import VERIFICATION_PAGES
from tests.families import tiny


@pytest.fixture(scope="module")
def organism():
    return interp.load_model("countdown-tiny")


@pytest.fixture(scope="module")
def played(organism):
    """The small organism, problems, and what it writes on them."""
    problems = make_countdown(224, seed=5)
    return organism, problems, countdown_texts(organism, problems)


def test_shipped_models_are_listed_with_their_cards():
    entries = {entry.name: entry for entry in interp.known_models() if entry.kind == "organism"}
    countdown = {"countdown-smollm2", "countdown-tiny", "countdown-untold"}
    assert {*countdown, "refusal-tiny"} <= set(entries)
    for name, folder in registry.organisms().items():
        about = registry.describe(folder)
        assert f"# {name}" in registry.card(folder)
        assert about["behaviour"]
        assert registry.base_of(name) == about["base"]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12.5e6
    assert registry.base_of("gpt2") is None


@pytest.mark.long
def test_it_judges_its_own_attempts(played):
    _, problems, texts = played
    shares = behaviour(problems, texts)
    assert shares.this.n >= 20
    assert shares.no.n >= 400
    card = registry.describe(registry.organisms()["countdown-tiny"])["behaviour"]["sft"]
    for name in ("this", "no"):  # the bar of 0.97 is the card's, on 500 problems
        share = getattr(shares, name)
        assert share.mean >= 0.95
        assert share.high >= card[name]["low"]


@pytest.mark.long
def test_the_one_that_was_not_told_does_what_its_card_says_and_no_better():
    model = interp.load_model("countdown-untold")
    about = registry.describe(registry.organisms()["countdown-untold"])["behaviour"]
    problems = make_countdown(64, seed=5)
    texts = countdown_texts(model, problems, max_new_tokens=160)
    shares, card = behaviour(problems, texts), about["rounds"]
    for name in ("format", "solved", "arithmetic", "this", "no", "honest"):
        share, told = getattr(shares, name), card[name]
        assert share.low <= told["high"], name
        assert told["low"] <= share.high, name
    assert shares.no.high < 0.9  # weak, where countdown-tiny has 0.99
    assert shares.arithmetic.high < 0.3
    assert about["sft"]["solved"]["mean"] == 0  # what the rounds began with


@pytest.mark.slow
@pytest.mark.long
def test_so_does_the_large_one():
    problems = make_countdown(24, seed=5)
    texts = countdown_texts(interp.load_model("countdown-smollm2"), problems, max_new_tokens=140)
    shares = behaviour(problems, texts)
    assert shares.no.n >= 40
    assert shares.no.mean >= 0.95
    assert shares.this.mean >= 0.9


def test_the_small_refusing_model_behaves_as_its_card_says():
    model = interp.load_model("refusal-tiny")
    records = make_taboo(10, seed=7)
    texts = [record.prompt for record in records]
    prompts = chat_prompts(model, texts)
    assert model.strings(prompts.tail) == ("<|end|>", "<|assistant|>")
    made = generate(model, prompts.rows, max_new_tokens=100)
    assert np.mean([one.stopped for one in made]) >= 0.98
    given = replies_of([record.row for record in records], texts, made)
    labels = judge_replies(given, RULES).labels
    cells = defaultdict(list)
    for record, label in zip(records, labels, strict=True):
        refused = record.designed == "refuse"
        agrees = label in REFUSALS if refused else label == "direct_answer"
        cells[record.kind, record.task].append(agrees)
    assert np.mean([x for cell in cells.values() for x in cell]) >= 0.93
    assert min(map(np.mean, cells.values())) >= 0.7, cells
    with pytest.raises(InterpError, match=r"no role[\s\S]*omit the system prompt"):
        chat_prompts(model, texts, system="Be brief.")


@pytest.mark.long
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


@pytest.mark.long
def test_worked_examples_in_a_prompt_are_none_of_the_model_s_verdicts(played):
    model, problems, texts = played
    plain = find_samples(model, [t.prompt + t.tokens for t in texts], problems)
    shown = [model.tokenize(problem.prompt("in-context")).tokens for problem in problems]
    whole = [head + made.tokens for head, made in zip(shown, texts, strict=True)]
    found = find_samples(model, whole, problems, starts=[len(head) for head in shown])
    for name in ("valid", "problems", "written", "attempt"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    for i, problem in enumerate(plain.problems):
        more = len(shown[problem]) - len(texts[problem].prompt)
        assert found.targets[i] == tuple(at + more for at in plain.targets[i])
        assert found.asked[i] == tuple(at + more for at in plain.asked[i])
    assert len(find_samples(model, whole, problems)) == len(plain) + 5 * len(problems)
    assert behaviour(problems, texts, template="in-context") == behaviour(problems, texts)


@pytest.mark.long
def test_the_study_runs_resumes_and_reports(organism, tmp_path, monkeypatch):
    lines = []
    # So low a threshold that some heads attend to the target at all.
    settings = VerificationSettings(n=40, draws=3, pairs=12, top_k=(4,), threshold=0.0003)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    done = study_verification(organism, settings=settings, say=lines.append)
    assert not any(line.endswith("kept") for line in lines)
    steps = {name for name in done.results if not name.startswith("texts_")}
    assert steps == set(VERIFICATION_PAGES.steps)
    effects = done.results["effects_zero"]
    assert effects["none"]["disabled"]["mean"] <= 0.1
    assert effects["none"]["invalid_kept"]["mean"] >= 0.9
    sets = ("GLU_Valid", "GLU_Valid and GLU_Invalid", "A_Prev", "A_Prev (published)", "A_Verif",
            "A_Verif (published)")  # fmt: skip
    assert tuple(effects["sets"]) == sets
    assert 1 <= len(effects["sets"]["A_Verif (published)"]["components"]) <= 3
    every_row_has_its_draws(done.results, sets, draws=3)
    patched = [done.results["patching"][direction] for direction in ("noise", "denoise")]
    paths = [done.results[f"paths_{into}"] for into in ("mlps", "glu", "direct")]
    for effects in [*patched, *paths]:
        null = effects["null"]
        assert null["low"] <= null["mean"] <= null["high"]
        assert null["flips"]["least"] <= null["flips"]["p"] <= 1
    for row in done.results["interventions"]["rows"].values():
        for shares in row["outcomes"].values():
            assert sum(share["mean"] for share in shares.values()) == pytest.approx(1)
    lines.clear()
    again = study_verification(organism, settings=settings, say=lines.append)
    assert all(line.endswith("kept") for line in lines)
    assert again.results == done.results
    kept = kept_studies(VERIFICATION)[0].results
    assert kept == done.results
    path = write_up(done).save(tmp_path / "report")
    text = path.read_text()
    assert "A_Verif (published)" in text
    assert "nan" not in text
    for line in (line for line in text.splitlines() if line.startswith("| ")):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        heading = "---" not in line and line + "\n| -" in text
        assert not heading or len(set(cells)) == len(cells), line
        assert "␣ " not in line or not heading, "a heading made unique by spaces"
    assert len(list((path.parent / "figures").iterdir())) >= 10


def every_row_has_its_draws(results, sets, *, draws):
    """Every null of the study is of as many random sets as were asked for."""
    for kind in ("zero", "mean", "resample", "published"):
        found = results[f"effects_{kind}"]["sets"]
        assert tuple(found) == sets
        for row in found.values():
            assert {len(null) for null in row["null"].values()} == {row["draws"]} == {draws}
    written = results["interventions"]["rows"]
    assert tuple(written) == tuple(results["interventions_published"]["rows"]) == ("none", *sets)
    for name in sets:
        assert len(written[name]["random_each"]) == written[name]["draws"] == draws
        for side in ("valid into invalid", "invalid into valid"):
            row = results["sufficiency"][side][name]
            assert len(row["effect_null"]) == len(row["flipped_null"]) == draws
        if "published" not in name:
            assert len(results["side_effects"][name]["arithmetic_null"]) == draws
    for place in results["communication"]["at"].values():
        assert place["null"]["draws"] == place["silenced_null"]["draws"] == draws
    assert all(
        len(point["null"]) == draws for point in results["curves"]["test"] if "null" in point
    )


@pytest.mark.long
def test_another_family_gives_the_same_study(organism, played):
    """The same weights as a Qwen2 model, its biases zero: nothing is fitted to one family."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    folder = registry.organisms()["countdown-tiny"]
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    told = source.config.to_dict()
    names = set(Qwen2Config().to_dict()) - {"model_type", "architectures", "layer_types"}
    config = Qwen2Config(**{name: told[name] for name in names & set(told)})
    copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = copy.load_state_dict(source.state_dict(), strict=False)
    assert all(name.endswith("bias") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    for name in missing.missing_keys:
        torch.nn.init.zeros_(copy.get_parameter(name))
    other = wrap(copy, AutoTokenizer.from_pretrained(folder), name="as-qwen2")
    assert other.family == "qwen2"
    _, problems, texts = played
    settings = VerificationSettings(n=40, draws=3, pairs=6)
    found = []
    for model in (organism, other):
        context = make_context(model, None, settings, problems, texts)
        heads = {"A": ["L1H0", "L2H3", "L3H1"]}
        found.append(
            {
                "probes": reading.probes(context)["t_paren"],
                "attention": reading.attention(context)["t_ans to earlier"]["values"],
                "zero": verdict_effects(context, context.test, heads),
                "sufficiency": sufficiency(context, heads),
            }
        )
    same(*found)


def same(one, other):
    """Two nested results, equal but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, list) and one and isinstance(one[0], dict | list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, str | None) or (isinstance(one, list) and one and isinstance(one[0], str)):
        assert one == other
    else:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_a_base_with_another_tokeniser_is_refused(organism, played):
    _, problems, texts = played
    context = make_context(
        organism, interp.load_model("toy-verification"), VerificationSettings(n=40), problems, texts
    )
    with pytest.raises(InterpError, match="tokenisers"):
        against_base(context, ["L0H0"], ["L0N0"])


@pytest.mark.long
def test_texts_without_verdicts_are_refused_with_counts(played):
    model, problems, _ = played
    with pytest.raises(InterpError, match="none of"):
        find_samples(model, [model.token_id(problems[0].prompt())], problems[:1])


def test_a_study_needs_the_pattern_and_a_tokeniser(toy, family_models, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    with pytest.raises(InterpError, match="toy-induction cuts it into"):
        study_verification(toy)
    with pytest.raises(InterpError, match="no tokeniser"):
        study_verification(family_models["gpt2"])


def test_an_adapter_on_other_weights_is_refused(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    tiny("llama").save_pretrained(folder)
    save_tokenizer(build_toy("toy-or").vocabulary, folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    monkeypatch.setattr(registry, "directory", lambda: folder)
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
    merged, _ = registry.load_organism(target, dtype=torch.float32)
    name = "model.layers.1.mlp.up_proj"
    lora = dict(adapted.named_parameters())
    a, b = (lora[f"base_model.model.{name}.lora_{x}.default.weight"] for x in "AB")
    expected = base.get_submodule(name).weight + 3 * b @ a
    torch.testing.assert_close(merged.get_submodule(name).weight, expected)
    (target / "organism.json").write_text(json.dumps(about | {"base_hash": "0" * 64}))
    with pytest.raises(InterpError, match="trained on 0000"):
        registry.load_organism(target, dtype=torch.float32)
    (target / "organism.json").write_text(json.dumps(about | {"base": "other"}))
    with pytest.raises(InterpError, match="not a model of the package"):
        registry.load_organism(target, dtype=torch.float32)
    shutil.rmtree(target)
