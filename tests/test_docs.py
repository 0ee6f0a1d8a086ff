"""The README and the documentation hold: their Python, their commands, their links."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest

import interp
from interp.models import loading
from tests import ROOT

NUMBER = r"[-+]?\d+\.\d+"
FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(FILES)}


def blocks(page: str) -> list[tuple[str, str]]:
    """The Python of a page, each block with the text that the page shows below it."""
    return re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", PAGES[page], re.S)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of the pages, without its comment, and the page it is on."""
    for page, text in PAGES.items():
        fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
        indented = "\n".join(re.findall(r"^    ((?:interp|make|python) .*)$", text, re.M))
        for line in f"{fenced}\n{indented}".splitlines():
            if words := line.partition("#")[0].split():
                yield page, words


@pytest.fixture(scope="module")
def load_model(smollm):
    """`load_model`, but each model that ships is loaded once."""
    real = loading.load_model
    once = cache(lambda name: smollm if name == smollm.name else real(name))
    return lambda name, **options: real(name, **options) if options else once(name)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_prints_what_the_page_shows(page, load_model, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code, shown in blocks(page):
        exec(compile(code, page, "exec"), names)
        printed = capsys.readouterr().out
        assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", shown)
        pairs = zip(re.findall(NUMBER, printed), re.findall(NUMBER, shown), strict=True)
        for found, expected in pairs:
            assert float(found) == pytest.approx(float(expected), abs=0.02)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 120
    (example,) = blocks("README.md")
    assert len([line for line in example[0].splitlines() if line.strip()]) <= 12


def said_of(words: list[str]) -> str:
    """What the help of an `interp` or `python -m benchmarks` command says."""
    rest = words[3:] if words[0] == "python" else words[1:]
    named = rest[: 2 if rest[0] in ("circuit", "heads", "weights", "study", "runs", "cache") else 1]
    return _help(words[0], *(word for word in named if not word.startswith("-")))


@cache
def _help(program: str, *command: str) -> str:
    from typer.testing import CliRunner

    from benchmarks.main import bench_app
    from interp.cli.main import app

    asked = bench_app if program == "python" else app
    result = CliRunner().invoke(asked, [*command, "--help"])
    assert result.exit_code == 0, " ".join(command)
    return result.output


@pytest.mark.long
def test_every_command_exists():
    tried = 0
    for page, words in commands():
        options = [word for word in words if word.startswith("--")]
        line = f"{page}: {' '.join(words)}"
        if words[0] == "interp" or words[:3] == ["python", "-m", "benchmarks"]:
            said = said_of(words)
        elif words[0] == "python":
            module = words[1] == "-m"
            said = (ROOT / (f"{words[2].replace('.', '/')}.py" if module else words[1])).read_text()
        elif words[0] == "make":
            said, options = (ROOT / "Makefile").read_text(), [f"\n{words[1]}"]
        else:
            continue
        tried += 1
        assert all(re.search(rf"{option}(?![\w-])", said) for option in options), line
    assert tried > 30


def test_every_command_in_a_table_exists():
    for page, text in PAGES.items():
        if page.lower().endswith("changelog.md"):  # it names what is gone
            continue
        for line in re.findall(r"`(interp (?:[a-z]+ ?)+(?:--[a-z-]+)?)[^`]*`", text):
            said = said_of(words := line.split())
            options = [word for word in words if word.startswith("--")]
            assert all(re.search(rf"{option}(?![\w-])", said) for option in options), line


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_function_in_the_table_of_questions_exists(page):
    rows = [line.split("|") for line in PAGES[page].splitlines() if line.startswith("| ")]
    named = re.findall(r"`([\w.]+)`", " ".join(row[2] for row in rows))
    assert len(named) > 15
    for name in named:
        assert attrgetter(name)(interp), name


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    generated = {f"{stub.parent.name}.md" for stub in ROOT.glob("interp/*/__init__.pyi")}
    for link in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        path = (ROOT / page).parent / link
        reference = path.parent.name == "reference" and path.name in generated
        assert link.startswith("http") or reference or path.exists(), link
    folders = "interp|tests|experiments|training|benchmarks|docs"
    for named in re.findall(rf"`((?:{folders})/[\w./-]+)`", PAGES[page]):
        assert (ROOT / named).exists(), named


@pytest.mark.long
def test_the_site_builds_without_a_network(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    made = subprocess.run(
        command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "reference" / "patching" / "index.html").read_text()
    assert "The effect of every component when its activation" in page
    assert 'id="interp.patching.activation_patching"' in page
    shown = [path.read_text() for path in Path(tmp_path).glob("**/index.html")]
    asked = {link for text in shown for link in re.findall(r'src="(https?://[^"]+)"', text)}
    asked |= {link for text in shown for link in re.findall(r'<link[^>]+href="(http[^"]+)"', text)}
    assert not asked


RESULTS = ("docs/studies", "docs/results", "docs/findings")
INTERVAL = re.compile(rf"({NUMBER}) \[({NUMBER}) ?(?:,|to) ({NUMBER})\]")


def results_named(page: str) -> str:
    """The content of the result files that a page links to."""
    folder = (ROOT / page).parent
    found = {(folder / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page])}
    roots = [(ROOT / root).resolve() for root in RESULTS]
    kept = [path for path in sorted(found) if any(root in path.parents for root in roots)]
    return "\n".join(path.read_text() for path in kept if path.suffix in (".md", ".json", ".txt"))


def rounded(written: str, numbers: list[float]) -> set[int]:
    """The places at which a list of numbers holds what is written, to its decimals."""
    decimals, value = len(written.partition(".")[2]), abs(float(written))
    half = 0.5 * 10**-decimals + 1e-9
    return {i for i, x in enumerate(numbers) if abs(abs(x) - value) <= half}


def prose(page: str) -> str:
    """A page without its code, its links and the numbers of papers."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", PAGES[page], flags=re.S)
    return re.sub(r"arXiv \d+\.\d+|\((?:the paper|published)[^)]*\)", "", text)


@pytest.mark.parametrize("page", ["README.md", *(page for page in PAGES if "findings" in page)])
def test_numbers_of_a_finding_are_in_its_results(page):
    """Every interval as three numbers in a row, and every other number of two decimals or more."""
    numbers = [float(x) for x in re.findall(r"[-+]?\d+\.\d+(?:e-?\d+)?", results_named(page))]
    assert numbers, "the page links to no result"
    text, missing = prose(page), []
    if page == "README.md":
        text = text.partition("## Three findings")[2].partition("\n## ")[0]
    for written in INTERVAL.finditer(text):
        value, low, high = (rounded(x, numbers) for x in written.groups())
        if not any({i + 1, i + 2} & low and {i + 2, i + 3} & high for i in value):
            missing.append(written.group(0))
    for written in re.findall(r"(?<![\w.])[-+]?\d+\.\d\d+(?![\w.]*\d)", INTERVAL.sub("", text)):
        if not rounded(written, numbers):
            missing.append(written)
    assert not missing
