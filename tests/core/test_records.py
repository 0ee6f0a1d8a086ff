"""What is read back is what was written, under the key that was asked for, or it is refused."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from interp.circuits.circuit import Circuit
from interp.circuits.discovery.acdc import acdc
from interp.circuits.discovery.find import Finder, find_circuit, findings_path, kept_findings
from interp.circuits.discovery.redundancy import redundancy
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.trials import trials
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.records import read_sealed, write_sealed
from interp.models.loading import wrap
from interp.patching import path as paths
from interp.patching import spec
from interp.patching.activation import activation_patching
from interp.patching.path import path_patching
from interp.probing.probes import Probes
from interp.probing.training import train_probes
from interp.results import store
from interp.results.direction import Direction, load_directions, save_directions
from interp.results.scores import Scores
from interp.runs.capture import run_with_cache
from interp.studies.steps import Steps, read_results
from tests.families import random_task, tiny

PARTS = ["L0H0", "L0H1", "L1H0", "L2.mlp_out"]


@pytest.fixture(autouse=True)
def _any_gap(monkeypatch):
    for module in (spec, paths, scoring, trials):
        monkeypatch.setattr(module, "check_gap", lambda clean, corrupted: None)


def flip(path, other, place):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(bytes(data))


FAULTS = {
    **{f"bit at {at}": (lambda p, o, at=at: flip(p, o, at)) for at in (0, 0.01, 0.1, 0.5, 0.9, 1)},
    "cut short": lambda path, other: path.write_bytes(path.read_bytes()[:-3]),
    "cut to nothing": lambda path, other: path.write_bytes(b""),
    "another's": lambda path, other: shutil.copy(other, path),
    "a word": lambda path, other: path.write_text("null"),
}


# -- kinds of files in the cache: (make it afresh) -> numbers, and its files ---------------------


def _stop_after(n):
    asked = iter(range(10**6))
    return lambda: next(asked) >= n


def sweep_result(model, task):
    return activation_patching(model, task).effects, sorted(cache_dir().glob("results/*"))


def stopped(run, pattern="partial/*/chunk-*"):
    """What a stopped run left; then it goes on."""
    if not list(cache_dir().glob(pattern)):
        with pytest.raises(InterpError, match="stopped"):
            run(_stop_after(3))
        return None, sorted(cache_dir().glob(pattern))
    return run(lambda: False), []


def sweep_chunks(model, task):
    def run(cancelled):
        return activation_patching(model, task, engine="hooks", cancelled=cancelled).effects

    return stopped(run)


def path_chunks(model, task):
    def run(cancelled):
        stop = [cancelled()]
        tell = {"progress": lambda done, n: stop.append(cancelled()), "cancelled": lambda: stop[-1]}
        return path_patching(model, task, receivers=["L1H0.q"], **tell).effects

    return stopped(run)


def redundancy_chunks(model, task):
    def run(cancelled):
        def progress(done, total):
            if cancelled():
                raise InterpError("redundancy", "stopped", "run it again")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("interp.circuits.discovery.redundancy.BATCH", 3)
            return redundancy(model, task, PARTS, progress=progress).together

    return stopped(run)


def acdc_chunks(model, task):
    def run(cancelled):
        def progress(done, total):
            if cancelled():
                raise InterpError("ACDC", "stopped", "run it again")

        return acdc(model, task, threshold=0.01, batch=150, progress=progress).effects

    return stopped(run)


def activations(model, task):
    found = run_with_cache(model, task, sites=["z"], positions="last", to_disk=True)
    return found["L1.z"].clone().numpy(), sorted(cache_dir().glob("activations/*"))


def circuit(model, task):
    found = find_circuit(model, task, Finder(method="EAP"))
    return found.signed, sorted(cache_dir().glob("circuits/*"))


def step(model, task):
    folder = cache_dir() / "study"
    made = Steps(directory=folder, key=[model.hash, task.hash])
    found = made("effects", lambda: {"x": float(task.pairs[0].answers[0]), "nan": float("nan")})
    read = read_results(folder, made.of)[0]
    assert str(read["effects"]) == str(found)
    return np.array([found["x"], found["nan"]]), [folder / "effects.json"]


KINDS = (
    sweep_result, sweep_chunks, path_chunks, redundancy_chunks, acdc_chunks, activations, circuit,
    step,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", "/nonexistent/interp")
        return wrap(tiny("llama"), name="tiny", check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_file_of_the_cache_is_computed_again(kind, model, monkeypatch, tmp_path):
    """A flipped bit, half a file, another task's file under this one's name: the same numbers."""
    tasks = [random_task(seed=seed) for seed in (0, 1)]
    right, kept = [], []
    for number, task in enumerate(tasks):
        monkeypatch.setenv("INTERP_CACHE", str(tmp_path / f"cache{number}"))
        found, paths = kind(model, task)
        kept.append([(path, path.read_bytes()) for path in paths])
        right.append(kind(model, task)[0] if found is None else found)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache0"))
    assert kept[0]
    faults = [*FAULTS.values()]
    if kind in (acdc_chunks, redundancy_chunks):  # slow to make again
        faults = faults[3::4]
    if len(kept[0]) > 1:  # one chunk under another's number
        faults.append(lambda path, other: shutil.copy(kept[0][0][0], path))
    for fault in faults:
        for path, data in kept[0]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        other = tmp_path / "other"
        other.write_bytes(kept[1][-1][1])
        fault(kept[0][-1][0], other)
        found, _ = kind(model, tasks[0])
        np.testing.assert_array_equal(found, right[0])


# -- files that a user loads -----------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A kind of file: how one is written, and how it is read."""

    save: object
    load: object


def _probes(path, seed):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, 60, 4, generator=rng)
    train_probes(rows, rows[0, :, 0] > 0, shuffles=1).save(path)


def _directions(path, seed):
    vector = torch.full((4,), float(seed), dtype=torch.float64)
    facts = {"kind": "task", "site": "resid_pre", "layer": 0, "position": -1, "sign": 1}
    save_directions(path, {"a": Direction(vector=vector, n=(1, 1), model_hash="m", **facts)})


def _scores(path, seed):
    from tests.results.test_scores import noisy

    noisy(seed=seed).save(path)


def _circuit(path, seed):
    from tests.circuits.test_circuit import GROUPED, drawn

    drawn(GROUPED, name=f"number {seed}").save(path)


USERS = {
    Probes: Loaded(_probes, Probes.load),
    Direction: Loaded(_directions, load_directions),
    Scores: Loaded(_scores, Scores.load),
    Circuit: Loaded(_circuit, Circuit.load),
}


@pytest.mark.parametrize("kind", USERS)
def test_a_faulty_file_is_refused(kind, tmp_path):
    path, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    USERS[kind].save(path, 1)
    whole = path.read_bytes()
    USERS[kind].load(path)
    write_sealed(other, "chunk", 1, {}, {"values": np.zeros(3)})
    for name, fault in FAULTS.items():
        path.write_bytes(whole)
        fault(path, other)
        with pytest.raises(InterpError, match="loading"):
            USERS[kind].load(path)
        assert path.exists(), name
    path.unlink()
    with pytest.raises(InterpError, match="no such file"):
        USERS[kind].load(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_names_come_back_in_their_order(suffix, tmp_path):
    facts = {"second": {"10": 1, "9": 2}, "first": [{"z": 1, "a": 2}]}
    path = write_sealed(tmp_path / f"r{suffix}", "thing", 1, facts, {})
    assert json.dumps(read_sealed(path, "thing", 1)[0]) == json.dumps(facts)


def test_no_flipped_bit_is_read(tmp_path):
    """In the head of a small file and in its numbers: it is refused, or the same record."""
    facts = {"words": ["a", "ü"], "rate": 0.1, "none": float("nan"), "far": float("-inf")}
    arrays = {"x": np.arange(3.0), "on": np.array([True, False]), "one": np.array(2)}
    for suffix, some in ((".safetensors", arrays), (".json", {})):
        path = write_sealed(tmp_path / f"r{suffix}", "thing", 3, facts, some, key="k")
        whole = path.read_bytes()
        same = repr(read_sealed(path, "thing", 3, key="k"))
        for place in range(0, 8 * len(whole), 13):  # every bit of a byte has its turn
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(bytes(data))
            with suppress(InterpError):
                assert repr(read_sealed(path, "thing", 3, key="k")) == same
        path.write_bytes(whole)
        for asked in (("other", 3, "k"), ("thing", 4, "k"), ("thing", 3, "l")):
            with pytest.raises(InterpError, match="its (kind|format|key) is"):
                read_sealed(path, asked[0], asked[1], key=asked[2])
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["facts"]["rate"] == 0.1


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_whole_numbers_as_keys_are_read_back_as_texts(suffix, tmp_path):
    facts = {"by size": {10: "ten", 9: [{100: float("nan"), 20: 1}]}, "on": {True: 1}}
    path = write_sealed(tmp_path / f"r{suffix}", "thing", 1, facts)
    read = read_sealed(path, "thing", 1)[0]
    right = {"by size": {"10": "ten", "9": [{"100": float("nan"), "20": 1}]}, "on": {"true": 1}}
    assert repr(read["by size"]["9"][0]["100"]) == "nan"
    assert json.dumps(read, sort_keys=True) == json.dumps(right, sort_keys=True)


def test_a_result_under_another_key_is_not_served(model, tmp_path):
    """A noise result, renamed to the key of the denoise one."""
    task = random_task()
    noise = activation_patching(model, task, direction="noise")
    (path,) = cache_dir().glob("results/*")
    right = activation_patching(model, task).effects
    (other,) = set(cache_dir().glob("results/*")) - {path}
    path.replace(other)
    assert store.stored(other.stem) is None
    found = activation_patching(model, task)
    assert not np.array_equal(found.effects, noise.effects)
    np.testing.assert_array_equal(found.effects, right)
    scored = find_circuit(model, task, Finder(method="EAP"))
    key = Finder(method="EAP").key(model, task)
    scored.save(findings_path(key), key="another")
    assert kept_findings(key) is None
