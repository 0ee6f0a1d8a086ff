"""Named positions: the mark of a token leads back to it."""

from interp.core.positions import mark_of, resolve


def test_a_mark_leads_back_to_its_token(smollm) -> None:
    text = "A cat, a cat and \u65e5\u672c \U0001f600 a"
    prompt = smollm.tokenize(text)
    for index in range(len(prompt.tokens)):
        mark = mark_of(prompt, index)
        assert resolve("it", prompt, {"it": mark}, "a pair") == index
    assert mark_of(prompt, 4) == (" cat", 1)
    ids = smollm.tokenize(prompt.tokens)
    assert mark_of(ids, 4) == 4
