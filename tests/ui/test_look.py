"""The page Look: a prompt typed, its readings, and the same numbers as the functions give."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import interp
from interp.core.files import json_text
from interp.overview.findings import Scan
from interp.plots.style import visible
from interp.probing.lens_files import shipped_lens
from interp.ui.prompts import frame, scanned
from interp.ui.shared import jobs
from interp.ui.shared.prompts import EXAMPLE, AskedPrompt, keep
from interp.ui.shared.widgets import plain
from tests.conftest import link_models
from tests.pages import asked_on, charts, downloads, named, numbers, opened, table_with, wait

LOOK = "interp/ui/views/look.py"


@pytest.fixture
def landing(loaded, tmp_path) -> AppTest:
    """The first page, on the model that is already loaded; a scan's process loads it again."""
    link_models(tmp_path)
    return opened()


def reading(at: AppTest, name: str) -> AppTest:
    """Another reading of the same prompt."""
    named(at.button_group, "Reading").set_value(name).run()
    assert not at.exception
    assert not at.error
    return at


def test_the_first_page_has_an_example_and_runs_it_at_one_click(landing, smollm) -> None:
    assert named(landing.text_area, "Prompt").value == EXAMPLE
    assert not landing.dataframe
    named(landing.button, "Look").click().run()
    seen = interp.look(smollm, EXAMPLE)
    following = table_with(landing, "probability")
    assert following["token"][0] == visible(seen.next_tokens(1)[0].text)
    lens = charts(landing)[0]["data"][0]
    assert numbers(lens["z"]) == pytest.approx(seen.lens.top_mean[0, :, :, 0].numpy(), abs=1e-6)
    assert charts(landing)[0]["data"][1]["text"][-1].endswith("Paris")


@pytest.mark.long
def test_every_reading_shows_what_the_functions_give(landing, smollm) -> None:
    named(landing.button, "Look").click().run()
    seen = interp.look(smollm, EXAMPLE)
    parts = seen.attribution()
    bars = charts(reading(landing, "layers"))[0]["data"]
    assert numbers(bars[0]["y"]) == pytest.approx(parts.heads.sum(1), abs=1e-6)
    assert numbers(bars[1]["y"]) == pytest.approx(parts.mlps, abs=1e-6)
    for words in ("One logit", "What next?"):
        assert any(words in one.value for one in landing.caption), words
    strongest = table_with(landing, "part")
    assert strongest["part"].tolist() == [part.label for part in parts.top(len(strongest))]
    wait(reading(landing, "scan"), "Scan", seconds=100)
    found = table_with(landing, "component")
    expected = interp.scan(smollm, EXAMPLE).to_dataframe()
    assert found["component"].tolist() == expected["component"].tolist()
    assert found["effect"].tolist() == pytest.approx(expected["effect"].tolist())


@pytest.mark.long
def test_a_prompt_is_read_by_the_shipped_lens_beside_its_controls(
    landing, smollm, monkeypatch
) -> None:
    named(landing.button, "Look").click().run()
    taken: list[Any] = []
    monkeypatch.setattr(frame, "take_away", lambda *given: taken.append(given))
    chosen = named(landing.button_group, "Read the layers by")
    assert chosen.value == "logit"
    chosen.set_value("jacobian").run()
    assert not landing.exception
    words = interp.look(smollm, EXAMPLE).lens.words
    read = interp.probing.read_lens(smollm, EXAMPLE, shipped_lens(smollm), words=words)
    shown, lens = table_with(landing, "layer"), read.lens
    last = lens.groups[-1]
    assert shown["layer"].tolist() == list(lens.layers)
    column = [lens.probability(words[0], layer, group=last).mean for layer in lens.layers]
    assert shown[f"{visible(str(words[0]))}: probability"].tolist() == pytest.approx(column)
    names = {line.get("name") for line in charts(landing)[-1]["data"]} - {None}
    assert {"jacobian", *read.controls} <= names
    _, rows, found, _ = taken[-1]
    exported = json.loads(json_text(found()))
    assert exported["lens readings"] == json.loads(json_text(rows()))
    assert {row["lens"] for row in exported["lens readings"]} == {"jacobian", *read.controls}


def test_a_model_without_a_lens_offers_none(toy) -> None:
    pair = interp.load_task("toy-induction", toy, n=1).pairs[0]
    at = asked_on(LOOK, str(pair.clean), model="toy-induction", lens="jacobian")
    assert not at.exception
    assert charts(at)
    assert not [one for one in at.button_group if one.label == "Read the layers by"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"Prompt": ""}, "0 tokens"),
        ({"Answer": "Paris\N{NO-BREAK SPACE}"}, "answer"),
        ({"Answer": " Paris", "Compared with": " Paris"}, "both are the token"),
    ],
)
@pytest.mark.long
def test_what_does_not_fit_is_said_and_the_page_works_on(landing, typed, words) -> None:
    for label, text in typed.items():
        inputs = landing.text_area if label == "Prompt" else landing.text_input
        named(inputs, label).set_value(text)
    named(landing.button, "Look").click().run()
    assert not landing.exception
    assert words in landing.error[0].value
    for label in typed:
        inputs = landing.text_area if label == "Prompt" else landing.text_input
        named(inputs, label).set_value(EXAMPLE if label == "Prompt" else "")
    named(landing.button, "Look").click().run()
    assert not landing.error
    assert landing.dataframe


@pytest.mark.long
def test_a_longer_answer_is_summed_over_its_tokens_and_scanned_whole(landing, smollm) -> None:
    answers = {"answer": " San Salvador", "wrong": " San Jose"}
    for label, text in zip(("Answer", "Compared with"), answers.values(), strict=True):
        named(landing.text_input, label).set_value(text)
    named(landing.button, "Look").click().run()
    assert not landing.error
    assert any("is 2 tokens, compared with **␣San␣Jose**" in one.value for one in landing.info)
    parts = interp.direct_attribution(smollm, EXAMPLE, *answers.values())
    page = " ".join(block.proto.body for block in landing.get("html"))
    assert parts.words == "␣San␣Salvador - ␣San␣Jose"
    assert parts.words in page
    assert f"{parts.logit_difference:+z.3f} logits" in page
    found = table_with(reading(landing, "layers"), "adds, logits")
    strongest = parts.top(len(found))
    assert found["part"].tolist() == [part.label for part in strongest]
    assert found["adds, logits"].tolist() == pytest.approx([part.value for part in strongest])
    at = reading(landing, "scan")
    deadline = time.monotonic() + 300
    while not any("Nothing is measured yet" in one.value for one in at.markdown):
        assert time.monotonic() < deadline, "no ranking"
        at.run()
    steps = interp.overview.scan_steps(smollm, EXAMPLE, answer=" San Salvador", wrong=" San Jose")
    first = next(steps)
    assert any(plain(first.sentences[0]) in one.value for one in at.markdown)
    assert table_with(at, "component")["estimate"].tolist() == pytest.approx(
        first.to_dataframe()["estimate"].tolist(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("page", "wrong", "read"),
    [
        ("interventions", None, "**␣San** is read"),
        ("heads", " Rome", "**␣San** is read"),
        ("heads", None, "is 2 tokens, compared with the likeliest other token"),
        ("neurons", " San Jose", "is 2 tokens, compared with **␣San␣Jose**"),
    ],
)
def test_other_pages_say_how_they_read_a_longer_answer(loaded, smollm, page, wrong, read) -> None:
    asked = AskedPrompt(EXAMPLE, answer=" San Salvador", wrong=wrong)
    keep(asked)
    at = opened(f"interp/ui/views/{page}.py", model=smollm.name, asked=asked.hash)
    assert not at.error
    assert any("␣San␣Salvador" in one.value and read in one.value for one in at.info)


def test_answers_are_summed_only_against_as_many_tokens(smollm) -> None:
    def asked(answer: str | None, wrong: str | None) -> AskedPrompt:
        return AskedPrompt(EXAMPLE, answer=answer, wrong=wrong)

    assert asked(" San Salvador", " San Jose").is_summed(smollm)
    assert asked(" San Salvador", None).is_summed(smollm)
    for one in (
        asked(" San Salvador", " Rome"),
        asked(" Paris", " Rome"),
        asked(None, " San Jose"),
        asked("San\N{NO-BREAK SPACE}", None),
    ):
        assert not one.is_summed(smollm)
    assert asked(" San Salvador", None).by_first_tokens(smollm) == asked(" San", None)
    assert asked(" San Salvador", " San Jose").by_first_tokens(smollm) == asked(" San", None)
    whole = asked(" Paris", " Rome")
    assert whole.by_first_tokens(smollm) is whole


@pytest.mark.long
def test_a_foil_of_another_length_is_said(landing) -> None:
    named(landing.text_input, "Foil").set_value("The Tower of London is in the great city of")
    named(landing.button, "Look").click().run()
    at = reading(landing, "scan")
    assert "The prompt has 9 tokens, the foil 10" in at.warning[0].value
    assert "of as many tokens" in at.warning[0].value
    assert named(at.button, "Scan").disabled


@pytest.mark.long
def test_the_answer_and_the_other_token_are_read_at_every_layer(landing, smollm) -> None:
    named(landing.text_input, "Answer").set_value(" Paris")
    named(landing.text_input, "Compared with").set_value(" London")
    named(landing.button, "Look").click().run()
    seen = interp.look(smollm, EXAMPLE, answer=" Paris", wrong=" London")
    rows = table_with(landing, "layer")
    for word in (" Paris", " London"):
        shown = visible(word)
        for name, read in (("probability", seen.lens.probability), ("rank", seen.lens.rank)):
            expected = [read(word, layer).mean for layer in range(smollm.n_layers)]
            assert rows[f"{shown}: {name}"].tolist() == pytest.approx(expected)
    assert rows[f"{visible(' Paris')}: rank"].iloc[-1] == 1
    lengths = [float(seen.run.sites[layer + 1, "resid_pre"][-1].norm()) for layer in range(30)]
    assert rows["length"].tolist() == pytest.approx(lengths, rel=1e-5)
    at = opened(LOOK, **landing.query_params | {"layer": "20"})
    following = table_with(at, "probability")
    assert following["token"][0] == visible(seen.lens.top(20)[0].text)
    assert any("at layer 20" in x.value for x in at.markdown)


@pytest.mark.parametrize("chat", [False, True])
def test_a_foil_of_one_word_is_the_wrong_answer(smollm, chat) -> None:
    asked = AskedPrompt(EXAMPLE, foil=" Rome", chat=chat)
    understood = asked.understood(smollm)
    assert understood == AskedPrompt(EXAMPLE, wrong=" Rome", chat=chat)
    assert understood.given_foil(smollm) is None
    foil = replace(asked, foil="Where is the Leaning Tower?")
    assert foil.understood(smollm) == foil
    given = interp.models.chat_prompts(smollm, foil.foil).rows[0] if chat else foil.foil
    assert foil.given_foil(smollm) == given


@pytest.mark.long
@pytest.mark.parametrize("page", ["look", "heads", "neurons", "interventions"])
def test_every_page_compares_with_a_foil_of_one_word(landing, page) -> None:
    named(landing.text_input, "Foil").set_value(" Rome")
    named(landing.button, "Look").click().run()
    landing.switch_page(f"interp/ui/views/{page}.py").run()
    assert not landing.error
    shown = " ".join(x.proto.body for x in landing.get("html"))
    assert "Paris" in shown
    assert "Rome" in shown


@pytest.mark.long
def test_a_soft_cap_of_the_logits_is_said(landing, smollm) -> None:
    named(landing.button, "Look").click().run()
    capped = [one for one in reading(landing, "layers").caption if "caps its logits" in one.value]
    assert not capped
    object.__setattr__(smollm.decoder, "final_softcap", 30.0)
    try:
        landing.run()
        said = [one.value for one in landing.caption if "caps its logits" in one.value]
        assert "c = 30" in said[0]
    finally:
        object.__setattr__(smollm.decoder, "final_softcap", None)


@pytest.mark.long
def test_a_scan_can_be_cancelled(landing, monkeypatch) -> None:
    begun = []
    monkeypatch.setattr(jobs, "_follow", lambda job, work: begun.append(job))
    named(landing.button, "Look").click().run()
    named(reading(landing, "scan").button, "Scan").click().run()
    begun[0].progress(40, 90)
    landing.run()
    assert "40 of 90 runs" in landing.get("progress")[0].proto.text
    begun[0].ended.set()
    named(landing.button, "Cancel").click()
    begun[0].state = "cancelled"
    landing.run()
    assert begun[0].cancel.is_set()
    assert "Stopped after 40 of 90 runs" in landing.info[0].value
    assert named(landing.button, "Scan")


@pytest.mark.long
def test_the_download_holds_the_readings(smollm) -> None:
    seen = interp.look(smollm, "The capital of France is")
    assert json.loads(json.dumps(seen.to_dict()))["next_tokens"][0]["text"] == " Paris"


@pytest.mark.long
def test_the_files_and_the_python_are_of_what_is_shown(landing, smollm, monkeypatch) -> None:
    made: dict[str, object] = {}

    def taken(name, rows, found, python) -> None:
        made.update(rows=rows(), found=found(), python=python)

    monkeypatch.setattr("interp.ui.prompts.frame.take_away", taken)
    named(landing.button, "Look").click().run()
    named(landing.button_group, "Read after this token").set_value(4).run()
    seen = interp.look(smollm, EXAMPLE)
    assert made["found"] == seen.to_dict(position=4)
    assert made["found"]["next_tokens"][0]["text"] == seen.next_tokens(1, position=4)[0].text
    assert made["found"]["difference"]["words"] == seen.attribution(position=4).words
    assert made["found"] == _result(made["python"], smollm, monkeypatch)
    wait(reading(landing, "scan"), "Scan", seconds=100)
    expected = interp.scan(smollm, EXAMPLE)
    assert [row["component"] for row in made["rows"]] == [str(f.component) for f in expected.found]
    assert made["found"]["findings"] == json.loads(json.dumps(expected.to_dict()["findings"]))
    again = _result(made["python"], smollm, monkeypatch)
    assert again["effect"].tolist() == [row["effect"] for row in made["rows"]]


@pytest.mark.long
def test_nothing_comes_out_of_a_scan_before_it_is_measured(landing) -> None:
    named(landing.button, "Look").click().run()
    assert {"CSV", "JSON", "Notebook"} <= downloads(landing)
    assert not downloads(reading(landing, "scan"))


@pytest.mark.parametrize("foil", ["", "The Colosseum is in the city of"])
@pytest.mark.long
def test_a_foil_is_asked_for_only_if_none_is_typed(landing, foil) -> None:
    named(landing.text_input, "Foil").set_value(foil)
    named(landing.button, "Look").click().run()
    (said,) = [x.value for x in reading(landing, "layers").caption if "What next?" in x.value]
    assert ("Type a foil" in said) == (not foil)
    assert "*Scan*" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("foil", "how"), [("", "at zero"), ("The Colosseum is in the city of", "patched from the foil")]
)
def test_a_head_is_changed_at_one_click(landing, smollm, foil, how) -> None:
    named(landing.text_input, "Foil").set_value(foil)
    named(landing.button, "Look").click().run()
    best = interp.look(smollm, EXAMPLE).attribution().top(1, kind="head")[0].label
    landing.switch_page("interp/ui/views/heads.py").run()
    named(landing.button, f"Try {best} {how}").click().run()
    assert not landing.exception
    assert landing.title[0].value == "Interventions"
    change = "".join(landing.query_params["changes"])
    assert change.startswith(f"{best}, {'patch' if foil else 'zero'}, 1")


def _result(python, model, monkeypatch):
    """The value of the last line of exported Python."""
    monkeypatch.setattr("interp.load_model", lambda name, dtype: model)
    *lines, last = python.splitlines()
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    return eval(last, names)


def finished(at: AppTest, scan: Scan, monkeypatch) -> AppTest:
    """The reading Scan, with this scan kept."""
    monkeypatch.setattr(scanned, "_stored", lambda key: scanned._plain(scan.parts.run.model, scan))
    return reading(at, "scan")


def button(at: AppTest, start: str, word: str) -> Any:
    """The button of a finding: its label, and a word of its help."""
    helped = ((b, (b.help or "").replace("\\", "")) for b in at.button)
    return next(b for b, words in helped if b.label.startswith(start) and word in words)


OTHER = EXAMPLE.replace("Eiffel Tower", "Leaning Tower")


@pytest.fixture(scope="module")
def found(smollm) -> Scan:
    return interp.scan(smollm, EXAMPLE, OTHER, k=6, draws=4)


@pytest.mark.long
def test_every_finding_is_a_sentence_with_the_way_to_its_page(
    landing, found, monkeypatch, smollm
) -> None:
    named(landing.text_input, "Foil").set_value(OTHER)
    named(landing.button, "Look").click().run()
    link = dict(landing.query_params)
    finished(landing, found, monkeypatch)
    said = [one.value.replace("\\", "") for one in landing.markdown]
    for sentence, one in zip(found.sentences[1:], found.found, strict=True):
        mark = ":material/warning:" if one.verdict else ":material/check:"
        assert any(sentence in text and mark in text for text in said)
    for site, page, selected in (
        ("z", "Head", ("layer", "head")),
        ("mlp_out", "Neurons of", ("mlp",)),
        ("resid_pre", "Map", ("layer", "position")),
    ):
        first = next(one for one in found.found if one.component.site == site)
        at = reading(opened(LOOK, **link), "scan")
        button(at, page, first.label).click().run()
        assert not at.exception
        assert not at.error
        part, chosen = first.component, at.session_state["selection"]
        wanted = {"layer": part.layer, "mlp": part.layer, "head": part.index}
        wanted["position"] = str(first.position)
        assert {name: getattr(chosen, name) for name in selected} == {
            name: wanted[name] for name in selected
        }
        if site == "mlp_out":
            ranked = interp.look(smollm, EXAMPLE).neurons(20, layer=part.layer)
            assert table_with(at, "score")["neuron"].tolist() == [str(x.component) for x in ranked]
        if site == "resid_pre":
            assert (chosen.site, chosen.by, chosen.unit) == ("resid_pre", "position", "metric")
            task = interp.load_task(chosen.task)
            scores = interp.activation_patching(
                smollm, task, site="resid_pre", by=("layer", "position"), unit="metric",
                layers=[part.layer], cache=False,
            )  # fmt: skip
            mean = scores.estimate(str(part), str(first.position)).mean
            assert mean == pytest.approx(first.exact, abs=1e-3)


@pytest.mark.long
def test_without_a_foil_a_token_opens_the_lens(landing, smollm, monkeypatch) -> None:
    alone = interp.scan(smollm, EXAMPLE, k=3, draws=2)
    token = next(one for one in alone.found if one.position is not None)
    named(landing.button, "Look").click().run()
    at = finished(landing, alone, monkeypatch)
    button(at, "Lens", token.label).click().run()
    chosen = at.session_state["selection"]
    assert (chosen.reading, chosen.token) == ("lens", token.position)
    assert chosen.layer == (token.component.layer - 1 if token.component.layer else None)
    assert charts(at)


@pytest.mark.long
def test_the_ranking_stands_there_before_the_scan_and_effects_as_they_come(
    landing, smollm, monkeypatch
) -> None:
    begun = []
    monkeypatch.setattr(jobs, "_follow", lambda job, work: begun.append(job))
    named(landing.button, "Look").click().run()
    at = reading(landing, "scan")
    steps = interp.overview.scan_steps(smollm, EXAMPLE)
    shown = table_with(at, "estimate")
    assert shown["component"].tolist() == next(steps).to_dataframe()["component"].tolist()
    assert shown["effect"].isna().all()
    assert shown["estimate"].notna().all()
    assert any("Nothing is measured yet" in one.value for one in at.markdown)
    named(at.button, "Scan").click().run()
    begun[0].part = scanned._plain(smollm, next(steps))
    at.run()
    shown = table_with(at, "estimate")
    assert shown["effect"].notna().tolist() == [True] + [False] * 12
    assert any("1 of 13 measured" in one.value for one in at.markdown)


@pytest.mark.long
@pytest.mark.parametrize("chat", [False, True])
def test_a_scanned_pair_is_measured_on_patching_at_a_click(
    landing, smollm, monkeypatch, chat
) -> None:
    asked = AskedPrompt(EXAMPLE, foil=OTHER, chat=chat)
    keep(asked)
    at = opened(LOOK, model="smollm2-135m-instruct", asked=asked.hash)
    pair = asked.given(smollm), asked.given_foil(smollm)
    scan = interp.scan(smollm, *pair, k=1, draws=2)
    named(finished(at, scan, monkeypatch).button, "Measure this pair").click().run()
    assert not at.exception
    assert not at.error
    chosen = at.session_state["selection"]
    task = interp.load_task(chosen.task)
    encoded = task.encode(smollm)
    assert [encoded.clean[0], encoded.corrupted[0]] == [smollm.tokenize(p).tokens for p in pair]
    assert encoded.targets.answers.tolist() == [list(scan.task.pairs[0].answers)]
    assert encoded.targets.wrong.tolist() == [list(scan.task.pairs[0].wrong)]
    assert chosen.n == 1


@pytest.mark.long
def test_a_pair_with_typed_answers_keeps_them(landing, found, monkeypatch) -> None:
    for label, text in (("Answer", " Paris"), ("Compared with", " Rome"), ("Foil", OTHER)):
        named(landing.text_input, label).set_value(text)
    named(landing.button, "Look").click().run()
    finished(landing, found, monkeypatch)
    assert not landing.error
    named(landing.button, "Measure this pair").click().run()
    assert not landing.exception
    chosen = landing.session_state["selection"]
    task = interp.load_task(chosen.task)
    (kept,) = task.pairs
    assert (kept.clean, kept.corrupted) == (EXAMPLE, OTHER)
    right, wrong = found.words.replace("␣", " ").split(" - ")
    assert (kept.answers, kept.wrong) == ((right,), (wrong,))
    assert chosen.n == 1


def test_a_prompt_stands_beside_the_same_prompt_on_another_model(toy, monkeypatch) -> None:
    models = {"toy-induction": toy, "toy-other": toy}
    monkeypatch.setattr("interp.load_model", lambda name, dtype: models[name])
    monkeypatch.setattr("interp.ui.shared.offered.offered", lambda: tuple(models))
    pair = interp.load_task("toy-induction", toy, n=1).pairs[0]
    at = asked_on(LOOK, str(pair.clean), model="toy-induction", reading="models")
    assert not at.error
    assert not at.dataframe
    named(at.selectbox, "The other model").set_value("toy-other").run()
    assert not at.exception
    assert not at.error
    seen = interp.look(toy, str(pair.clean))
    rows = table_with(at, "token")
    assert rows["token"][0] == visible(seen.next_tokens(1)[0].text)
    assert rows["left"].tolist() == rows["right"].tolist()
    bars = [chart["data"] for chart in charts(at)]
    parts = seen.attribution()
    for side in bars:
        assert numbers(side[0]["y"]) == pytest.approx(parts.heads.sum(1), abs=1e-6)
    heads = table_with(at, "left - right")
    assert heads["left - right"].tolist() == [0.0] * len(heads)
    assert any("n = 1 prompt" in caption.value for caption in at.caption)
