"""The words of the glossary: each page links to them once, and the page of words has them all."""

import re

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from interp.ui.shared import glossary
from tests import ROOT
from tests.pages import opened

LINK = re.compile(r"\[([^\]]+)\]\(glossary#([\w-]+)\)")


def test_the_words_are_those_in_bold_and_the_file_is_the_documentation_s() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text() == glossary.FILE.read_text()
    words = glossary.words()
    assert words["clean"] == words["patch"] == "Patching"
    assert (words["edge"], words["null"], words["site"]) == ("Circuits", "Statistics", "Sites")
    assert "find" not in words  # of "find, select, test rows"


def test_a_word_is_linked_once_whole_and_not_inside_a_link() -> None:
    text = "Interventions: edges, an edge, the OV, [a null](x) and nullify, `gap`, *task*, the gap."
    found = glossary.linked(text)
    assert found == (
        "Interventions: [edges](glossary#circuits), an edge, the [OV](glossary#heads), "
        "[a null](x) and nullify, `gap`, *task*, the [gap](glossary#patching)."
    )
    assert glossary.linked("Nothing of the kind.") == "Nothing of the kind."


@pytest.mark.parametrize("page", ["circuits", "patching", "refusal/trajectories"])
def test_a_page_links_each_word_once_to_a_section_that_is_there(page: str) -> None:
    text = opened(f"interp/ui/views/{page}.py").markdown[0].value
    links = LINK.findall(text)
    assert links
    assert len({word.lower().rstrip("s") for word, _ in links}) == len(links)
    assert {place for _, place in links} <= {glossary.anchor(x) for x in glossary.sections()}


def test_the_page_of_words_shows_every_section() -> None:
    at = opened("interp/ui/views/glossary.py")
    assert [one.value for one in at.header] == list(glossary.sections())
    assert [one.value for one in at.markdown] == list(glossary.sections().values())
