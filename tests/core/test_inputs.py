"""What comes from outside either works or is refused in one message, and never by half.

The corpus of hand-written cases, then generated ones: files of tasks, of prompts and of circuits,
the grammars of the command line, prompts, settings.
"""

import json
import math
import os
from dataclasses import fields, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Finder
from interp.circuits.files.mib import from_mib_json, from_mib_pt, to_mib_json, to_mib_pt
from interp.cli import main as cli
from interp.cli import terminal
from interp.core import schema
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.files import file_sha256
from interp.core.prompts import PromptPair, Task
from interp.engine.edges.graph import Graph
from interp.refusal.cases import read_cases
from interp.studies.refusal.settings import RefusalSettings
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.verification.settings import VerificationSettings
from interp.tasks.registry import load_task
from interp.ui.shared.state import Selection, link
from interp.ui.shared.state import read as read_link

EXAMPLES = int(os.environ.get("INTERP_EXAMPLES", "60"))
"""Generated inputs of a test; more of them are drawn anew at every run."""

BOUNDED = settings(
    derandomize=EXAMPLES <= 60,
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
GOOD = {"clean": "a b c", "corrupted": "a d c", "answers": ["b"], "wrong": ["d"]}
ODD = [None, True, [], {}, "", "\ud800", [None], [True], [""], ["\ud800"], {"x": 1}, [[1]]]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def refused(function, *arguments, **named):
    """The message of an InterpError, or what was returned."""
    try:
        return function(*arguments, **named)
    except InterpError as error:
        return str(error)


def task_of(path, *rows):
    """A JSONL task file, read."""
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return Task.from_jsonl(path)


# -- task files ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize(
    "field", ["clean", "corrupted", "answers", "wrong", "answers_ids", "clean_ids", "positions"]
)
def test_odd_values_in_a_task_file(tmp_path, field, value):
    """Nothing of another type is read as something: true is no token 1, null no text."""
    row = {k: v for k, v in GOOD.items() if k != field.removesuffix("_ids")} | {field: value}
    absent = value is None and field in ("corrupted", "wrong", "positions")
    if absent or (field, value) in (("wrong", []), ("positions", {})):
        assert task_of(tmp_path / "t.jsonl", row).pairs[0].answers == ("b",)
        return
    if (field, value) == ("answers_ids", [[1]]):  # one answer, as the list of its tokens
        assert task_of(tmp_path / "t.jsonl", row).pairs[0].answers == ((1,),)
        return
    with pytest.raises(InterpError, match=r"t\.jsonl, line 1\b.*; (write|give) "):
        task_of(tmp_path / "t.jsonl", row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"wrongs": ["e"]}, "field 'wrongs': no such name; did you mean 'wrong'"),
        (
            {"answers": None, "answers_ids": [1.7]},
            "answers_ids is .*1.7.*; write a list of token ids",
        ),
        ({"answers": None, "answers_ids": [-1]}, "answers_ids is .*-1"),
        ({"answers_ids": [7]}, "both answers and answers_ids"),
        ({"answers": True}, "answers is True; write a text or a list of texts"),
        ({"positions": {"x": 1.5}, "indices": {"x": 1}}, "position 'x' is given twice"),
        ({"indices": {"x": 1.5}}, "indices is .*1.5"),
        ({"indices": {"x": "last"}}, "indices is .*last.*; write name: a token index"),
        ({"positions": {"x": ["a", 1.5]}}, "positions is"),
        (
            {"positions": {"last": "a"}},
            "the name 'last' is reserved; .* are last, .*paren.*, all",
        ),
        ({"indices": {"end_of_instruction": 1}}, "the name 'end_of_instruction' is reserved"),
        ({"positions": {"x": "z"}}, "'z', 0 times in the clean prompt"),
        ({"positions": {"x": ["b", 1]}}, "'b', 1 time in the clean prompt; .* from -1 to 0"),
        ({"clean": None, "clean_ids": [1, 2], "indices": {"x": -3}}, "-3 in 2 tokens; .*-2 to 1"),
        (
            {"clean": None, "clean_ids": [1, 2], "positions": {"x": "a"}},
            "a substring, .*token ids; give",
        ),
    ],
)
def test_messages_name_the_line_the_field_and_what_to_write(tmp_path, row, message):
    with pytest.raises(InterpError, match=rf"line 2(, \w+\.\w+)?: {message}"):
        task_of(tmp_path / "t.jsonl", GOOD, {k: v for k, v in (GOOD | row).items() if v})


def test_a_file_that_another_function_reads(tmp_path):
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    for read, path, name in (
        (Task.from_jsonl, table, "from_csv"),
        (Task.from_csv, lines, "from_jsonl"),
        (load_task, str(table), "from_csv"),
        (load_task, lines, "from_jsonl"),
    ):
        with pytest.raises(InterpError, match=rf"; read it by interp\.Task\.{name}\('.*'\)$"):
            read(path)


def test_a_number_in_a_file_is_text_unless_the_column_says_ids(tmp_path):
    pair = task_of(tmp_path / "t.jsonl", GOOD | {"clean": 5, "answers": 7, "wrong": [8, 1.50]})
    pair = pair.pairs[0]
    assert (pair.clean, pair.answers, pair.wrong) == ("5", ("7",), ("8", "1.5"))
    row = {"clean_ids": [5, 6], "answers_ids": [7], "indices": {"x": 1, "y": -1}}
    pair = task_of(tmp_path / "t.jsonl", row).pairs[0]
    assert (pair.clean, pair.answers, pair.positions) == ((5, 6), (7,), {"x": 1, "y": -1})
    row = GOOD | {"clean": "a 4 a", "positions": {"z": ["a", 1], "w": 4}}
    pair = task_of(tmp_path / "t.jsonl", row).pairs[0]
    assert pair.positions == {"z": ("a", 1), "w": "4"}
    table = tmp_path / "t.csv"
    table.write_text("clean,answers,wrong_ids,positions.p,indices.q\na 4 b,7|07,7|8,4,4\n")
    pair = Task.from_csv(table).pairs[0]
    assert (pair.answers, pair.wrong) == (("7", "07"), (7, 8))
    assert pair.positions == {"p": "4", "q": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clean,answers,answers\na,b,c\n", "columns .*; give each column a different name"),
        ("clean,,answers\na,b,c\n", "a different name"),
        ("clean,answers,wrongs\na,b,c\n", "line 1: column 'wrongs': no such .*mean 'wrong'"),
        ("\nclean,answers,wrongs\na,b,\n", "line 2: column 'wrongs': no such name"),
        ("clean;answers\na;b\n", "line 1: fields separated by ';'; separate them with commas"),
        ("clean\tanswers\na\tb\n", r"line 1: fields separated by '\\t'"),
        ("clean,answers,positions.last\na,b,\n", "line 1, positions.last: the name 'last' is re"),
        ("clean_ids,answers,indices.x\n1|2,b,1\n1,d,1\n", "line 3, indices.x: 1 in 1 tokens"),
        ("clean,answers,positions.x\na,b,a\nc,d,a\n", "line 3, positions.x: 'a', 0 times"),
        ("clean,answers,c\na,b,c\n", "'c': no such name"),
        ("clean,answers,positions\na,b,c\n", "'positions': no such name"),
        ("clean,answers,positions.\na,b,c\n", "'positions.': no such name"),
        ("clean,answers\na,b,c\n", "line 2: . fields, but the header has"),
        ("clean,answers\na\n", "line 2: . fields, but the header has"),
        ('clean,answers\na,"b\n', "line 2: unexpected end"),
        ('clean,answers\n"a"x,b\n', "line 2: "),
        ("clean,answers\na,b||c\n", "line 2: answers is"),
        ("clean,answers_ids\na,1.7\n", "line 2: answers_ids is"),
        ("clean,answers_ids\na,٣\n", "line 2: answers_ids is"),
        (f"clean,answers\n{'a' * 200_000},b\n", "line 2: field larger"),
        ("clean,answers,wrong\na,b,c\nd,e,\n", "line 3: it has no value for wrong"),
        ("clean,answers,corrupted\na,b,\nd,e,f\n", "line 3: it has a value for corrupted"),
        ("", "no prompts"),
        ("clean,answers\n", "no prompts"),
        ("\n\n", "no prompts"),
    ],
)
def test_csv_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InterpError, match=message):
        Task.from_csv(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1: not JSON"),
        (b"[1]", "line 1: .* is not an object"),
        (b"7", "is not an object"),
        (b'{"clean": "a", "clean": "b", "answers": "c"}', "a repeated key"),
        (b'{"clean": "a", "answers": NaN}', "NaN is not a number"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"clean": "a", "answers": "\xe9"}', "UTF-8"),
        ('{"clean": "a", "answers": "b"}'.encode("utf-16"), "UTF-8"),
        (b"", "no prompts"),
    ],
)
def test_jsonl_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(InterpError, match=message):
        Task.from_jsonl(path)


def test_marks_of_the_encoding_and_rare_line_ends_are_no_content(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"clean": "a", "answers": "b"}\r\n\r\n')
    assert Task.from_jsonl(path).pairs[0].clean == "a"
    path.write_text('{"clean": "a\u2028b\x85c", "answers": "b"}\n', encoding="utf-8")
    assert Task.from_jsonl(path).pairs[0].clean == "a\u2028b\x85c"
    path.write_text('{"clean": "a", "answers": "b", "wrong_ids": ' + "9" * 5000 + "}\n")
    with pytest.raises(InterpError, match="wrong_ids is"):
        Task.from_jsonl(path)


@pytest.mark.long
@BOUNDED
@given(st.lists(st.dictionaries(st.sampled_from([*GOOD, "positions", "indices", "x"]), ANY)))
def test_any_json_is_a_task_or_refused(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    found = refused(task_of, path, *rows)
    if isinstance(found, Task):
        for pair, row in zip(found.pairs, rows, strict=True):
            assert row.keys() <= {*GOOD, "positions", "indices"}
            assert not any(isinstance(x, bool) for x in (row["clean"], row["answers"]))
            assert all(isinstance(x, str) and x for x in (pair.clean, *pair.answers))


@BOUNDED
@given(st.binary(max_size=80) | st.text(alphabet='a,"\n|é\u2028\ufeff1.', max_size=40))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "t.csv"
    body = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(b"clean,answers\n" + body)
    refused(Task.from_csv, path)
    path.write_bytes(body)
    refused(Task.from_csv, path)


# -- files of prompts ----------------------------------------------------------------------


CASE = {"row": "1", "prompt": "Hello", "should": "answer"}


def cases_in(path, content):
    """Cases from a file of these bytes."""
    path.write_bytes(content)
    return read_cases(path, sha256=file_sha256(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"", "no rows"),
        ("p.csv", b"row,prompt,should\n", "no rows"),
        ("p.csv", b"row,prompt,should\n1,a\n", "line 2: . fields, but the header has"),
        ("p.csv", b"row,prompt,prompt,should\n1,a,b,answer\n", "a different name"),
        (
            "p.csv",
            b"row,prompt,should,tsak\n1,a,answer,\n",
            "line 1: column 'tsak': no such .*mean",
        ),
        ("p.csv", b"row,prompt,should\n1,a," + b"x" * 9000 + b"\n", "should '.{79}: no such name"),
        ("p.csv", b"row;prompt;should\n1;a;answer\n", "line 1: fields separated by ';'"),
        ("p.csv", b"row,prompt,should\n1,\xe9,answer\n", "UTF-8"),
        ("p.csv", b"row,prompt,should\n1,a,Answer\n", "should 'Answer': no such name; did you"),
        ("p.csv", b"row,prompt,should\n1,,answer\n", "line 2: no prompt"),
        ("p.csv", b"row,prompt,should\n1,a,answer\n1,b,answer\n", "line 3: the id '1' again"),
        ("p.jsonl", b"{", "line 1: not JSON"),
        ("p.jsonl", b"[]", "is not an object"),
        ("p.jsonl", b'{"row": "1", "prompt": ["a"], "should": "answer"}', "prompt is"),
        ("p.jsonl", b'{"row": true, "prompt": "a", "should": "answer"}', "row is True"),
        ("p.jsonl", b'{"row": "1", "prompt": "\\ud800", "should": "answer"}', "unpaired surrogate"),
        ("p.txt", b"x", "give .jsonl or .csv"),
    ],
)
def test_files_of_prompts_that_are_refused(tmp_path, name, content, message):
    with pytest.raises(InterpError, match=message):
        cases_in(tmp_path / name, content)


def test_files_of_prompts_that_are_read(tmp_path):
    for name, content in (
        ("p.csv", b"\xef\xbb\xbfrow,prompt,should,kind\r\n1,Hello,answer,\r\n"),
        ("p.jsonl", b'{"row": 1, "prompt": "Hello", "should": "answer", "task": null}\n\n'),
    ):
        (case,) = cases_in(tmp_path / name, content)
        assert (case.row, case.prompt, case.should) == ("1", "Hello", "answer")
        assert (case.task, case.kind) == ("request", "")
    (case,) = cases_in(
        tmp_path / "q.jsonl", json.dumps(CASE | {"prompt": "a\u2028b"}, ensure_ascii=False).encode()
    )
    assert case.prompt == "a\u2028b"


def test_a_file_of_prompts_is_pinned_once_it_is_right(tmp_path):
    """What is wrong comes first, the hash last; rows are read before their hash is compared."""
    path = tmp_path / "p.csv"
    path.write_text("row,prompt,should\n1,a,answer\n")
    found = file_sha256(path)
    for pin, wrong in (("", "no hash is given"), ("0" * 64, "its hash is not 0+")):
        with pytest.raises(InterpError, match=rf"p\.csv: {wrong}; .*--sha256\) {found}$"):
            read_cases(path, sha256=pin)
    path.write_text("row,prompt,should\n1,a,Answer\n")
    with pytest.raises(InterpError, match="line 2: should 'Answer'"):
        read_cases(path, sha256="")


@pytest.mark.parametrize("name", ["none.csv", "none.jsonl", "."])
def test_a_missing_file_of_prompts(tmp_path, name):
    with pytest.raises(InterpError, match="no such file|give .jsonl"):
        read_cases(tmp_path / name, sha256="")


@pytest.mark.long
@BOUNDED
@given(st.lists(st.dictionaries(st.sampled_from([*CASE, "base", "x"]), ANY), max_size=3))
def test_any_json_is_cases_or_refused(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    found = refused(cases_in, path, "\n".join(map(json.dumps, rows)).encode())
    if not isinstance(found, str):
        assert len(found) == len(rows)
        assert all(case.prompt and case.should in ("answer", "refuse") for case in found)


# -- files of circuits ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def mib(tmp_path_factory):
    """What MIB's two files hold of a small circuit."""
    graph = Graph(n_layers=1, n_heads=2, n_kv_heads=2, parallel=False)
    circuit = Circuit(
        graph=graph, mask=graph.allowed.copy(), scores=np.where(graph.allowed, 0.5, 0), name="x"
    )
    folder = tmp_path_factory.mktemp("mib")
    plain = json.loads(to_mib_json(circuit, folder / "c.json", d_model=4).read_text())
    path = to_mib_pt(circuit, folder / "c.pt", d_model=4)
    return plain, torch.load(path, weights_only=True)  # noqa: TID251


def changed(content, where, value):
    """A copy with one place changed; a value of ... leaves the place out."""
    key, *rest = where
    new = dict(content)
    if rest:
        new[key] = changed(content[key], rest, value)
    elif value is ...:
        del new[key]
    else:
        new[key] = value
    return new


EDGE = ("edges", "input->logits")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("cfg",), ...),
        (("cfg",), []),
        (("cfg", "n_layers"), "1"),
        (("cfg", "n_layers"), True),
        (("cfg", "n_layers"), 0),
        (("cfg", "n_layers"), 10**9),
        (("cfg", "n_heads"), -2),
        (("cfg", "n_heads"), 2.0),
        (("cfg", "parallel_attn_mlp"), "no"),
        (("nodes",), []),
        (("neurons",), {"m0": [True]}),
        (("edges",), []),
        (("edges",), {}),
        (EDGE, ...),
        (EDGE, 1.0),
        ((*EDGE, "score"), None),
        ((*EDGE, "score"), "0.5"),
        ((*EDGE, "score"), math.nan),
        ((*EDGE, "score"), ...),
        ((*EDGE, "in_graph"), "yes"),
        ((*EDGE, "in_graph"), 1),
        (("more",), 1),
    ],
)
def test_mib_json_that_is_refused(tmp_path, mib, where, value):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(mib[0]))
    assert from_mib_json(path).n_edges
    path.write_text(json.dumps(changed(mib[0], where, value)))
    with pytest.raises(InterpError, match="MIB circuit"):
        from_mib_json(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b'"x"'])
def test_what_is_no_mib_file(tmp_path, content):
    for name, read in (("c.json", from_mib_json), ("c.pt", from_mib_pt)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InterpError, match="MIB circuit"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("cfg", lambda x: x | {"n_layers": 10**9}),
        ("cfg", lambda x: [x]),
        ("edges_scores", lambda x: x.tolist()),
        ("edges_scores", lambda x: x * math.nan),
        ("edges_scores", lambda x: x.to(torch.complex64)),
        ("edges_scores", lambda x: x[0]),
        ("edges_in_graph", lambda x: x.float()),
        ("edges_in_graph", torch.ones_like),
        ("edges_in_graph", lambda x: x[:, :1]),
        ("src_nodes", lambda x: x[::-1]),
        ("src_nodes", len),
    ],
)
def test_mib_tensors_that_are_refused(tmp_path, mib, key, change):
    path = tmp_path / "c.pt"
    torch.save(mib[1] | {"edges_scores": mib[1]["edges_scores"].bfloat16()}, path)
    assert from_mib_pt(path).n_edges
    torch.save(mib[1] | {key: change(mib[1][key])}, path)
    with pytest.raises(InterpError, match="MIB circuit"):
        from_mib_pt(path)


@BOUNDED
@given(st.sampled_from([("cfg",), ("cfg", "n_heads"), ("edges",), EDGE, (*EDGE, "score")]), ANY)
@pytest.mark.long
def test_any_change_of_a_mib_file_is_read_or_refused(tmp_path_factory, mib, where, value):
    path = tmp_path_factory.mktemp("any") / "c.json"
    path.write_text(json.dumps(changed(mib[0], where, value)))
    found = refused(from_mib_json, path)
    if isinstance(found, Circuit):
        assert np.isfinite(found.signed).all()


# -- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("3", [3]), ("3,7-9", [3, 7, 8, 9]), ("0-0", [0]), ("007", [7])],
)
def test_numbers_that_are_read(text, found):
    assert terminal.numbers(text) == found


@pytest.mark.parametrize(
    "text",
    ["0-99999999", "99999999", ",".join(["0-999999"] * 3), "1-0", "", ",", "1,,2", "1-", "-1",
     "1-2-3", "a", "1.5", "٣", "²", "1 2", "9" * 5000, "nan"],
)  # fmt: skip
def test_numbers_that_are_refused(text):
    with pytest.raises(InterpError, match="numbers"):
        terminal.numbers(text)


@BOUNDED
@given(st.text(alphabet="0123456789,- a٣", max_size=12))
def test_any_text_is_numbers_or_refused(text):
    found = refused(terminal.numbers, text)
    assert isinstance(found, str) or (found and max(found) < terminal.MOST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["n=3"], "write --n"), (["seed=3"], "write --seed"), (["corruption"], "no name=value"),
        (["=x"], "no name=value"), (["corruption="], "no name=value"),
        (["length=4", "length=5"], "'length' twice"),
    ],
)  # fmt: skip
def test_options_that_are_refused(options, message):
    with pytest.raises(InterpError, match=message):
        terminal.task_options(options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ioi", {"corruption": 3}), ("ioi", {"corruption": "swop"}), ("ioi", {"templates": "two"}),
        ("ioi", {"templates": True}), ("ioi", {"template": 1.5}), ("ioi", {"more": 1}),
        ("induction", {"length": 1}), ("induction", {"length": -3}),
        ("induction", {"length": 10**12}), ("colored_objects", {"shots": 2}),
        ("colored_objects", {"split": "half"}), ("toy-or", {"length": 2}),
        ("ioi", {"n": 0}), ("toy-or", {"n": -1}), ("ioi", {"n": 1.5}),
    ],
)  # fmt: skip
def test_options_of_tasks_that_are_refused(name, options):
    with pytest.raises(InterpError):
        load_task(name, **options)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e999", "", "x", "٣", "true"])
@pytest.mark.parametrize("rule", [schema.Positive, schema.NotNegative, schema.Share])
def test_numbers_of_options_that_are_refused(rule, text):
    with pytest.raises(InterpError):
        schema.checked(rule, text, "it", typed=True)


TOY = ("--model", "toy-or", "--task", "toy-or")


@pytest.mark.parametrize(
    "arguments",
    [
        ("patch", *TOY, "--budget", "nan"),
        ("patch", *TOY, "--budget", "0"),
        ("patch", *TOY, "--n", "0"),
        ("patch", *TOY, "--seed", "-1"),
        ("patch", *TOY, "--top", "٣"),
        ("patch", *TOY, "--layers", "0-99999999"),
        ("patch", *TOY, "--layers", "1-0"),
        ("patch", *TOY, "--option", "n=3"),
        ("patch", "--model", "toy-or", "--task", "FILE", "--option", "corruption=abc"),
        ("patch", "--model", "toy-or", "--task", "missing.csv"),
        ("patch", "--model", "toy-or", "--task", "PAIRS", "--seed", "0"),
        ("path", "--model", "toy-or", "--task", "PAIRS", "--seed", "3"),
        ("tasks", "PAIRS", "--model", "toy-or", "--seed", "3"),
        ("patch", *TOY, "--seed", "3"),
        ("circuit", "find", *TOY, "--steps", "0"),
        ("circuit", "find", *TOY, "--by", ""),
        ("circuit", "find", *TOY, "--search", "gredy"),
        ("circuit", "find", *TOY, "--threshold", "nan"),
        ("circuit", "find", *TOY, "--weight", "inf"),
        ("circuit", "positions", "circuit", "--narrow", "nan"),
        ("circuit", "recover", "toy-or", "--threshold", "nan"),
        ("study", "verification", "--model", "toy-or", "--top-k", "0"),
        ("study", "verification", "--model", "toy-or", "--top-k", "1-0"),
        ("study", "verification", "--model", "toy-or", "--threshold", "-1"),
        ("study", "verification", "--model", "toy-or", "--threshold", "nan"),
        ("study", "verification", "--model", "toy-or", "--window", "99"),
        ("study", "verification", "--model", "toy-or", "--operands", "9"),
        ("study", "verification", "--model", "toy-or", "--n", "1"),
        ("study", "verification", "--model", "toy-or", "--template", "FILE"),
        ("study", "reuse", "--share", "nan"),
        ("study", "refusal", "--n", "-1"),
        ("study", "refusal", "--prompts", "missing.jsonl"),
        ("study", "refusal", "--prompts", ""),
        ("study", "refusal", "--prompts", "FILE"),
    ],
    ids=" ".join,
)
def test_the_command_line_refuses_before_the_work(tmp_path, monkeypatch, arguments):
    """One line, exit code 1 or 2, nothing written; no study begins."""
    monkeypatch.setattr("interp.cli.studies.run_study", lambda *a, **k: pytest.fail("it began"))
    monkeypatch.setattr(
        "interp.patching.activation.activation_patching", lambda *a, **k: pytest.fail("ran")
    )
    monkeypatch.setattr(
        "interp.circuits.discovery.find.find_circuit", lambda *a, **k: pytest.fail("ran")
    )
    file = tmp_path / "latin.csv"
    file.write_bytes(b"clean,answers\n\xe9,b\n")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("clean,answers\n<bos> a,b\n")
    given = [str({"FILE": file, "PAIRS": pairs}.get(a, a)) for a in arguments]
    done = CliRunner().invoke(
        cli.app, [*given, *(["--json", str(tmp_path / "out.json")] * (given[0] != "study"))]
    )
    assert isinstance(done.exception, InterpError | SystemExit), done.exception
    assert done.exit_code in (1, 2)
    if arguments[-2] == "--seed" and arguments[-1] != "-1":
        assert "its prompts are fixed; leave --seed out" in str(done.exception)
    assert not (tmp_path / "out.json").exists()


# -- prompts, pairs, settings --------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", [None, 1.5, True, {}, b"abc", [1.7], [True], ["a"], [None], "a\ud800", [[1]]]
)
def test_prompts_that_are_refused(toy, prompt):
    for function in (toy.tokenize, lambda x: PromptPair(clean=x, answers=("b",))):
        with pytest.raises(InterpError, match="prompt"):
            function(prompt)


def test_prompts_of_other_kinds_are_kept_as_ids(toy):
    for prompt in ([1, 2], np.array([1, 2]), torch.tensor([1, 2])):
        assert toy.tokenize(prompt).tokens == toy.tokenize(iter(prompt)).tokens == (1, 2)
        assert PromptPair(clean=prompt, answers=np.array([3])).answers == (3,)
    for answers in (True, 1.5, None, [True], [1.5], "\ud800", {"a": 1}):
        with pytest.raises(InterpError, match="answers of a pair"):
            PromptPair(clean="a", answers=answers)
    for mark in (True, 1.5, None, ("a", 1.5), ("a",), {}):
        with pytest.raises(InterpError, match="positions of a pair"):
            PromptPair(clean="a", answers=("b",), positions={"x": mark})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (VerificationSettings, {"top_k": (0,)}), (VerificationSettings, {"top_k": ()}),
        (VerificationSettings, {"top_k": 10}), (VerificationSettings, {"threshold": -1.0}),
        (VerificationSettings, {"threshold": math.nan}), (VerificationSettings, {"window": 99}),
        (VerificationSettings, {"window": True}), (VerificationSettings, {"n": 3}),
        (VerificationSettings, {"n": 40.0}), (VerificationSettings, {"operands": (7,)}),
        (VerificationSettings, {"seed": -1}), (VerificationSettings, {"template": ""}),
        (ReuseSettings, {"share": 0.0}), (ReuseSettings, {"share": 2.0}), (ReuseSettings, {"n": 1}),
        (RefusalSettings, {"draws": 1}), (RefusalSettings, {"system": 3}),
        (Finder, {"steps": 0}), (Finder, {"threshold": math.nan}), (Finder, {"weight": -1.0}),
    ],
)  # fmt: skip
def test_settings_that_are_refused(kind, changes):
    with pytest.raises(InterpError, match=f"settings: {min(changes)} is .*; write"):
        kind(**changes)


# -- labels, links and command lines ---------------------------------------------------------------


LABELS = st.text(alphabet="LHKVN.0123456789qzkv_mlpout٣²\n ", max_size=24) | st.from_regex(
    r"L[0-9]{1,12}(H|KV|N)?[0-9]{0,12}(\.[a-z_]{1,9})?", fullmatch=True
)


@BOUNDED
@given(LABELS)
def test_any_text_is_a_component_or_refused(text):
    found = refused(Component.parse, text)
    if isinstance(found, Component):
        assert Component.parse(str(found)) == found


QUERY = st.dictionaries(
    st.sampled_from([field.name for field in fields(Selection)]),
    st.lists(st.text(max_size=12) | st.integers().map(str) | LABELS, max_size=3),
    max_size=8,
)


@BOUNDED
@given(QUERY)
def test_any_link_is_a_selection_whose_own_link_is_read_whole(query):
    selection = replace(read_link(query)[0], model="m")  # a link without one says less
    assert read_link(link(selection)) == (selection, [])


COMMANDS = [
    ["models"], ["tasks"], ["look"], ["scan"], ["patch"], ["path"], ["runs"], ["runs", "show"],
    ["runs", "note"], ["runs", "delete"], ["runs", "compare"], ["cache"], ["cache", "check"],
    ["cache", "prune"], ["circuit", "find"], ["circuit", "evaluate"], ["circuit", "positions"],
    ["circuit", "compare"], ["circuit", "export"], ["study", "verification"], ["study", "refusal"],
    ["study", "reuse"],
]  # fmt: skip
OPTIONS = (
    "--model --task --n --site --by --layers --positions --receivers --json --seed --half --top "
    "--dtype --option --ablation --method --edges --threshold --yes --words --out --foil --circuit"
).split()
WORDS = st.sampled_from(OPTIONS) | LABELS | st.text(max_size=8) | st.integers().map(str)


@pytest.mark.long
@BOUNDED
@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=6))
def test_any_command_line_ends_in_one_message(tmp_path_factory, command, words):
    """Without a traceback, and before a model is loaded."""

    def stopped(*_, **__):
        raise InterpError("loading", "not in this test", "go on")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        for module in ("interp.cli.terminal.load", "interp.models.loading.load_model"):
            patch.setattr(module, stopped)
        done = CliRunner().invoke(cli.app, [*command, *words])
    assert done.exception is None or isinstance(done.exception, SystemExit | InterpError), words
