"""Tasks from data sets at one commit, read from a fake local hub cache without any network."""

import json

import huggingface_hub.constants
import pytest

import interp
from interp.core.errors import InterpError
from interp.tasks.registry import load_task

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {"clean": "Up and", "corrupted": "In and", "answers": " down", "wrong": " out"},
    {"clean": "Day and", "corrupted": "Salt and", "answers": " night", "wrong": " pepper"},
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of a hub that holds one data set at one commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--some--pairs" / "snapshots" / COMMIT / "data"
    folder.mkdir(parents=True)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "pairs.csv").write_text("clean,answers\nUp and, down\n")
    (folder / "pairs.txt").write_text("Up and down")
    return f"hf://some/pairs@{COMMIT}"


def test_a_file_of_a_data_set_is_a_task(hub, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    task = load_task(f"{hub}/data/pairs.jsonl")
    assert task.pairs == interp.Task.from_jsonl(path).pairs
    assert task.hash == interp.Task.from_jsonl(path).hash
    assert task.source == f"interp.load_task('{hub}/data/pairs.jsonl', n=2)"
    assert eval(task.source, {"interp": interp}) == task
    assert load_task(f"{hub}/data/pairs.jsonl", n=1).pairs == task.pairs[:1]
    assert load_task(f"{hub}/data/pairs.csv").metric.name == "log_odds"


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("hf://some/pairs@main/data/pairs.jsonl", "all 40 digits"),
        (f"hf://some/pairs@{COMMIT[:8]}/data/pairs.jsonl", "all 40 digits"),
        ("hf://some/pairs/data/pairs.jsonl", "hf://owner/name@commit/file"),
        (f"hf://some/pairs@{COMMIT}/data/pairs.txt", "a .jsonl or .csv file"),
        (f"hf://some/pairs@{COMMIT}/data/others.jsonl", "HF_HUB_OFFLINE is set, and no copy"),
        (f"hf://some/others@{COMMIT}/data/pairs.jsonl", "HF_HUB_OFFLINE is set, and no copy"),
    ],
)
def test_what_is_not_there_is_refused(hub, address, match):
    with pytest.raises(InterpError, match=match):
        load_task(address)


def test_a_file_has_no_options(hub):
    with pytest.raises(InterpError, match="option"):
        load_task(f"{hub}/data/pairs.jsonl", corruption="abc")
