"""Nothing harmful is in the repository: every tracked file is read, every data file has an origin.

Reports, weights' headers, images' text chunks, tests and code are scanned alike. A word is let
through only where it is listed here, file by file.
"""

import csv
import json
import re
import subprocess
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from interp.tasks.taboo import PROVENANCE
from tests import ROOT
from tests.tasks.test_taboo import HARM, HARMLESS

CODE = {
    ".py", ".pyi", ".md", ".toml", ".typed", ".svg", ".html", ".png", "", ".yml", ".yaml", ".cff",
    ".css", ".j2", ".webp",
}  # fmt: skip
"""Suffixes of what is written or drawn here; anything else is data and needs an origin."""

ORIGINS = {
    "interp/data/*.json": "in-house, benign",
    "interp/data/studies/*": "measured here: the steps of the studies that ship",
    "interp/models/programs/*": "compiled here from public programs",
    "interp/weights/*/*": "trained here on texts made here",
    "experiments/results/*.json": "measured here",
    "experiments/results/*.txt": "measured here",
    "experiments/notebooks/*.ipynb": "run here",
    "tests/data/replies.jsonl": "written here, of harmless requests",
    "tests/data/capability_replies.jsonl": "the default model's, to shipped requests",
    "tests/data/study_seconds.json": "measured here: seconds of the steps of three studies",
    "tests/data/eap_ig_circuit.*": "random scores, written by hannamw/EAP-IG",
    "tests/data/refusal_scores.csv": "published scores, Apache-2.0, numbers only",
    "constraints.txt": "versions of packages",
}
"""Where each data file is from; a new one has to be added, and so be looked at."""

KITCHEN = Counter({HARM[5]: 1})
"""The one word of the list in a harmless sense, see HARMLESS."""

ALLOWED = {
    "interp/data/passages.json": Counter({HARM[5]: 2}),  # a dull one slips
    "interp/data/taboo.json": KITCHEN,
    "interp/data/studies/verification-countdown-smollm2/glu.json": Counter(
        {HARM[20]: 1}
    ),  # she has a tale
    "interp/data/word_pairs.json": KITCHEN,  # its plural is irregular
    "interp/weights/refusal-tiny/tokenizer.json": KITCHEN,
    "tests/tasks/test_taboo.py": KITCHEN,
    "tests/data/replies.jsonl": Counter({HARM[25]: 2}),  # how long a good one is
    "docs/guides/many-processes.md": Counter({HARM[33]: 3}),  # begins the name of a scheduler
}
"""Words of the list that a file may hold, and how often."""

WORD = re.compile(rf"\b(?:{'|'.join(map(re.escape, HARM))})", re.IGNORECASE)
EMBEDDED = re.compile(r"(?:data:[\w/+.;-]+;base64,|\"image/png\": \")[A-Za-z0-9+/=]+")
LIST = re.compile(r'HARM = """.*?"""\.split\(\)', re.DOTALL)
"""The list itself, in the one file that defines it."""


def tracked():
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if run.returncode:
        pytest.skip("not a checkout")
    return [name for name in run.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def readable(path):
    """All text in a file: the whole, or the header of weights and the text chunks of an image."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        return content[8 : 8 + size].decode()
    if path.suffix == ".png":
        assert b"zTXt" not in content, path  # compressed, could not be read
        assert b"iTXt" not in content, path
        return b" ".join(re.findall(rb"tEXt([\x20-\x7e\x00]*)", content)).decode()
    if path.suffix == ".webp":
        place, kinds = 12, set()
        while place < len(content):
            kinds.add(content[place : place + 4])
            place += 8 + (int.from_bytes(content[place + 4 : place + 8], "little") + 1) // 2 * 2
        assert kinds <= {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}, path  # no text among them
        return ""
    if path.suffix == ".pt":
        return b" ".join(re.findall(rb"[\x20-\x7e]{4,}", content)).decode()
    text = EMBEDDED.sub("", content.decode())
    return LIST.sub("", text) if path.name == "test_taboo.py" else text


def hits(path):
    return Counter(match.group().lower() for match in WORD.finditer(readable(path)))


def test_no_tracked_file_has_a_word_of_harm():
    found = {}
    for name in tracked():
        if more := hits(ROOT / name) - ALLOWED.get(name, Counter()):
            found[name] = dict(more)
    assert found == {}


def test_every_data_file_has_an_origin():
    data = [name for name in tracked() if Path(name).suffix not in CODE]
    assert len(data) > 20
    assert [x for x in data if not any(fnmatch(x, pattern) for pattern in ORIGINS)] == []
    for name in fnmatched([x for x in data if "/studies/" not in x], "interp/data/*"):
        assert json.loads((ROOT / name).read_text())["provenance"] == PROVENANCE, name
    for name in fnmatched(data, "interp/models/programs/*.json"):
        assert json.loads((ROOT / name).read_text())["made_by"], name
    for name in fnmatched(data, "interp/weights/*/organism.json"):
        assert json.loads((ROOT / name).read_text())["description"], name
    # The published tables hold model names and numbers, and their licence.
    lines = (ROOT / "tests" / "data" / "refusal_scores.csv").read_text().splitlines()
    notice = " ".join(line for line in lines if line.startswith("#"))
    assert all(word in notice for word in ("Apache License, Version 2.0", "Copyright", "Changed"))
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        model = row.pop("model")
        assert re.fullmatch(r"[a-z0-9.-]+", model)
        assert len([float(value) for value in row.values()]) == 5


def fnmatched(names, pattern):
    found = [name for name in names if fnmatch(name, pattern)]
    assert found, pattern
    return found


def test_words_let_through_are_still_there():
    assert set(KITCHEN) == set(WORD.findall(" ".join(HARMLESS)))
    assert {name: hits(ROOT / name) for name in ALLOWED} == ALLOWED


def test_the_scan_finds_what_is_planted(tmp_path):
    word = HARM[5].capitalize() + "s"
    text = tmp_path / "report.html"
    text.write_text(f"<p>Two {word}.</p><img src='data:image/png;base64,AA/{word}'>")
    assert hits(text) == Counter({HARM[5]: 1})  # not in what an image's bytes spell
    weights = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, weights, {"example": f"a {word}"})
    assert hits(weights) == Counter({HARM[5]: 1})
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG....tEXtTitle\0" + word.encode())
    assert hits(image) == Counter({HARM[5]: 1})
    own = tmp_path / "test_taboo.py"
    own.write_text(f'HARM = """\n{word}\n""".split()\nx = "{word}"')
    assert hits(own) == Counter({HARM[5]: 1})
