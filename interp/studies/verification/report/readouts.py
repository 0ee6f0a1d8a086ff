"""The report on what was read: behaviour, probes, lens, GLU vectors, attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.plots import static
from interp.plots.style import visible
from interp.studies.formatting import as_strong, band, bare, estimate, place, spread
from interp.studies.report.report import Report
from interp.studies.steps import Result
from interp.studies.verification.steps.finding_heads import RANDOM_SETS


def behaviour(report: Report, results: dict[str, Result]) -> None:
    """Shares of problems and attempts."""
    found = results["behaviour"]
    report.section("1. Behaviour")
    report.table(
        [{"share": row["share"], "value": estimate(row)} for row in found["rows"]],
        caption=f"{found['problems']} held-out problems, {found['attempts']:.1f} attempts each. A "
        "text cut at the limit of new tokens has no valid format.",
    )
    report.text(f"A text of the model:\n\n```\n{found['example'].replace('```', '')[:900]}\n```")


def probes(report: Report, results: dict[str, Result]) -> None:
    """Accuracy by layer and head, and the geometry of the pair."""
    found = results["probes"]
    report.section("2. Linear probes")
    for token in ("t_ans", "t_paren"):
        series = {
            site: (x["accuracy"], x["low"], x["high"])
            for site in ("resid_post", "attn_out", "mlp_out")
            if (x := found[token][site])
        }
        shuffled = found[token]["resid_post"]
        middle = np.mean([shuffled["shuffled_low"], shuffled["shuffled_high"]], axis=0)
        series["shuffled labels"] = (middle, shuffled["shuffled_low"], shuffled["shuffled_high"])
        figure = static.interval_lines(
            series,
            x_title="layer",
            y_title=f"held-out accuracy at {token}",
            baseline=0.5,
            baseline_label="chance",
            controls=["shuffled labels"],
        )
        n = f"{shuffled['n_train']} fitted, {shuffled['n_test']} held out, no problem on both sides"
        report.figure(figure, f"probes_{token}", f"Logistic probes at {token}; {n}.")
    heads = np.array(found["t_paren"]["z"]["accuracy"])
    report.figure(
        static.head_map(heads, title="accuracy of a probe on each head's z", diverging=False),
        "probes_heads",
        "Probes on single heads at t_paren.",
    )
    softmax = found["softmax"]
    report.figure(
        static.interval_lines(
            {
                "cos(W_valid, W_invalid)": bare(softmax["pair"]),
                "forced by the form": bare(softmax["pair_forced"]),
                "shuffled labels": bare(softmax["pair_shuffled"]),
            },
            x_title="layer",
            y_title="cosine of the two columns",
            controls=["shuffled labels"],
        ),
        "probes_pair",
        "The authors' two-class softmax probe: its two columns are opposite by construction, for "
        "their gradients are; how opposite follows from how long it was trained beside its random "
        "start, not from the labels. The line 'forced by the form' is what the form alone gives.",
    )
    layers = len(softmax["tokens"])
    report.table(
        [
            {
                "layer": layer,
                "W_valid writes": " ".join(map(visible, softmax["tokens"][layer]["valid"])),
                "W_invalid writes": " ".join(map(visible, softmax["tokens"][layer]["invalid"])),
                "cosine with the layer before": softmax["adjacent"][layer - 1],
                "cosine with its random start": softmax["start"][layer],
            }
            for layer in range(max(1, layers - 8), layers)
        ],
        caption="The softmax probe's direction, unembedded, in the last layers (the paper: "
        "Successful, SUCCESS, Exactly, 正是, 成功 against 不对, 不应, 不该, ≠; cosines of adjacent "
        "layers 0.23 to 0.80). A direction that still points along its random start writes nothing "
        "in particular.",
    )


def steering(report: Report, results: dict[str, Result]) -> None:
    """The verdict with a direction added."""
    found = results["steering"]
    first, last = found["layers"]
    report.table(
        [
            {
                "direction": row["direction"],
                "dose": f"{row['scale']:.0%}",
                **{
                    column: cell
                    for side, sign, word in (("invalid", "+", "this"), ("valid", "-", "not"))
                    for column, cell in (
                        (f'{sign}: {side} judged "{word}"', estimate(row[word])),
                        (f'{sign}: random, "{word}"', spread(row[word]["null"])),
                        (f"{sign}: as strong", row[word]["share"]),
                        (f"{sign}: neither", row[word]["neither"]),
                    )
                },
            }
            for row in found["rows"]
        ],
        caption=f"What tells valid from invalid, added at t_paren (+) or taken away (-) in layers "
        f"{first} to {last}; dose: its length, as a share of the stream's ({found['length']:.1f}). "
        "Random: mean and 95 % range of directions turned together at random, on "
        f"{found['null_n']} of the samples. The paper adds 20 times the softmax probe's and shows "
        "three texts.",
    )
    text, best = found["text"], found["rows"][found["chosen"]["this"]]
    report.text(
        f"An invalid attempt as the model goes on from it, and with the {best['direction']} added "
        f'({best["scale"]:.0%}, chosen on the find samples) at every " (":\n\n'
        + "\n\n".join(
            f"```\n{(text['before'] + text[name]).replace('```', '')}\n```"
            for name in ("plain", "steered")
        )
    )


def lens(report: Report, results: dict[str, Result]) -> None:
    """Mean probabilities by layer."""
    found = results["lens"]
    report.section("3. Logit lens")
    for group in ("valid", "invalid"):
        words = {
            f'"{word}"': band(rows)
            for word, rows in list(found["groups"][group]["probability"].items())[:6]
        }
        report.figure(
            static.interval_lines(words, x_title="layer", y_title="mean probability"),
            f"lens_{group}",
            f"Mean of probabilities at t_paren of {group} attempts, {found['n'] // 2} samples.",
        )
    rows = []
    tops = {group: found["groups"][group]["top"] for group in ("valid", "invalid")}
    for layer in range(len(tops["valid"]) // 2, len(tops["valid"])):
        row: dict[str, Any] = {"layer": layer}
        for group, top in tops.items():
            row[f"at t_{group}"] = ", ".join(
                f"{visible(text)} {value:.2f}" for text, value in top[layer]
            )
        rows.append(row)
    report.table(rows, caption="The four tokens of highest mean probability, upper half.")
    without = results["lens_without"]
    report.table(
        [
            {"layer": layer}
            | {
                f"without {name}": ", ".join(f"{visible(t)} {p:.2f}" for t, p in x["top"][layer])
                for name, x in without["groups"].items()
            }
            for layer in range(len(tops["valid"]) // 2, len(tops["valid"]))
        ],
        caption="The same at t_valid with each set zeroed at the last tokens; "
        f"{without['n']} samples (sections 4 and 7 say how the sets were found).",
    )


def glu(report: Report, results: dict[str, Result]) -> None:
    """The two sets, what they write, and how opposite they are."""
    found = results["glu"]
    report.section("4. GLU_Valid and GLU_Invalid")
    choice = results["glu_choice"]
    report.text(
        "The neurons of every layer of the upper half whose value vectors lie most along a "
        "direction that tells valid from invalid, or against it. The paper takes the difference of "
        "a two-class softmax probe's columns. Where the stream is long such a probe fits before it "
        "has turned from its random start (cosine with it in the last layer: "
        f"{results['probes']['softmax']['start'][-1]:.2f}), so two others stand beside it. "
        f"From here on: the {found['top_k']} of every layer from {found['layers'][0]} on along the "
        f"{found['direction']}, which lower the verdict most on the find samples."
    )
    report.table(
        [
            {
                "direction": row["direction"],
                "a layer": row["k"],
                "neurons": row["neurons"],
                'GLU_Valid: judged "not"': row["GLU_Valid"]["disabled"],
                "GLU_Valid: log-odds": row["GLU_Valid"]["log_odds"],
                'both sets: judged "not"': row["both"]["disabled"],
                "both sets: log-odds": row["both"]["log_odds"],
                'random: judged "not"': row["random"]["disabled"],
                "random: log-odds": row["random"]["log_odds"],
            }
            for row in choice["rows"]
        ],
        caption=f"Zeroed at the last tokens of {choice['n']} valid find samples: share judged "
        f'"not", and mean log P(this) - log P(not). Random: {RANDOM_SETS} sets of as many neurons '
        "as both, in the same layers.",
    )
    for name in ("GLU_Valid", "GLU_Invalid"):
        null = found[name]["null"]
        report.table(
            [
                {
                    "neuron": row["neuron"],
                    "cosine": row["cosine"],
                    "writes": " ".join(map(visible, row["writes_valid"][:5])),
                    "against": " ".join(map(visible, row["writes_invalid"][:5])),
                    "h on valid": row["valid"],
                    "h on invalid": row["invalid"],
                    "AUC": row["auc"],
                }
                for row in found[name]["top"]
            ],
            caption=f"{name}: {len(found[name]['neurons'])} neurons, mean cosine "
            f"{abs(null['selected']):.3f}; the same selection for random directions "
            f"{null['mean']:.3f} [{null['low']:.3f}, {null['high']:.3f}], "
            f"{as_strong(null['share'])}.",
        )
    report.table(
        [
            {
                "sets": text,
                "mean of each one's most negative cosine": found[key]["mean_cosine"],
                **{
                    words: f"{-x['mean']:.3f} [{-x['high']:.3f}, {-x['low']:.3f}], "
                    f"{as_strong(x['share'])}"
                    for words, x in (
                        ("sets along random w' and -w'", found[key]["null"]),
                        ("random neurons of the same layers", found[key]["null_neurons"]),
                    )
                },
            }
            for key, text in (
                ("opposed_neurons", "as selected"),
                ("antipodes_without_probes", "with the probes' directions projected out"),
            )
        ],
        caption="Are they antipodal? Sets selected along w and -w are opposite by selection: "
        "those along random directions of both signs say how much "
        f"({found['opposed_neurons']['null']['draws']} draws each).",
    )


def attention(report: Report, results: dict[str, Result]) -> None:
    """Heads that look at the target."""
    found = results["attention"]
    report.section("5. A_Prev: attention to earlier occurrences of the target")
    report.text(
        '"Previous-token" here means an earlier occurrence of the same number, not the position '
        "before."
    )
    main = found["t_ans to earlier"]
    marked = [place(head) for head in main["heads"]]
    report.figure(
        static.head_map(
            main["values"],
            title="attention from t_ans to earlier occurrences of the target",
            marked=marked,
            diverging=False,
        ),
        "attention",
        f"Mean over all {main['n']} samples; framed: {len(marked)} heads above the threshold.",
    )
    report.table(
        [
            {
                "query and keys": name,
                "n": x["n"],
                "heads above threshold": len(x["heads"]),
                "strongest": "; ".join(
                    f"{row['head']} {row['attention']['mean']:.2f} "
                    f"[{row['attention']['low']:.2f}, {row['attention']['high']:.2f}], others "
                    f"{row['control']:.2f}"
                    for row in x["top"][:5]
                ),
            }
            for name, x in found.items()
        ],
        caption="Mean attention to the target's occurrences with its 95 % interval over samples; "
        "others: that to as many other tokens at like distances. Earlier: all occurrences; asked: "
        "those before the first attempt, the published keys.",
    )
