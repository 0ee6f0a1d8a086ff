"""Files of killed, stopped and rival processes; places that cannot be written; JSON; memory."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.circuits.discovery.acdc import acdc
from interp.circuits.discovery.find import Finder, Findings, find_circuit
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.trials import trials
from interp.cli.main import app
from interp.core.errors import InterpError
from interp.core.files import DAY, PART, cache_dir, json_text, require_writable, write_atomically
from interp.core.records import Record
from interp.engine.memory import says_too_little
from interp.models import embedded
from interp.models.loading import load_model, wrap
from interp.overview.prompt_set import DIRECT, head_samples
from interp.patching import spec
from interp.patching.activation import activation_patching
from interp.patching.path import path_patching
from interp.results import store
from interp.results.cached import check_cache
from interp.runs.capture import run_with_cache
from interp.studies.steps import Steps, read_results
from interp.tasks.registry import load_task
from tests import ROOT
from tests.families import random_task, tiny
from tests.results.test_scores import noisy

SOURCE = ROOT / "interp"


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("llama"), name="tiny", check=False)


@pytest.fixture(autouse=True)
def _any_gap(monkeypatch):
    for module in (spec, scoring, trials):
        monkeypatch.setattr(module, "check_gap", lambda clean, corrupted: None)


# -- killed and rival processes ----------------------------------------------------------------


def killed_while_writing(path):
    """What a process leaves that is killed in the middle of a write."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from interp.core.files import write_atomically\n"
        "def write(partial):\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    (left,) = path.parent.glob(f".*{PART}")
    return left


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    dead = killed_while_writing(tmp_path / "one.json")
    mine = tmp_path / f".two.json.{dead.name.split('.')[-2].split('-')[0]}-{os.getpid()}-0a{PART}"
    others, old = tmp_path / f".x.00000000-1-0a{PART}", tmp_path / f".y.00000000-1-0a{PART}"
    for path in (mine, others, old):
        path.write_text("half")
    os.utime(old, (0, time.time() - 2 * DAY))
    write_atomically(tmp_path / "three.json", lambda partial: partial.write_text("{}"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"three.json", mine.name, others.name}  # of one alive, and of another machine


def test_half_a_step_is_no_step(tmp_path):
    steps = Steps(directory=tmp_path, key=["k"])
    steps("one", lambda: {"x": 1})
    whole = (tmp_path / "one.json").read_bytes()
    killed_while_writing(tmp_path / "two.json").write_bytes(whole)
    (tmp_path / ".one.json.old.json").write_bytes(whole)
    shutil.copy(tmp_path / "one.json", tmp_path / "three.json")
    assert read_results(tmp_path, steps.of)[0] == {"one": {"x": 1}}


def test_a_killed_build_leaves_nothing(monkeypatch):
    models = cache_dir() / "models"
    (models / ".building-abc").mkdir(parents=True)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no index")
    monkeypatch.setattr(embedded.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(InterpError, match="no index"):
        embedded.directory()
    assert not list(models.glob(".building-*"))


def test_a_flipped_bit_of_the_default_model_is_no_build(monkeypatch, tmp_path):
    """One bit of one weight, or of the tokeniser: it is built again."""
    from safetensors.torch import save_file

    from interp.core.records import sha256_of

    weights = {"w": torch.arange(6.0)}
    monkeypatch.setattr(embedded, "WEIGHTS", sha256_of("", weights))
    folder = cache_dir() / "models" / embedded.NAME
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    embedded._seal(folder)
    monkeypatch.setattr(embedded, "_build", lambda target: pytest.fail("built again"))
    assert embedded.directory() == folder
    built = []
    monkeypatch.setattr(embedded, "_build", built.append)
    for name in ("model.safetensors", "tokenizer.json", embedded.SUMS):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        embedded.directory()
        (folder / name).write_bytes(whole)
    assert built == [folder] * 3
    save_file({"w": torch.ones(6)}, folder / "model.safetensors")
    with pytest.raises(InterpError, match="its weights have the sha256"):
        embedded._seal(folder)


def use_chunks(cache, key, begun, go):
    """Another process that is at a computation: it keeps a chunk, waits, and keeps another."""
    os.environ["INTERP_CACHE"] = str(cache)
    with store.chunks_of(key) as chunks:
        chunks.once(0, 3, lambda: np.zeros(3))
        begun.set()
        go.wait(60)
        assert (chunks.folder / "chunk-000000.safetensors").exists()
        chunks.once(1, 3, lambda: np.ones(3))
        assert chunks.error is None
        store.drop(chunks)
    begun.set()


@pytest.mark.long
def test_no_process_removes_chunks_that_another_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    spawn = multiprocessing.get_context("spawn")
    begun, go = spawn.Event(), spawn.Event()
    other = spawn.Process(target=use_chunks, args=(tmp_path, "k", begun, go))
    other.start()
    assert begun.wait(120)
    with store.chunks_of("k") as chunks:
        made = chunks.once(0, 3, lambda: pytest.fail("it is there"))
        assert made.tolist() == [0, 0, 0]
        store.drop(chunks)
    folder = tmp_path / "partial" / "k"
    os.utime(folder, (0, 0))  # nobody added to it for long, but one is at it
    with store.chunks_of("another"):
        pass
    assert folder.exists()
    go.set()
    other.join(60)
    assert other.exitcode == 0
    assert not list((tmp_path / "partial").iterdir())


def test_a_search_stopped_while_its_result_is_written_keeps_its_batches(model, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    task, ran, once = random_task(), [], store.Chunks.once
    with monkeypatch.context() as patch:
        patch.setattr(Findings, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            find_circuit(model, task, Finder(method="ACDC", threshold=2.0))

    def counted(self, number, size, compute, **options):
        return once(self, number, size, lambda: ran.append(number) or compute(), **options)

    monkeypatch.setattr(store.Chunks, "once", counted)
    find_circuit(model, task, Finder(method="ACDC", threshold=2.0))
    assert not ran
    assert not list(cache_dir().glob("partial/*"))


def test_abandoned_chunks_are_removed(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    for key in ("old", "new"):
        with store.chunks_of(key) as chunks:
            chunks.once(0, 1, lambda: np.zeros(1))
    then = time.time() - store.ABANDONED - 10
    os.utime(tmp_path / "partial" / "old", (then, then))
    with store.chunks_of("now"):
        pass
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["new"]


# -- where results are written -----------------------------------------------------------------


def run(*args):
    """The command line, in this process."""
    try:
        app([str(arg) for arg in args], standalone_mode=False)
    except InterpError as error:
        return str(error)
    return None


def test_links_stay_links_and_pipes_are_written_into(tmp_path):
    target, link, pipe = tmp_path / "deep" / "t.json", tmp_path / "link", tmp_path / "pipe"
    target.parent.mkdir()
    link.symlink_to(target)
    assert run("models", "--json", link) is None
    assert link.is_symlink()
    entries = json.loads(target.read_text())
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    assert run("models", "--json", pipe) is None
    assert json.loads(reader.communicate(timeout=60)[0]) == entries
    assert pipe.is_fifo()
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    noisy().save(pipe)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(reader.communicate(timeout=60)[0])
    assert noisy().load(copy).hash == noisy().hash
    assert "No space left" in str(run("models", "--json", "/dev/full"))
    assert Path("/dev/full").is_char_device()


COMMAND = f'{sys.executable} -c "from interp.cli.main import main; main()" models --json'
PRINTS = """
import sys
from pathlib import Path
from interp.cli.terminal import tried, write
path = tried(Path(sys.argv[1]))
print("a table with toy-or")
write(path, ["toy-or"])
"""
SENT = {
    "a pipe": f"{COMMAND} /dev/stdout | cat > {{seen}}",
    "a substitution": "{prints} >(cat > {json}) > {seen}; wait $!",
    "a number": "{prints} /dev/fd/3 3> {json} > {seen}",
    "a link": "ln -s /dev/stdout {link}; {prints} {link} | cat > {seen}",
    "a file": "{prints} /dev/stdout > {seen}",
    "an added file": "echo before > {seen}; {prints} /dev/stdout >> {seen}",
}


@pytest.mark.parametrize("how", SENT)
def test_what_the_shell_sends_elsewhere_is_written_in_place(how, tmp_path):
    """Pipes and redirects of a real shell: the printed text and the JSON both arrive whole."""
    seen, file, link = (tmp_path / name for name in ("seen", "json", "link"))
    (tmp_path / "prints.py").write_text(PRINTS)
    prints = f"PYTHONPATH={SOURCE.parent} {sys.executable} {tmp_path / 'prints.py'}"
    line = SENT[how].format(prints=prints, seen=seen, json=file, link=link)
    done = subprocess.run(
        ["bash", "-c", line], cwd=SOURCE.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = seen.read_text()
    assert shown.startswith("before\n") == (how == "an added file")
    assert "toy-or" in shown.partition("[\n")[0]  # the table
    sent = file.read_text() if file.exists() else shown[shown.index("[\n") :]
    assert any("toy-or" in str(entry) for entry in json.loads(sent))


def test_a_record_goes_into_a_stream_and_a_closed_one_is_refused(tmp_path):
    with (tmp_path / "r.safetensors").open("wb") as stream:
        noisy().save(f"/dev/fd/{stream.fileno()}")
    assert noisy().load(tmp_path / "r.safetensors").hash == noisy().hash
    with (tmp_path / "r.safetensors").open("rb") as stream:
        for path in (f"/dev/fd/{stream.fileno()}", "/dev/fd/9999"):
            with pytest.raises(InterpError, match="Bad file descriptor"):
                require_writable(Path(path))
            with pytest.raises(InterpError, match="Bad file descriptor"):
                noisy().save(path)


@pytest.mark.parametrize("option", ["--json", "--out"])
@pytest.mark.long
def test_a_bad_place_is_refused_before_the_work(option, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.cli.terminal.load", lambda *a: pytest.fail("it began to load"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    command = ("circuit", "find", "--model", "toy-or", "--task", "toy-or")
    places = [tmp_path / "file" / "x", "/proc/x", tmp_path / "new" / "x.json"]
    places.append(tmp_path / "link.safetensors")
    places[-1].symlink_to(tmp_path / "new" / "x.json")
    places.append(tmp_path / ("folder.safetensors" if option == "--json" else "folder"))
    for place in places:
        assert str(run(*command, option, place)).startswith("writing ")
    study = ("study", "reuse", "--model", "toy-or", "--out")
    assert "not a folder" in str(run(*study, tmp_path / "file"))
    require_writable(tmp_path / "new" / "folders" / "x.json")
    for told in (
        run(*command, option, tmp_path / "new" / "x.json"),
        run(*study, tmp_path / "new" / "report"),
        run("circuit", "export", "x.json", tmp_path / "new" / "x"),
    ):
        assert f"no folder {tmp_path / 'new'}; make it first" in told
    assert not (tmp_path / "new").exists()


def test_json_is_json(tmp_path):
    """One prompt has no standard error: no bare NaN, in the file or anywhere."""
    out = tmp_path / "out.json"
    command = ("patch", "--model", "toy-or", "--task", "toy-or", "--n", 1, "--json", out)
    assert run(*command) is None
    told = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert "NaN" in json.dumps(told["stderr"])
    values = {"a": [np.nan, -np.inf, 1.5], "b": np.array([np.inf]), "c": "é"}
    assert json_text(values) == '{"a": ["NaN", "-Infinity", 1.5], "b": ["Infinity"], "c": "é"}'
    for path in SOURCE.rglob("*.py"):  # one function writes all JSON
        if path.name not in ("files.py", "records.py", "bench_peer.py"):
            assert "json.dump" not in path.read_text(), path


# -- a cache that cannot be written, and too little memory -------------------------------------


def unwritable(monkeypatch, tmp_path, kind):
    """A cache below a file, or in a place where nothing can be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "file" if kind == "file" else "/proc/cache"))


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_results_without_a_cache_come_with_one_warning(kind, model, monkeypatch, tmp_path):
    task = random_task()
    right = activation_patching(model, task, cache=False).effects
    unwritable(monkeypatch, tmp_path, kind)
    calls = {
        "sweep": lambda: activation_patching(model, task),
        "hooks": lambda: activation_patching(model, task, engine="hooks", layers=[0]),
        "circuit": lambda: find_circuit(model, task, Finder(method="EAP")),
        "search": lambda: find_circuit(model, task, Finder(method="ACDC", threshold=2.0)),
        "acdc": lambda: acdc(model, task, threshold=2.0, batch=300),
        "states": lambda: run_with_cache(model, task, sites=["z"], positions="last", to_disk=True),
        "model": lambda: load_model("toy-or"),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = call()
        told = [str(one.message) for one in seen if "INTERP_CACHE" in str(one.message)]
        assert len(told) == 1, (name, told)
        if name == "sweep":
            np.testing.assert_array_equal(found.effects, right)


def test_a_disk_that_fills_up_ends_no_computation(model, monkeypatch):
    task = random_task()
    right = activation_patching(model, task, engine="hooks", cache=False).effects
    write, left = store.Chunks.once, iter(range(100))

    def full(self, number, size, compute, **options):
        if next(left) == 3:
            monkeypatch.setattr("interp.core.records.write_atomically", no_space)
        return write(self, number, size, compute, **options)

    def no_space(path, write):
        raise InterpError(f"writing {path}", "No space left on device", "free some")

    monkeypatch.setattr(store.Chunks, "once", full)
    with pytest.warns(UserWarning, match="not kept") as seen:
        found = activation_patching(model, task, engine="hooks")
    assert len(seen) == 1
    np.testing.assert_array_equal(found.effects, right)


KEPT = {
    "sweep": lambda m, t: activation_patching(m, t).effects,
    "paths": lambda m, t: path_patching(m, t, receivers=["logits"]).effects,
    "circuit": lambda m, t: find_circuit(m, t, Finder(method="EAP")).signed,
    "search": lambda m, t: find_circuit(m, t, Finder(method="ACDC", threshold=0.1)).signed,
    "states": lambda m, t: run_with_cache(m, t, sites=["z"], positions="last", to_disk=True)[
        1, "z"
    ],
    "heads": lambda m, t: head_samples(m, t)[DIRECT].samples,
}
"""Every call that reads back what it kept."""


@pytest.mark.parametrize("kind", KEPT)
def test_no_damaged_or_exchanged_file_gives_a_wrong_number(kind, toy):
    every = load_task("toy-induction", toy, n=8)
    tasks = [replace(every, pairs=some) for some in (every.pairs[:4], every.pairs[4:])]
    right, other = (np.array(KEPT[kind](toy, task)) for task in tasks)
    assert not np.array_equal(right, other)
    paths = sorted(cache_dir().rglob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    whole, others = (path.read_bytes() for path in paths)
    bits = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in (4, 60, len(whole) // 2, len(whole) - 2)
    ]
    for wrong in (others, b"", whole[:40], whole[:-1], whole + b"0", *bits):
        paths[0].write_bytes(wrong)
        np.testing.assert_array_equal(KEPT[kind](toy, tasks[0]), right)
        assert not check_cache()


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """A cache on a disk of its own without a free byte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    monkeypatch.setenv("INTERP_CACHE", str(disk))
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", KEPT)
def test_a_full_disk_changes_no_number(kind, toy, full_disk, monkeypatch):
    task = load_task("toy-induction", toy, n=4)
    with pytest.warns(UserWarning, match="No space left"):
        found = KEPT[kind](toy, task)
    assert not [path for path in full_disk.rglob("*") if path.suffix in (".safetensors", PART)]
    monkeypatch.setenv("INTERP_CACHE", str(full_disk.parent / "roomy"))
    np.testing.assert_array_equal(found, KEPT[kind](toy, task))


def test_a_study_on_a_full_disk_says_so(full_disk):
    with pytest.raises(InterpError, match="No space left"):
        Steps(directory=full_disk / "study", key=["k"])("one", lambda: {"x": 1})


def test_out_of_memory_says_what_to_do(model, monkeypatch):
    def huge(*_):
        return torch.empty(2**62, dtype=torch.uint8)

    def many(*_):
        return np.ones(2**50)

    for need in (huge, many):
        with pytest.raises(InterpError, match="budget_gb") as found:
            says_too_little(need)()
        assert "out of memory" in found.value.found
    monkeypatch.setattr("interp.engine.sweep.StoredPrompts.patched", huge)
    with pytest.raises(InterpError, match="activation_patching: out of memory"):
        activation_patching(model, random_task(), cache=False)

    @says_too_little
    def other():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        other()


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.cli.terminal.load", interrupted)
    with pytest.raises(SystemExit) as ended:
        app(["patch", "--model", "toy-or", "--task", "toy-or"])
    assert ended.value.code == 130
    assert "run the command again: parts that it has stored are not computed again" in " ".join(
        capsys.readouterr().err.split()
    )
    assert issubclass(type(noisy()), Record)
