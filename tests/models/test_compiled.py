import json
import shutil

import pytest
import torch

from interp.core.components import EXPERT_SITES
from interp.core.errors import InterpError
from interp.engine.forward import Runner
from interp.engine.restart import baseline
from interp.models.compiled import PROGRAMS, compiled_programs, load_compiled

NAMES = compiled_programs()


@pytest.fixture(scope="module", params=NAMES)
def compiled(request):
    return load_compiled(request.param)


def test_the_four_programs_of_the_literature_are_there():
    assert {"reverse", "frac_prevs", "hist", "sort"} <= set(NAMES)


def test_the_model_computes_what_the_compiled_network_did(compiled):
    """Every position of every case, through TransformerLens and through the engine."""
    model, outputs = compiled.model, list(compiled.outputs)
    assert model.decoder is not None, model.engine_reason
    absent = {"pre_linear", *EXPERT_SITES}
    assert all(reason is None for site, reason in model.sites.items() if site not in absent)
    worst = 0.0
    with torch.no_grad():
        for batch, logits in model.run(compiled.cases):
            for row, case in enumerate(batch.prompts):
                found = logits[row, : len(compiled.cases[case]), outputs]
                worst = max(worst, float((found - compiled.expected[case]).abs().max()))
    assert worst < 2e-4
    run = baseline(Runner(model.decoder), list(compiled.cases), frozenset({"resid_pre"}))
    final = model.decoder.ln_final(run.site(model.n_layers, "resid_pre"))
    found = model.decoder.logits(final)[:, outputs]
    assert float((found - torch.cat(compiled.expected)).abs().max()) < 2e-4


def test_the_expected_outputs_are_the_program(compiled):
    """The answer key itself, against the programs written out in Python."""
    words = compiled.model.strings(range(compiled.model.d_vocab))
    for case, expected in zip(compiled.cases, compiled.expected, strict=True):
        seen = [words[token] for token in case[1:]]
        last = expected[-1]
        said = words[compiled.outputs[int(last.argmax())]]
        match compiled.model.name.removeprefix("tracr-"):
            case "reverse":
                assert said == f"={seen[0]}"
            case "frac_prevs":
                assert float(last[0]) == pytest.approx(seen.count("x") / len(seen), abs=1e-4)
            case "hist":
                assert said == f"={seen.count(seen[-1])}"
            case "sort":
                largest = all(x < seen[-1] for x in seen[:-1])
                assert float(last.max()) == pytest.approx(float(largest), abs=1e-4)
                assert not largest or said == f"={seen[-1]}"
            case "counting_sort":
                assert said == f"={sorted(seen[:3])[seen.count('?') - 1]}"


def test_every_pair_has_a_gap(compiled):
    report = compiled.task.check(compiled.model)
    assert len(compiled.task) == 24
    assert report.preferred.mean == 1.0
    assert report.corrupted is not None
    assert report.clean.low > report.corrupted.high
    if len(compiled.outputs) > 1:
        assert report.accuracy.mean == 1.0


def test_norms_do_nothing(compiled):
    """So a reader's input is a sum of writes, and linear in each."""
    norm = compiled.model.decoder.blocks[0].ln1
    x = 10 * torch.randn(5, compiled.model.d_model)
    x = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(norm(x), x, rtol=1e-5, atol=1e-5)


def test_full_attention_is_refused(tmp_path):
    shutil.copy(PROGRAMS / "reverse.safetensors", tmp_path)
    facts = json.loads((PROGRAMS / "reverse.json").read_text())
    (tmp_path / "reverse.json").write_text(json.dumps({**facts, "causal": False}))
    with pytest.raises(InterpError, match="later tokens"):
        load_compiled(tmp_path / "reverse")


def test_a_missing_program_says_how_to_make_it(tmp_path):
    with pytest.raises(InterpError, match="tracr"):
        load_compiled(tmp_path / "nothing")
