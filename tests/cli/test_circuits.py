"""`interp circuit` gives the package's own numbers, and its files come back."""

import dataclasses
import json

import numpy as np
import pytest

import interp
from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.evaluation.evaluate import CircuitEvaluation
from interp.circuits.ground_truth.known_models import known_names, load_known
from interp.circuits.positions.positioned_circuit import PositionedCircuit
from interp.core.errors import InterpError
from tests.cli.test_main import run

TOY = ("--model", "toy-induction", "--task", "toy-induction", "--n", 8)


@pytest.fixture
def found(tmp_path):
    """A circuit file, and what was printed."""
    path = tmp_path / "found"
    asked = ("--edges", 5, "--out", path, "--json", tmp_path / "f.json", "--verbose")
    return path, run("circuit", "find", *TOY, *asked)


def test_find_is_the_packages_circuit(found, tmp_path):
    path, out = found
    model = interp.load_model("toy-induction")
    first, _ = interp.load_task("toy-induction", model, n=8).split(0.5, seed=0)
    expected = find_circuit(model, first, Finder()).circuit(5)
    assert Circuit.load(path).edges() == expected.edges()
    assert np.array_equal(Circuit.load(path).signed, expected.signed)
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["edges"] == expected.edges()
    assert "L1H2->logits" in out
    assert "completeness gap" in out
    assert out.startswith("EAP-IG-inputs gives a circuit of 4 of 82 edges (4.88%) and 3 nodes")


@pytest.mark.long
def test_evaluate_prints_protocol_curve_and_null(found, tmp_path):
    path, _ = found
    out = run(
        "circuit", "evaluate", path, *TOY, "--random", 4, "--knockouts", 3,
        "--json", tmp_path / "e.json", "--out", tmp_path / "whole", "--verbose",
    )  # fmt: skip
    for words in (
        "counterfactual ablation", "CPR", "CMD", "rank 1 of 5", "incompleteness", "minimality",
        "on paths", "stability of EAP-IG-inputs", "signed ranking", "absolute ranking",
    ):  # fmt: skip
        assert words in out
    verdict, head, *table = out.splitlines()
    assert verdict.startswith(
        "The circuit, 4 of 82 edges (4.88%), carries 1.000 of the logit_diff gap [1.000, 1.000]"
    )
    assert len({len(line) for line in (head, *table[:9])}) == 1  # aligned columns
    told = json.loads((tmp_path / "e.json").read_text())
    model = interp.load_model("toy-induction")
    _, second = interp.load_task("toy-induction", model, n=8).split(0.5, seed=0)
    expected = faithfulness_curve(model, second, Circuit.load(path), random=4)
    assert told["circuit"]["rows"][0]["faithfulness"] == pytest.approx(expected.faithfulness[0])
    assert len(told["curve"]["rows"]) == len(told["curve_absolute"]["rows"]) == 10
    assert len(told["stability"]["jaccard"]) == 20
    whole = CircuitEvaluation.load(tmp_path / "whole")
    values = {line.strip().split("  ")[0]: line for line in table}
    for name, one in (
        ("faithfulness", whole.itself.estimate(0)),
        ("CPR, signed ranking", whole.cpr()),
        ("CMD, absolute ranking", whole.cmd()),
    ):
        assert f"{one.mean:.3f}  [{one.low:.3f}, {one.high:.3f}]" in values[name]
    for row in told["curve"]["rows"]:
        assert f"{row['faithfulness']:.3f}" in values[f"{row['fraction']:.2%}"]
    short = run("circuit", "evaluate", path, *TOY, "--random", 4, "--knockouts", 3)
    assert "batched runs" in out
    assert out.startswith(short)
    same = run("circuit", "evaluate", path, *TOY, "--random", 0, "--half", "first")
    assert "prompts it was found on" in same


def test_find_by_mean_size_greedily_and_with_pairs(tmp_path):
    model = interp.load_model("toy-or")
    toy = ("--model", "toy-or", "--task", "toy-or", "--n", 8)
    first, _ = interp.load_task("toy-or", model, n=8).split(0.5, seed=0)
    out = run(
        "circuit", "find", *toy, "--method", "exact", "--edges", 6, "--search", "greedy",
        "--by", "mean_absolute", "--redundant", 99, "--out", tmp_path / "c",
        "--json", tmp_path / "f.json",
    )  # fmt: skip
    scores = interp.circuits.score_edges(model, first, method="exact")
    expected = interp.circuits.greedy_edges(scores, 6, by="mean_absolute")
    assert np.array_equal(Circuit.load(tmp_path / "c").mask, expected)
    told = json.loads((tmp_path / "f.json").read_text())
    assert ["L0H1", "L0H2"] in [sorted(pair["parts"]) for pair in told["redundant"]]
    missed = sum(pair["missed"] for pair in told["redundant"])
    assert f"{len(told['redundant'])} of" in out
    assert f"Single ablation misses {missed} of them" in out
    strongest = told["redundant"][0]
    (line,) = (x for x in out.splitlines() if x.startswith(" and ".join(strongest["parts"])))
    assert f"[{strongest['low']:.3f}, {strongest['high']:.3f}]" in line
    with pytest.raises(InterpError, match="say how many edges"):
        run("circuit", "find", *toy, "--search", "greedy")


@pytest.mark.long
def test_acdc_says_its_rule_and_takes_the_paper_s_and_the_other_direction(tmp_path):
    toy = ("--model", "toy-and", "--task", "toy-and", "--n", 8)
    find = ("circuit", "find", *toy, "--verbose", "--method")
    assert "a loss or a gain" in run(*find, "ACDC")
    assert "a loss, as published" in run(*find, "ACDC-paper")
    turned = run(*find, "ACDC-paper", "--direction", "denoise")
    assert "(denoise)" in turned
    with pytest.raises(InterpError, match="starts from the clean run"):
        run("circuit", "find", *toy, "--method", "learned-mask", "--direction", "denoise")


@pytest.mark.parametrize("method", ["ACDC", "learned-mask", "EAP"])
def test_the_seed_draws_the_other_prompts_of_a_resampling(method):
    given = {"ablation": "resample"}
    one, other = (Finder(method=method, seed=seed, **given).options for seed in (0, 1))
    assert (one["seed"], other["seed"]) == (0, 1)
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=6)
    calls = []

    def drawn(model, task, options):
        calls.append(options.seed)
        raise InterpError("stop", "here", "now")

    with pytest.MonkeyPatch.context() as patch:
        for module in ("trials.trials", "scoring.score_edges"):
            patch.setattr(f"interp.circuits.{module}.ablated_runs", drawn)
        with pytest.raises(InterpError, match="stop"):
            find_circuit(model, task, Finder(method=method, seed=7, **given))
    assert calls == [7]


def test_positions_are_the_packages(found, tmp_path):
    path, _ = found
    out = run(
        "circuit", "positions", path, *TOY, "--positions", "last", "--top", 3,
        "--json", tmp_path / "p.json",
    )  # fmt: skip
    assert "1 more edges were left out" in out
    assert out.startswith("L1H2->logits at last has the largest effect of one edge at one token")
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    model = interp.load_model("toy-induction")
    _, second = interp.load_task("toy-induction", model, n=8).split(0.5, seed=0)
    circuit = Circuit.load(path)
    strongest = sorted(circuit.edges(), key=lambda e: -abs(circuit.signed[circuit.graph.edge(e)]))
    expected = interp.circuits.edge_positions(
        model, second, strongest[:3], positions="last"
    ).to_dataframe()
    assert [row["mean"] for row in rows] == pytest.approx(list(expected["mean"]))
    assert {row["edge"] for row in rows} == set(strongest[:3])


@pytest.mark.long
def test_positions_narrow_and_judge_on_the_other_half(found, tmp_path):
    path, _ = found
    out = run(
        "circuit", "positions", path, *TOY, "--positions", "last", "--narrow", 0.05,
        "--out", tmp_path / "cut", "--json", tmp_path / "n.json",
    )  # fmt: skip
    assert "found on" not in out
    told = json.loads((tmp_path / "n.json").read_text())
    model, circuit = interp.load_model("toy-induction"), Circuit.load(path)
    first, second = interp.load_task("toy-induction", model, n=8).split(0.5, seed=0)
    expected = interp.circuits.narrow_circuit(
        model, first, circuit, positions="last", threshold=0.05
    )
    assert told["edges"] == expected.circuit.edges()
    assert all(edge in out for edge in told["edges"])
    judged = interp.circuits.evaluate_positioned(model, second, expected.circuit, random=0)
    assert told["rows"][1]["faithfulness"] == pytest.approx(judged.faithfulness[0])
    assert told["rows"][0]["edges"] > told["rows"][1]["edges"] > 0
    assert PositionedCircuit.load(tmp_path / "cut").hash == expected.circuit.hash
    on_itself = ("--positions", "last", "--narrow", 0.05, "--half", "second")
    assert "the prompts it was found on" in run("circuit", "positions", path, *TOY, *on_itself)
    with pytest.raises(InterpError, match="give --narrow"):
        run("circuit", "positions", path, *TOY, "--out", tmp_path / "no")
    with pytest.raises(InterpError, match="give --half"):
        run("circuit", "positions", path, *TOY, "--narrow", 0.05, "--half", "all")


@pytest.mark.long
def test_means_leave_out_what_both_halves_hold(found):
    path, _ = found
    out = run("circuit", "evaluate", path, *TOY, "--ablation", "mean", "--random", 0, "--verbose")
    assert "mean ablation over the tokens of toy-induction" in out
    with pytest.raises(InterpError, match="give --half"):
        run("circuit", "evaluate", path, *TOY, "--ablation", "mean", "--half", "all")


@pytest.mark.long
def test_model_and_task_are_the_circuit_s_own(found, tmp_path):
    path, _ = found
    spelled = run("circuit", "evaluate", path, *TOY, "--random", 0)
    assert run("circuit", "evaluate", path, "--n", 8, "--random", 0) == spelled
    bare = tmp_path / "bare"
    dataclasses.replace(Circuit.load(path), provenance=None).save(bare)
    with pytest.raises(InterpError, match="give --model"):
        run("circuit", "positions", bare)


@pytest.mark.long
def test_compare(found, tmp_path):
    path, _ = found
    other = tmp_path / "other"
    run("circuit", "find", *TOY, "--method", "ACDC", "--out", other)
    out = run("circuit", "compare", path, other, "--random", 20, "--json", tmp_path / "c.json")
    assert "edges into queries" in out
    assert out.startswith("The circuits share ")
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    shared = Circuit.load(path).overlap(Circuit.load(other))
    assert rows[0]["shared"] == shared["shared_edges"]
    assert rows[0]["jaccard"] == shared["jaccard_edges"]


@pytest.mark.parametrize("suffix", ["json", "pt"])
@pytest.mark.long
def test_export_and_back(found, tmp_path, suffix):
    path, _ = found
    file, back = tmp_path / f"mib.{suffix}", tmp_path / "back"
    run("circuit", "export", path, file)
    run("circuit", "export", file, back, "--model", "toy-induction")
    assert Circuit.load(back).edges() == Circuit.load(path).edges()
    assert np.allclose(Circuit.load(back).signed, Circuit.load(path).signed, atol=1e-6)
    run("circuit", "export", file, tmp_path / "whole")
    assert Circuit.load(tmp_path / "whole").n_edges >= Circuit.load(back).n_edges
    with pytest.raises(interp.InterpError, match="ends in"):
        run("circuit", "export", path, tmp_path / "circuit.txt")


@pytest.mark.long
def test_recover_prints_precision_and_recall(tmp_path):
    out = run(
        "circuit", "recover", "reverse", "toy-induction", "--methods", "EAP-IG-inputs,ACDC",
        "--n", 4, "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert "precision" in out
    assert "toy-induction: 3 of 82 edges matter; 2 of 2 methods find exactly these." in out
    told = json.loads((tmp_path / "r.json").read_text())
    assert [table["name"] for table in told] == ["tracr-reverse", "toy-induction"]
    assert "pairs are redundant" in out
    by_method = {row["method"]: row for row in told[1]["found"]}
    assert by_method["ACDC"]["precision"] == 1


def test_known_names_load():
    assert {"reverse", "frac_prevs", "hist", "sort", "toy-or"} <= set(known_names())
    with pytest.raises(interp.InterpError, match="did you mean 'reverse'"):
        load_known("revers")


def test_a_circuit_of_a_task_file_asks_for_the_file(tmp_path):
    """And the halves say how many pairs they have, if prompts in common keep pairs together."""
    task = tmp_path / "mine.jsonl"
    first, *others = interp.load_task("toy-induction", n=3).pairs
    rows = [
        {"clean": x.clean, "corrupted": x.corrupted, "answers": x.answers, "wrong": x.wrong}
        for x in [first] * 5 + others
    ]
    task.write_text("\n".join(map(json.dumps, rows)))
    path, on = tmp_path / "found", ("--model", "toy-induction", "--n", 8)
    out = run("circuit", "find", *on, "--task", task, "--edges", 5, "--out", path)
    assert "The halves have 2 and 5 of 7 pairs, and this is the first: pairs that share" in out
    with pytest.raises(
        InterpError, match="'mine', which is not a task of the package.*--task FILE"
    ):
        run("circuit", "evaluate", path, "--n", 8)
    assert "carries" in run("circuit", "evaluate", path, "--task", task, "--n", 8, "--random", 0)


def test_a_circuit_that_is_not_there(tmp_path):
    with pytest.raises(InterpError, match=r"nowhere\.safetensors: no such file; "):
        run("circuit", "evaluate", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "command", ["find", "evaluate", "compare", "export", "positions", "recover"]
)
def test_help_has_an_example(command):
    assert f"Example: interp circuit {command}" in run("circuit", command, "--help")


def test_an_unknown_half_is_refused():
    with pytest.raises(interp.InterpError, match="first, second or all"):
        run("circuit", "find", *TOY, "--half", "third")
