"""Sentences of the probing tasks: labels by a slow parser, nothing shared, no cue in the words."""

import re

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.probing import sentence_tasks as grammar
from interp.probing.sentence_tasks import TASKS, probe_sentences

BEFORE = {pair.split(":")[1] for pair in grammar.VERBS}
NOW = {pair.split(":")[0] + "s" for pair in grammar.VERBS}
SINGULAR = {*grammar.NOUNS, *grammar.TARGETS}
PLURAL = {noun + "s" for noun in SINGULAR}
PARTS = [
    (BEFORE, "v"), (NOW, "w"), (SINGULAR, "n"), (PLURAL, "m"), ({*grammar.ADJECTIVES}, "a"),
    ({*sum(grammar.DETERMINERS, ())}, "d"), ({*grammar.PREPOSITIONS}, "p"), ({"that"}, "t"),
    ({"and"}, "c"), ({"it", "they"}, "i"),
]  # fmt: skip
NOUN = "da?[nm]"
CLAUSE = rf"(?:p{NOUN})?{NOUN}(?:p{NOUN})?v{NOUN}(?:p{NOUN})?"


@pytest.fixture(scope="module")
def sentences():
    return {task: probe_sentences(task, n=400).sentences for task in TASKS}


def parsed(words):
    """One letter a word: which part of speech each is, by a list of the words."""
    return "".join(next(letter for known, letter in PARTS if word in known) for word in words)


def depth(code):
    """The longest chain of relative clauses in a sentence of letters."""
    chain = rf"(?:t[vw]{NOUN})*"
    found = re.fullmatch(
        rf"(?:p{NOUN}({chain}))?{NOUN}({chain})[vw]{NOUN}({chain})(?:p{NOUN}({chain}))?", code
    )
    return max(len(re.findall("t", part or "")) for part in found.groups())


def label(task, words):
    """The label of a sentence, read from its words alone."""
    if task == "sentence_length":
        return next(b for b in grammar.BINS if int(b[:2]) <= len(words) <= int(b[3:]))
    if task == "word_content":
        (word,) = {*words} & {*grammar.TARGETS}
        return word
    opened = words
    if task == "coordination_inversion":
        opened = words[2:]
        assert tuple(words[:2]) in {tuple(x.split()) for x in sum(grammar.OPENERS, ())}
    code = parsed(opened)
    if task == "tree_depth":
        return str(depth(code))
    if task == "tense":
        main = re.sub(rf"t[vw]{NOUN}", "", code)
        assert len(re.findall("[vw]", code)) == 2
        return "past" if "v" in main else "present"
    if task in ("subject_number", "object_number"):
        found = re.fullmatch(rf"(?:p{NOUN})?da?([nm])(?:p{NOUN})?vda?([nm])(?:p{NOUN})?", code)
        letter = found[1] if task == "subject_number" else found[2]
        return "plural" if letter == "m" else "singular"
    if task == "bigram_shift":
        return "intact" if re.fullmatch(CLAUSE, code) else "shifted"
    assert re.fullmatch(rf"{NOUN}v{NOUN}civ{NOUN}|iv{NOUN}c{NOUN}v{NOUN}", code)
    pronoun = "they" if re.sub("iv.*?(c|$)", "", code).find("m") in (1, 2) else "it"
    assert pronoun in words
    return "inverted" if code.startswith("i") else "intact"


@pytest.mark.parametrize("task", TASKS)
def test_every_label_is_what_a_parser_reads(task, sentences):
    for one in sentences[task]:
        assert re.fullmatch(r"[a-z ]+\.", one.text)
        assert label(task, one.text[:-1].split()) == one.label, one.text


@pytest.mark.parametrize("task", TASKS)
def test_test_sentences_share_no_content_word_and_no_template(task, sentences):
    known = {*grammar.PREPOSITIONS, "that", "and", "it", "they", *grammar.TARGETS}
    sides = {side: [x for x in sentences[task] if x.test == side] for side in (False, True)}
    words = [{w.rstrip(".") for x in some for w in x.text.split()} for some in sides.values()]
    stems = [{w.removesuffix("s") for w in some} for some in words]
    forms = {past: pair.split(":")[0] for pair in grammar.VERBS for past in [pair.split(":")[1]]}
    bases = [{forms.get(w, w) for w in some} for some in stems]
    shared = bases[0] & bases[1]
    openers = {w for x in sum(grammar.OPENERS, ()) for w in x.split()}
    assert shared <= known | openers
    assert not {x.template for x in sides[True]} & {x.template for x in sides[False]}
    assert len(sides[True]) == 120
    assert len({x.text for x in sentences[task]}) == 400
    if task == "word_content":
        assert shared >= {*grammar.TARGETS}
    else:
        assert not shared & {*grammar.TARGETS}
    for side in sides.values():
        counts = np.unique([x.label for x in side], return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


def balance(task, sentences, count):
    """The mean of a count of a sentence, for each label."""
    found = {}
    for one in sentences[task]:
        found.setdefault(one.label, []).append(count(one.text[:-1].split()))
    return [np.mean(values) for values in found.values()]


def test_the_words_do_not_tell_structure(sentences):
    every = balance("tree_depth", sentences, lambda w: w.count("that"))
    assert every == [3, 3, 3]
    lengths = balance("tree_depth", sentences, len)
    assert max(lengths) - min(lengths) < 0.5
    assert balance("tense", sentences, lambda w: len(NOW & {*w})) == [1, 1]
    assert balance("tense", sentences, lambda w: len(BEFORE & {*w})) == [1, 1]
    for task in ("subject_number", "object_number"):
        plurals = balance(task, sentences, lambda w: len(PLURAL & {*w}))
        assert abs(plurals[0] - plurals[1]) < 0.15
        assert 1.3 < plurals[0] < 1.7
    for task in ("bigram_shift", "coordination_inversion"):
        lengths = balance(task, sentences, len)
        assert abs(lengths[0] - lengths[1]) < 0.25


@pytest.mark.parametrize("task", ["bigram_shift", "coordination_inversion"])
def test_first_and_last_words_do_not_tell_the_order(task, sentences):
    first = balance(task, sentences, lambda w: w[0] in ("the", "our", "in", "at", *"pn"))
    assert abs(first[0] - first[1]) < 0.15
    for one in sentences[task]:
        words = parsed(one.text[:-1].split()[2 * (task == "coordination_inversion") :])
        assert words[-1] in "nm"
        assert words[0] in ("di" if task == "coordination_inversion" else "dp")


def test_sentences_are_made_again_and_differ_by_seed():
    one, again, other = (probe_sentences("tense", n=100, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.sentences != other.sentences
    assert len(one.to_dataframe()) == 100
    assert "30 held out, 2 classes" in repr(one)
    assert sum(x.test for x in probe_sentences("tense", n=100, test_share=0.5).sentences) == 50


def test_bad_input_is_refused():
    for given in (
        {"task": "syntax"},
        {"task": 5},
        {"task": "tense", "n": 0},
        {"task": "tense", "n": 20},
        {"task": "tense", "n": 2.5},
        {"task": "tense", "test_share": 0.0},
        {"task": "tense", "test_share": 1.0},
        {"task": "tense", "test_share": float("nan")},
        {"task": "tense", "test_share": "half"},
        {"task": "tense", "seed": -1},
        {"task": "word_content", "n": 150},
    ):
        with pytest.raises(InterpError):
            pytest.fail(f"{given} was accepted: {probe_sentences(**given)}")
