"""Patchscopes against a loop of hooked runs; a state put back changes nothing."""

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.probing.patchscopes import patchscope
from interp.runs.capture import run_with_cache
from interp.runs.kinds import patch
from tests.words import word_model

SOURCE, TARGET = "wba wbb wbc", "waa wab wac wad"


@pytest.fixture(scope="module")
def words():
    return word_model()


def test_equals_a_loop(words):
    """Every token from a whole run of the text so far, with the state put in by a plain hook."""
    found = patchscope(
        words, SOURCE, TARGET, layers=[0, 1], into=2, position=1, at=2, max_new_tokens=4,
        others=["wca wcb"],
    )  # fmt: skip
    assert found.layers == ((0, 2), (1, 2))
    assert found.token == words.tokenize(SOURCE).strings[1]
    for row, (source, place) in (("source", (SOURCE, 1)), ("another source", ("wca wcb", -1))):
        for i, (layer, _) in enumerate(found.layers):
            seen = run_with_cache(words, [source], sites="resid_post", layers=[layer])
            state = seen[layer, "resid_post"][0, place]
            tokens = list(words.tokenize(TARGET).tokens)
            block = words.hf_model.model.layers[2]

            def put(module, args, out, state=state):
                whole = (out[0] if isinstance(out, tuple) else out).clone()
                whole[:, 2] = state
                return (whole, *out[1:]) if isinstance(out, tuple) else whole

            for _ in range(4):
                handle = block.register_forward_hook(put)
                logits = words.hf_model(torch.tensor([tokens])).logits[0, -1]
                handle.remove()
                tokens.append(int(logits.argmax()))
            new = tokens[len(words.tokenize(TARGET).tokens) :]
            assert found.texts[row][i] == "".join(words.strings(new))


def test_its_own_state_put_back_changes_nothing(words):
    found = patchscope(words, TARGET, TARGET, layers=[0, 1, 2], at="last", max_new_tokens=5)
    assert found.texts["source"] == (found.plain,) * 3
    assert found.plain == interp.generate(words, [TARGET], 5)[0].text


def test_the_last_token_alone_equals_a_patch(words):
    found = patchscope(words, SOURCE, TARGET, layers=1, max_new_tokens=1)
    change = patch(words, "L1.resid_post", "waa wba wbb wbc")  # its last token is number 3
    other = patchscope(words, "waa wba wbb wbc", TARGET, layers=1, max_new_tokens=1)
    with interp.intervene(words, [change.at("last")]):
        slow = interp.generate(words, [TARGET], 1)[0].text
    assert other.texts["source"][0] == slow
    assert len(found.texts["random state"]) == 1


def test_frames_and_mentions(words):
    found = patchscope(words, SOURCE, TARGET, layers=[0, 2], max_new_tokens=3)
    table = found.to_dataframe()
    assert [*table] == ["from layer", "into layer", "source", "random state"]
    text = found.texts["source"][1].strip()
    assert found.mentions(text.upper())[1]
    assert repr(found).startswith("Patchscopes(")
    with pytest.raises(InterpError, match="state put in"):
        found.mentions("waa", of="another source")


def test_bad_input_is_refused(words):
    with pytest.raises(InterpError, match="2 layers into 3"):
        patchscope(words, SOURCE, TARGET, layers=[0, 1], into=[0, 1, 2])
    with pytest.raises(InterpError, match=r"layer \[3\]"):
        patchscope(words, SOURCE, TARGET, layers=3)
    with pytest.raises(InterpError, match="position 9 of the source"):
        patchscope(words, SOURCE, TARGET, layers=0, position=9)
    with pytest.raises(InterpError, match="position 9 of the target"):
        patchscope(words, SOURCE, TARGET, layers=0, at=9)
    with pytest.raises(InterpError, match="new tokens"):
        patchscope(words, SOURCE, TARGET, layers=0, max_new_tokens=0)
