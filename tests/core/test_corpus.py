"""Texts from lists and files."""

import pytest

from interp.core.corpus import shipped_passages, texts_in
from interp.core.errors import InterpError


def test_the_passages_are_different_and_repeat_words():
    passages = shipped_passages()
    assert len(passages) == len(set(passages)) == 96
    repeating = [
        text
        for text in passages
        if len(words := [w for w in text.split() if len(w) > 3]) > len({*words})
    ]
    assert len(repeating) > 48


def test_a_list_an_iterator_and_one_text():
    assert [*texts_in(["a b", (1, 2)])] == ["a b", (1, 2)]
    assert [*texts_in(iter(["a", "b"]))] == ["a", "b"]
    assert [*texts_in("one text")] == ["one text"]


def test_files(tmp_path):
    plain, jsonl = tmp_path / "some.txt", tmp_path / "some.jsonl"
    plain.write_text("first line \r\n\n  second\u2028line\n", encoding="utf-8-sig")
    jsonl.write_text('{"text": "one\\nmore"}\n\n{"text": "two", "id": 3}\n')
    assert [*texts_in(plain)] == ["first line ", "  second\u2028line"]
    assert [*texts_in(jsonl)] == ["one\nmore", "two"]


def test_a_file_is_read_line_by_line(tmp_path):
    """What comes after the lines that are asked for is not read: it is not even UTF-8."""
    path = tmp_path / "long.txt"
    path.write_bytes(b"good line\n" * 100_000 + b"\xff\n")
    texts = texts_in(path)
    assert [next(texts) for _ in range(3)] == ["good line"] * 3
    with pytest.raises(InterpError, match="UTF-8"):
        list(texts)


@pytest.mark.parametrize("line", ["[1]", "{}", '{"text": 3}', '{"text": ""}', "no json"])
def test_a_line_without_a_text_is_refused(tmp_path, line):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(InterpError, match="line 2"):
        list(texts_in(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InterpError, match="no such file"):
        list(texts_in(tmp_path / "none.txt"))
