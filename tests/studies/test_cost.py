"""What a study costs: step by step, by hand, and for every step that the study has."""

import json
import re

import pytest
import transformers

import interp
from interp.core.errors import InterpError
from interp.engine.run_cost import plain_flops, read_flops, restart_flops, text_flops
from interp.models.cards import card_named
from interp.models.weightless import weightless
from interp.refusal.cases import taboo_cases
from interp.studies import cost as costs
from interp.studies.cost import study_cost
from interp.studies.refusal.settings import RefusalContext, RefusalSettings, usual
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.step_cost import Costs, StepCost, part
from interp.studies.verification.settings import VerificationSettings
from interp.studies.verification.steps.verdicts import KINDS
from tests import ROOT
from tests.cli.test_main import run
from tests.conftest import REAL_CACHE

VERIFICATION = VerificationSettings(n=80, draws=5, pairs=8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "matmul_rate", lambda dtype, device: 1e11)


def steps(found):
    return {step.step: step for step in found.steps}


@pytest.fixture(scope="module")
def tiny():
    return weightless("countdown-tiny")


def named_in(study):
    """Names of steps in the source of a study."""
    source = (ROOT / "interp" / "studies" / study / "study.py").read_text()
    found = set(re.findall(r'(?:\bstep)?\(\s*f?"([a-z][a-z_{}]+)",\s+(?:lambda|partial)', source))
    return found - {"effects_{kind}", "selection_{kind}"}


def test_no_step_is_forgotten():
    """A step is counted or named as not counted; only texts, doses and methods go by one name."""
    told = set(steps(study_cost("verification", "countdown-tiny", settings=VERIFICATION)))
    assert told == named_in("verification") | {
        "texts",
        "base",
        *(f"effects_{kind}" for kind in KINDS),
    }
    told = set(steps(study_cost("refusal", "refusal-tiny")))
    missing = named_in("refusal") - told
    assert missing <= {"ledger"}
    assert {"heads_proper_refusals", "groups", "paths", "doses", "methods"} <= told


def test_verification_by_hand(tiny):
    """Ablations at a verdict: six sets on all test samples, random ones on some; and the texts."""
    decoder, new = tiny.decoder, 100
    found = study_cost("verification", "countdown-tiny", settings=VERIFICATION, new_tokens=new)
    by_name = steps(found)
    texts = by_name["texts"]
    assert (texts.runs, texts.reads) == (160, 2 * new)
    prompt = round(texts.tokens / 160) - new
    assert texts.flops == text_flops(decoder, [prompt] * 160, new)
    effects, attempt = by_name["effects_zero"], prompt + new // 2
    assert effects.runs == 6 * 40 + 6 * 5 * 40
    assert effects.tokens == 2 * effects.runs
    one = restart_flops(decoder, [attempt], layer=2, last=2) + read_flops(decoder, 1)
    assert effects.flops == pytest.approx(effects.runs * one)
    alone = study_cost("verification", "countdown-tiny", settings=VERIFICATION, beside=False)
    assert {*by_name} - {*steps(alone)} == {"base"}
    assert found.total.flops == pytest.approx(sum(x.flops for x in found.steps))


def test_refusal_by_hand():
    model = weightless("refusal-tiny")
    settings = usual(RefusalSettings(), "taboo")
    cases = taboo_cases(settings.n, requests=settings.requests, seed=0)
    context = RefusalContext(model=model, cases=tuple(cases), settings=settings)
    lengths = [len(row) for row in context.prompts.rows]
    found = steps(study_cost("refusal", "refusal-tiny", new_tokens=10))
    assert found["behaviour"].flops == text_flops(model.decoder, lengths, 10)
    plain = plain_flops(model.decoder, lengths) + read_flops(model.decoder, len(lengths))
    assert found["tokens"].flops == plain
    heads = found["heads_over-refusals"]
    assert heads.runs == 8 * (4 * model.n_layers * model.n_heads + 1)


@pytest.mark.slow
@pytest.mark.long
def test_reuse_by_its_own_prompts(monkeypatch):
    """Tasks, runs and stages of the default model; its tokeniser is read, not its weights."""
    monkeypatch.setenv("INTERP_CACHE", str(REAL_CACHE))
    smollm = weightless("smollm2-135m-instruct")
    settings = ReuseSettings(n=4, tested=6, sets=3)
    found = study_cost("reuse", smollm.name, settings=settings, beside=False)
    by_name, task = steps(found), interp.load_task("ioi", smollm, n=6, seed=1000)
    lengths = [len(row) for row in task.encode(smollm).clean]
    alone = [s for s in by_name if s.startswith("circuit")]
    assert len(alone) == 7
    assert by_name["circuit_ioi"].runs == 4 * smollm.n_heads * (30 + 20 + 20) + 3 * 2 * 4
    assert by_name["behaviour"].runs == 7 * 6
    part_of = plain_flops(smollm.decoder, lengths) + read_flops(smollm.decoder, 6)
    assert part_of < by_name["behaviour"].flops < 14 * part_of
    assert "reused" not in by_name


@pytest.mark.long
@pytest.mark.slow
def test_operations_tell_the_seconds_of_kept_studies(monkeypatch):
    """One rate for all: totals of three studies within a factor of 1.5, and 35 of 46 steps.

    Steps that compute less today than in the kept runs are not among them.
    """
    monkeypatch.setenv("INTERP_CACHE", str(REAL_CACHE))
    kept = json.loads((ROOT / "tests" / "data" / "study_seconds.json").read_text())
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    for study, ran in kept.items():
        plan, kind, _ = costs.STUDIES[study]
        options = {"new_tokens": ran["new_tokens"]} if "new_tokens" in ran else {}
        for step in plan(weightless(ran["model"]), kind(**ran["settings"]), **options):
            if step.flops and step.step in ran["seconds"]:
                rows[study, step.step] = (step.flops, ran["seconds"][step.step])
    rate = sum(flops for flops, _ in rows.values()) / sum(seconds for _, seconds in rows.values())
    for study in kept:
        flops, seconds = map(
            sum, zip(*(x for at, x in rows.items() if at[0] == study), strict=True)
        )
        assert 1 / 1.5 < flops / seconds / rate < 1.5
    near = [1 / 1.5 < flops / seconds / rate < 1.5 for flops, seconds in rows.values()]
    assert (sum(near), len(near)) == (35, 46)


def test_hours_and_money():
    found = study_cost("verification", "countdown-tiny", settings=VERIFICATION, gpu="h200",
                       price=3.0, share=1.0)  # fmt: skip
    here, there = found.bills
    assert here.hours == pytest.approx(1.4 * found.total.flops / 1e11 / 3600)
    assert (here.measured, here.money, there.measured) == (True, None, False)
    assert there.money == pytest.approx(3 * there.hours)
    card = card_named("H200")
    # A tiny model's texts wait for its weights; all else for its arithmetic.
    texts = steps(found)["texts"]
    moved = texts.reads * 2 * found.parameters / (card.gb_s * 1e9)
    speed = card.tflops * 1e12
    assert moved > texts.flops / speed
    assert there.hours * 3600 > moved + (found.total.flops - texts.flops) / speed
    free = study_cost("verification", "countdown-tiny", settings=VERIFICATION)
    assert {bill.money for bill in free.bills} == {None}


def test_more_costs_more():
    one = study_cost("verification", "countdown-tiny", settings=VERIFICATION)
    more = VerificationSettings(n=80, draws=10, pairs=8)
    two = study_cost("verification", "countdown-tiny", settings=more)
    for name in ("steering", "curves", "interchange", "communication", "sufficiency"):
        assert steps(two)[name].flops > steps(one)[name].flops
    assert steps(two)["texts"] == steps(one)["texts"]


def test_parts_add_up(tiny):
    each = Costs(decoder=tiny.decoder)
    both = part("both", each.plain([5, 6]), each.scored([5], 2), left_out="why")
    assert (both.step, both.runs, both.tokens, both.left_out) == ("both", 4, 21, "why")
    read = read_flops(tiny.decoder, 10) + read_flops(tiny.decoder, 2)
    assert both.flops == pytest.approx(plain_flops(tiny.decoder, [5, 6, 5, 5]) + read)
    assert part("none") == StepCost(step="none")
    where = [[4], [5]]
    whole, kept = (each.paths([5, 6], where, kept=kept) for kept in (False, True))
    twice = 2 * plain_flops(tiny.decoder, [5, 6])
    assert whole.flops - kept.flops == pytest.approx(twice)
    assert (whole.runs - kept.runs, whole.tokens - kept.tokens) == (4, 22)


def test_what_is_refused(tmp_path):
    for wrong, words in (
        ({"study": "reading"}, "no such name"),
        ({"settings": ReuseSettings()}, "give VerificationSettings"),
        ({"gpu": "H300"}, "no such name"),
        ({"price": 2.0}, "of no GPU"),
        ({"price": -1.0, "gpu": "H200"}, "price"),
        ({"share": 0}, "share"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"study": "reuse", "new_tokens": 5}, "it writes no texts"),
    ):
        with pytest.raises(InterpError, match=words):
            study_cost(**{"study": "verification", "model": "countdown-tiny", **wrong})
    rope = {
        "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, rope_parameters=rope,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    interp.load_model("countdown-tiny").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InterpError, match="dynamic rotary angles"):
        study_cost("verification", str(tmp_path))


def test_the_command_gives_the_functions_numbers(tmp_path):
    file = tmp_path / "cost.json"
    asked = [
        word
        for one in ("n=80", "draws=5", "pairs=8", "operands=3", "threshold=0.2")
        for word in ("--setting", one)
    ]
    model = ("verification", "--model", "countdown-tiny")
    out = run("cost", *model, *asked, "--gpu", "H100 SXM", "--price", 2, "--json", file)
    settings = VerificationSettings(n=80, draws=5, pairs=8, operands=(3,), threshold=0.2)
    found = study_cost(
        "verification", "countdown-tiny", settings=settings, gpu="H100 SXM", price=2.0
    )
    assert out.splitlines()[0] == repr(found)
    told = json.loads(file.read_text())
    assert [row["step"] for row in told["steps"]] == [step.step for step in found.steps]
    assert told["total"]["flops"] == found.total.flops
    assert told["bills"][1]["money"] == found.bills[1].money
    assert "fitting probes on stored states" in out
    assert "Assumed: " in out
    for wrong, words in (("n", "no name=value"), ("m=3", "no such name"), ("n=x", "n")):
        with pytest.raises(InterpError, match=words):
            run("cost", "verification", "--model", "countdown-tiny", "--setting", wrong)
