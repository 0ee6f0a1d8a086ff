"""Answers of a model about itself: planted changes, and changes of every answer alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.deltas.self_reports import ablate_reports, beyond_others, removal, self_report
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta
from interp.runs.hooks import intervene
from interp.steering.candidates import end_states, mean_difference

QUESTIONS = ("so {}", "we then {}", "now please {}", "try so {}")
CONTROLS = ("d", "e", "f", "g", "h")
TOPICS = ("c", *CONTROLS)


def planted(model, words) -> WeightDelta:
    """Questions that end in one of these words move towards "a" and away from "b"."""
    view = plain_view(model)
    head = view.get_output_embeddings().weight.detach()
    yes, no = (model.single_token(word) for word in "ab")
    change = torch.zeros_like(view.get_input_embeddings().weight)
    for word in words:
        change[model.single_token(word)] = 0.5 * (head[yes] - head[no])
    dense = {"model.embed_tokens.weight": change}
    return WeightDelta(name="planted", base=model.hash, dense=dense)


def asked(model, delta, **options):
    return self_report(model, delta, QUESTIONS, "c", CONTROLS, yes="a", no="b", **options)


def test_a_planted_report_is_found_and_one_of_all_topics_is_not(toy):
    own = asked(toy, planted(toy, "c"))
    assert own.beyond.low > 0.05
    assert own.beyond.mean == pytest.approx(own.topic.mean - own.controls.mean)
    assert own.null.share == pytest.approx(1 / len(TOPICS))
    assert own.p < 0.01
    every = asked(toy, planted(toy, TOPICS))
    assert every.topic.low > 0.05
    assert abs(every.beyond.mean) < 0.05 * every.topic.mean
    other = asked(toy, planted(toy, "d"))
    assert other.beyond.mean < 0
    assert other.null.share > 1 / len(TOPICS)
    assert own.direction.vector.norm() > 3 * every.direction.vector.norm()


def test_answers_are_those_of_one_prompt_at_a_time(toy):
    delta = planted(toy, "c")
    found = asked(toy, delta, layer=1)
    yes, no = (toy.single_token(word) for word in "ab")
    seen = {}
    for when in ("base", "changed"):
        for i, topic in enumerate(TOPICS):
            for j, question in enumerate(QUESTIONS):
                ids = toy.tokenize(question.format(topic)).tokens
                copy = plain_view(toy)
                with torch.no_grad():
                    if when == "changed":
                        with delta.applied(toy):
                            out = copy(torch.tensor([ids]), output_hidden_states=True)
                    else:
                        out = copy(torch.tensor([ids]), output_hidden_states=True)
                logits = out.logits[0, -1]
                answer = getattr(found, when)[i, j]
                assert answer == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)
                prompt = [tuple(ids)]
                if when == "base":
                    seen[i, j] = end_states(toy, prompt, site="resid_post", layers=[1])[0, 0, 0]
                else:
                    with delta.applied(toy):
                        state = end_states(toy, prompt, site="resid_post", layers=[1])[0, 0, 0]
                    seen[i, j] = (state - seen[i, j]).numpy()
                    np.testing.assert_allclose(found.states[i, j], seen[i, j], atol=1e-5)
    by_hand = np.mean(
        [seen[0, j] - np.mean([seen[i, j] for i in range(1, 6)], 0) for j in range(4)], 0
    )
    np.testing.assert_allclose(found.direction.vector, by_hand, atol=1e-5)
    assert len(found.to_dataframe()) == len(TOPICS) * len(QUESTIONS)


def test_p_and_rank_are_level_if_no_topic_is_special(toy):
    """The topic is drawn at random: p is below 0.1 in a tenth of cases, the rank uniform."""
    rng, low, ranks = np.random.default_rng(0), 0, []
    for _ in range(400):
        values = rng.standard_normal((6, 8))
        observed = abs(beyond_others(values, np.zeros(8, dtype=int)).mean())
        chosen = rng.integers(6, size=(99, 8))
        drawn = np.abs(beyond_others(values, chosen).mean(1))
        low += (1 + (drawn >= observed).sum()) / 100 <= 0.1
        each = [abs(beyond_others(values, np.full(8, i)).mean()) for i in range(6)]
        ranks.append(sum(x >= each[0] for x in each))
    assert 22 < low < 60
    assert all(40 < ranks.count(rank) < 95 for rank in range(1, 7))


def test_a_report_read_off_the_behaviour_goes_with_it(toy):
    """One planted direction makes both; a direction at right angles to it makes neither."""
    delta = planted(toy, "c")
    report = asked(toy, delta, layer=1)
    with delta.applied(toy):
        behaviour = mean_difference(toy, ["so c", "we c"], ["so d", "we d"], layer=1)
        plain = toy.last_logits(["now c", "try c", "we c"])
    yes, no = (toy.single_token(word) for word in "ab")

    def measure(model):
        logits = model.last_logits(["now c", "try c", "we c"]).double()
        return (logits[:, yes] - logits[:, no]).numpy()

    found = ablate_reports(toy, delta, report, behaviour, measure, draws=5)
    assert found.cosine.selected > 0.5
    assert found.own.mean < -0.05
    assert found.behaviour.mean < -0.05
    assert found.report.mean < -0.05
    assert len(found.to_dataframe()) == 3
    with delta.applied(toy), intervene(toy, removal(toy, report.direction.vector)):
        gone = toy.last_logits(["now c", "try c", "we c"])
    apart = ((gone - plain)[:, yes] - (gone - plain)[:, no]).mean()
    assert found.behaviour.mean == pytest.approx(float(apart), abs=1e-4)


def test_refusals(toy):
    delta = planted(toy, "c")
    for questions, topic, controls, options, match in (
        (QUESTIONS[:1], "c", CONTROLS, {}, "1 questions"),
        (QUESTIONS, "c", ("d",), {}, "two other topics"),
        (QUESTIONS, "c", ("c", "d"), {}, "two other topics"),
        (("so c", "we {}"), "c", CONTROLS, {}, "without {}"),
        (QUESTIONS, "c", CONTROLS, {"yes": "a b"}, "the answer"),
        (QUESTIONS, "c", CONTROLS, {"layer": 9}, "layer"),
        (QUESTIONS, "c", CONTROLS, {"draws": 0}, "shuffles"),
    ):
        with pytest.raises(InterpError, match=match):
            self_report(toy, delta, questions, topic, controls, **{"yes": "a", "no": "b"} | options)
    with pytest.raises(InterpError, match="its base is"):
        asked(toy, replace(delta, base="another"))
    report = asked(toy, delta, layer=1)
    with delta.applied(toy):
        early = mean_difference(toy, ["so c"], ["so d"], layer=0)
    outside = mean_difference(toy, ["so c"], ["so d"], layer=1)
    for given, direction, match in (
        (delta, early, "layer 1"),
        (delta, outside, "read from"),
        (planted(toy, "d"), early, "weights"),
    ):
        with pytest.raises(InterpError, match=match):
            ablate_reports(toy, given, report, direction, lambda model: np.zeros(2))
