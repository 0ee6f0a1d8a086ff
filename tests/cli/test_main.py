"""The command line gives the package's own numbers, and errors without a traceback."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.cli import terminal
from interp.cli.main import app, main
from interp.core.errors import InterpError
from interp.core.statistics import Estimate
from interp.models.loading import known_families
from interp.studies.verification.settings import VerificationSettings
from interp.tasks.registry import TASKS
from tests import ROOT


def run(*arguments):
    """What a command prints, from its first line on."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output.lstrip()


def test_no_number_that_rounds_to_zero_has_a_minus():
    assert terminal.number(-1e-4) == terminal.number(np.float32(-0.0)) == "0.000"
    assert terminal.spread(-1e-4, 0.0, "+") == "[+0.000, +0.000]"
    assert str(Estimate(mean=-1e-4, low=-1.0, high=1e-4, n=40)) == "0.000 [-1.000, 0.000], n=40"


def test_fit_is_the_packages_number(tmp_path):
    """Sentence, tables and file hold what `interp.models.fit` gives; nothing is loaded."""
    out = run("fit", "countdown-tiny", "--n", 3, "--tokens", 8, "--json", tmp_path / "fit.json")
    found = interp.models.fit("countdown-tiny", n=3, tokens=8)
    assert out.splitlines()[0] == repr(found)
    assert out.splitlines()[1] == "A tiny LlamaForCausalLM that was tried offers 13 of 13 sites."
    told = json.loads((tmp_path / "fit.json").read_text())
    assert told["flops"] == found.flops
    assert told["memory"] == [asdict(row) for row in found.memory]
    assert [row["name"] for row in told["places"]] == [place.name for place in found.places]
    assert f"in 3 pairs of 8 tokens: {found.flops / 1e12:.3g} TFLOP at least" in out
    assert "30% of the peak" in out
    with pytest.raises(InterpError, match="takes at most"):
        run("fit", "countdown-tiny", "--tokens", 10**6)


TOY = ("--model", "toy-induction", "--task", "toy-induction")


@pytest.mark.parametrize("command", [("patch",), ("path", "--receivers", "logits")])
def test_a_negative_gap_is_said_once(command, tmp_path):
    """In the answer, and not as a warning of Python too; not where the gap is positive."""
    task = interp.load_task("toy-induction", n=8)
    pairs = tuple(replace(pair, answers=pair.wrong, wrong=pair.answers) for pair in task.pairs)
    (tmp_path / "turned.jsonl").write_text(replace(task, pairs=pairs).to_jsonl())
    told = {}
    for name in (str(tmp_path / "turned.jsonl"), "toy-induction"):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            told[name] = run(*command, "--model", "toy-induction", "--task", name, "--n", 8)
        assert not [one for one in warned if "clean prompts" in str(one.message)]
    assert [said.count("lower on the clean prompts") for said in told.values()] == [1, 0]


def test_patch_is_the_packages_number(tmp_path):
    out = run("patch", *TOY, "--n", 8, "--json", tmp_path / "out.json", "--verbose")
    first, second, head, *table = out.splitlines()
    assert first == (
        "L0H1 has the largest of 8 effects on logit_diff: +1.000 of the gap [+1.000, +1.000], n=8."
    )
    assert second == "At least one of the top 5 has an effect (p = 0.0039)."
    assert [line.split()[3] for line in table[:2]] == ["L0H1", "L1H2"]
    assert len({len(line) for line in (head, *table[:8])}) == 1  # aligned columns
    assert "the top 5 have a mean effect of 0.400 [0.400, 0.400] on the other" in out
    assert "ranked by effect, the most positive first; top 5: p = 0.0" in out
    assert "(256 sign flips of 8 prompts" in out
    told = json.loads((tmp_path / "out.json").read_text())
    model, task = interp.load_model("toy-induction"), interp.load_task("toy-induction", n=8)
    scores = interp.activation_patching(model, task)
    assert told["values"] == scores.values.tolist()
    # The package's own ranking and test, as in the app.
    assert told["null"] == asdict(scores.null(5))
    assert [row["component"] for row in told["top"]] == [x.label for x in scores.top(10)]
    p = scores.p_values()
    assert [row["p"] for row in told["top"]] == [p[scores.index(x.label)] for x in scores.top(10)]
    assert table[0].split()[-1] == f"{p[0, 1]:.4f}" == "0.0039"
    assert told["provenance"]["model_hash"] == model.hash
    assert told["n"] == 8


def test_patch_options(tmp_path):
    asked = (
        "patch", *TOY, "--n", 4, "--site", "post", "--by", "layer,neuron,position",
        "--positions", "last", "--layers", "0-1", "--components", "0,2-3",
        "--direction", "noise", "--source", "zero", "--metric", "log_odds", "--top", 3,
    )  # fmt: skip
    assert "2 layers x 3 neurons x 1 positions" in run(*asked, "--verbose")
    assert "Scores(" not in run(*asked)


def test_no_number_is_a_minus_zero(monkeypatch, capsys):
    """A mean of random components may round to zero from below."""
    assert terminal.number(-0.0004) == "0.000"
    assert terminal.number(-0.0004, "+") == "+0.000"
    scores = interp.activation_patching(
        interp.load_model("toy-induction"), interp.load_task("toy-induction", n=12)
    )
    null = replace(scores.null(5), mean=-0.0004)
    monkeypatch.setattr(type(scores), "null", lambda self, k: null)
    terminal.print_scores(scores, 5, None, verbose=False)
    out = capsys.readouterr().out
    assert "random ones of the same layers 0.000" in out
    assert "-0.000" not in out


def test_patch_with_a_mean_over_other_prompts(tmp_path):
    out = tmp_path / "m.json"
    run("patch", *TOY, "--n", 4, "--source", "mean", "--direction", "noise", "--json", out)
    model, task = interp.load_model("toy-induction"), interp.load_task("toy-induction", n=4)
    others = interp.load_task("toy-induction", n=8, seed=1).without(task)
    options = {"source": "mean", "direction": "noise", "reference": others}
    expected = interp.activation_patching(model, task, **options)
    assert json.loads(out.read_text())["values"] == expected.values.tolist()


def test_path(tmp_path):
    out = run("path", *TOY, "--n", 4, "--receivers", "L1.k", "--json", tmp_path / "p.json")
    assert "L0H1" in out
    assert json.loads((tmp_path / "p.json").read_text())["top"][0]["component"] == "L0H1"


@pytest.mark.long
def test_models_and_tasks(tmp_path):
    listed = run("models")
    assert "smollm2-135m-instruct" in listed
    assert max(map(len, listed.splitlines())) <= 120
    assert all(row["name"] in listed for row in known_families())
    out = run("models", "--check", "toy-and", "--json", tmp_path / "m.json")
    assert "resid_mid" in out
    assert json.loads((tmp_path / "m.json").read_text())["sites"]["z"] is None
    listed = run("tasks")
    assert all(name in listed for name in TASKS)
    out = run("tasks", "toy-or", "--model", "toy-or", "--json", tmp_path / "t.json")
    assert "toy-or on toy-or: the model shows the behaviour, with an answer first on 100%" in out
    assert "1.000" in out
    assert json.loads((tmp_path / "t.json").read_text())["accuracy"]["mean"] == 1


def test_own_task_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("clean,corrupted,answers,wrong\n<bos> a b c a,<bos> a d c a,b,d\n")
    out = run("patch", "--model", "toy-induction", "--task", path)
    assert "n=1" in out
    assert "The ranking is not tested" in out


@pytest.mark.parametrize("command", ["models", "tasks", "patch", "path"])
def test_help_has_an_example(command):
    assert f"Example: interp {command}" in run(command, "--help")


def test_errors_are_one_message(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["interp", "patch", *TOY, "--site", "zz"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "did you mean 'z'" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "~/nowhere"])
def test_a_path_that_is_not_there_is_no_hugging_face_id(name):
    with pytest.raises(InterpError) as raised:
        run("models", "--check", name)
    assert str(raised.value).startswith(f"loading '{name}': no such folder; give the path")


def test_python_runs_the_command_line():
    command = [sys.executable, "-m", "interp", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "circuit" in done.stdout


@pytest.mark.long
def test_the_study_is_run_as_the_options_say(tmp_path, monkeypatch):
    asked = []

    class Done:
        seconds, directory = {"x": 60.0}, tmp_path

        def save(self, directory):
            return directory

    monkeypatch.setattr(
        "interp.studies.verification.study.study_verification",
        lambda model, base, *, settings, say: asked.append((model, base, settings)) or Done(),
    )
    monkeypatch.setattr("interp.studies.verification.report.report.write_up", lambda done: done)
    file = tmp_path / "mine.txt"
    file.write_text("<user>{numbers} to {target}<assistant>\n-")
    command = ("study", "verification", "--model", "countdown-tiny", "--n", 40)
    run(*command)
    run(
        *command, "--template", file, "--operands", "3", "--window", 1, "--top-k", "4,8",
        "--threshold", 0.2, "--pairs", 8, "--attempts", 3, "--draws", 7, "--dtype", "bfloat16",
    )  # fmt: skip
    (_, _, plain), (model, base, settings) = asked
    assert plain == VerificationSettings(n=40)
    assert settings == VerificationSettings(
        n=40, draws=7, template=file.read_text(), operands=(3,), window=1, top_k=(4, 8),
        threshold=0.2, pairs=8, attempts=3,
    )  # fmt: skip
    assert model.dtype == torch.bfloat16
    assert base is None
    with pytest.raises(interp.InterpError, match="did you mean 'short'"):
        run(*command, "--template", "shrt")
    file.write_text("{numbers} only")
    with pytest.raises(interp.InterpError, match="{numbers} or {target} is missing"):
        run(*command, "--template", file)


def test_a_cluster_needs_a_number_of_processes():
    for command in ("patch", "path"):
        with pytest.raises(InterpError, match="say how many processes"):
            run(command, *TOY, "--cluster", "auto")


@pytest.mark.parametrize("text", ["a", "1-", "-3", "3,,4"])
def test_bad_ranges(text):
    with pytest.raises(interp.InterpError, match="write 3,7-9"):
        terminal.numbers(text)


def test_columns_of_numbers_are_aligned_to_the_right(capsys):
    terminal.table(["name", "value", "size"], [["a", "+1.5", "9"], ["b", "–", "120"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["a      +1.5     9", "b         –   120"]
    assert lines[0].split() == ["name", "value", "size"]


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_cut_nothing(terminal):
    """Through a pipe a row is one line, however narrow the window; a terminal folds it."""
    cells = ["a" * 64, "L1H2" * 30, "[/b] [0.1, 0.2]"]
    code = f"from interp.cli.terminal import table; table(['hash', 'name', 'x'], [{cells!r}] * 2)"
    size = {"COLUMNS": "40"} | ({"FORCE_COLOR": "1"} if terminal else {})
    known = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=known | size, check=True
    )
    lines = done.stdout.splitlines()
    assert "…" not in done.stdout
    if terminal:
        assert len(lines) > 3
    else:
        assert len(lines) == 3
        assert all(cell in line for line in lines[1:] for cell in cells)


def test_a_model_s_hash_is_printed_whole():
    assert interp.load_model("toy-or").hash in run("models", "--check", "toy-or")
