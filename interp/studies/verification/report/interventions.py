"""The report on what was changed: patching, ablations, texts, controls."""

from __future__ import annotations

import math

import numpy as np
import torch

from interp.core.statistics import Estimate, mean_estimate
from interp.plots import static
from interp.studies.formatting import bare, estimate, place, spread
from interp.studies.formatting import null as in_words
from interp.studies.report.report import Report
from interp.studies.steps import Result
from interp.studies.verification.report import paper_numbers as published
from interp.studies.verification.steps.verdicts import KINDS


def patching(report: Report, results: dict[str, Result]) -> None:
    """Effects of heads, layers and paths."""
    found = results["patching"]
    paths = {into: results.get(f"paths_{into}", {}) for into in ("mlps", "glu", "direct")}
    report.section("6. Exact patching of valid-invalid pairs")
    report.text(
        f"{found['n']} pairs that differ in the target alone, so that the same attempt works in "
        f"one and not in the other (of {found['counts']['made']} made, "
        f"{found['counts']['flipped']} are judged so). Effects are fractions of the gap between "
        "the two runs."
    )
    report.figure(
        static.head_map(
            found["noise"]["values"],
            title="noise: effect of breaking each head at t_ans and t_paren",
            marked=[place(x["label"]) for x in found["noise"]["top"][:6]],
        ),
        "patching",
        "Activation patching of heads (fraction of the gap; positive supports the verdict).",
    )
    report.table(
        [
            {
                "rank": rank,
                **{
                    column: f"{top[rank - 1]['label']} {top[rank - 1]['value']:+.3f} ± "
                    f"{top[rank - 1]['stderr']:.3f}"
                    for column, top in (
                        ("noise", found["noise"]["top"]),
                        ("denoise", found["denoise"]["top"]),
                        (
                            f"paths into {', '.join(paths['mlps']['receivers'])}",
                            paths["mlps"]["top"],
                        ),
                        ("paths into GLU_Valid", paths["glu"].get("top")),
                        ("paths into the logits", paths["direct"]["top"]),
                    )
                    if top
                },
            }
            for rank in range(1, 7)
        ]
    )
    rows = [
        {
            "effect": words,
            "mean of the strongest, on unseen pairs": estimate(null["unseen"]),
            "random heads near them": f"{null['mean']:.3f} [{null['low']:.3f}, {null['high']:.3f}]",
            "p": null["flips"]["p"],
        }
        for words, x in (
            ("noise", found["noise"]),
            ("denoise", found["denoise"]),
            ("paths into the MLPs", paths["mlps"]),
            ("paths into GLU_Valid", paths["glu"]),
            ("paths into the logits", paths["direct"]),
        )
        if (null := x.get("null")) is not None
    ]
    if rows:
        heads, band = found["noise"]["null_of"]
        report.table(
            rows,
            caption=f"The {heads} strongest heads on one half of the pairs, measured on the other "
            f"half; random: {heads} other heads, each at most {band} layers from one of them. p: "
            f"of the {heads} strongest on all pairs, by sign flips that select anew. A small p "
            "says that some of them have an effect.",
        )
    layers = np.arange(len(found["mlp_out"]))
    report.figure(
        static.interval_lines(
            {
                f"{site} at {place}": bare(np.array(found[site])[layers, column])
                for site in ("attn_out", "mlp_out")
                for column, place in enumerate(("t_ans", "t_paren"))
            },
            x_title="layer",
            y_title="effect (fraction of the gap)",
            baseline=0.0,
            baseline_label="none",
        ),
        "patching_layers",
        "Whole attention and MLP outputs restored, layer by layer.",
    )


def curve(report: Report, results: dict[str, Result]) -> None:
    """The verdict as heads are zeroed one by one."""
    found = results["curves"]
    report.section("7. The smallest set of heads that disables verification")
    report.table(
        [
            {
                "order": name,
                "heads, in order": " ".join(p["added"] for p in x["curve"][:8]),
                "size at 95 %": x["size"] if x["size"] is not None else "not reached",
                **{
                    f"{size} heads": x["curve"][size - 1]["disabled"]["mean"]
                    if size <= len(x["curve"])
                    else float("nan")
                    for size in (1, 2, 3, 5, 8)
                },
            }
            for name, x in found["find"].items()
        ],
        caption='Share of valid attempts judged "not" with the first heads zeroed, find samples.',
    )
    searched = results["smallest"]
    report.text(
        f"All {searched['tried']} sets of at most {searched['most']} of the "
        f"{searched['candidates']} heads strongest by patching were zeroed too: "
        f"{searched['found']} of them disable 95 % on the find samples (order 'search': the "
        f"strongest of these). So were all {searched['heads']} heads of the model, one at a time: "
        f"{len(searched['alone'])} disable as much alone. A_Verif is chosen among the heads that "
        "patching finds: one that it passes over breaks the run rather than carrying the verdict."
    )
    rows = [
        {"heads": " ".join(row["heads"]), "found among": among}
        | {f'{kind}: valid judged "not"': estimate(row[kind]) for kind in KINDS}
        for name, among in (("sets", "the strongest by patching"), ("alone", "all heads, alone"))
        for row in searched[name]
    ]
    if rows:
        report.table(rows, caption="Each under every kind of ablation, on test samples.")
    curve = found["test"]
    report.figure(
        static.curve_with_null(
            [p["size"] for p in curve],
            [p["disabled"]["mean"] for p in curve],
            low=[p["disabled"]["low"] for p in curve],
            high=[p["disabled"]["high"] for p in curve],
            null=[p.get("null") for p in curve],
            x_title="heads zeroed together",
            y_title='valid attempts judged "not"',
            labels=[f"{p['size']}: +{p['added']}" for p in curve],
            null_label="random heads, same layers",
        ),
        "curve",
        f"Order {found['order']}, on test samples no head was chosen on. Chosen: "
        f"{', '.join(found['chosen'])}.",
    )


def communication(report: Report, results: dict[str, Result]) -> None:
    """Scores of heads for neurons, and what falls silent."""
    found, scores = results["communication"], results["head_scores"]
    report.section("8. Heads to GLU: what falls silent")
    report.table(
        [
            {
                "score": mode.split(",")[0],
                "neurons": "GLU_Valid, as ablated" if "," in mode else "as published",
                "how many": x["neurons"],
                "heads, in order": " ".join(x["order"][:8]),
            }
            for mode, x in scores.items()
        ],
        caption="How much heads feed GLU vectors. diag is the released formula, a basis-dependent "
        "vector; ov the true product; activation what real head outputs add on valid less invalid "
        "samples. As published: the vectors nearest the softmax probes, pooled over layers. Rank "
        "agreement (Spearman): "
        + "; ".join(f"{pair} {value:.2f}" for pair, value in found["agreement"].items())
        + ".",
    )
    report.table(
        [
            {
                "read at": place,
                "measure": text,
                "without the chosen heads": estimate(x[key]),
                "without random heads": in_words(x[of]),
                "draws": "–" if x[of] is None else x[of]["draws"],
            }
            for place, x in found["at"].items()
            for text, key, of in (
                ("mean fall of GLU_Valid activations", "total", "null"),
                ("share of active GLU_Valid neurons silenced", "silenced", "silenced_null"),
            )
            if x[key] is not None
        ],
        caption=f"{', '.join(found['ablated'])} zeroed at every token, {found['n']} valid samples; "
        f"random heads of the same layers on {found['n_null']} of them. The paper reads one "
        "sample, at t_ans.",
    )
    at = found["at"]["t_ans"]
    order = np.argsort(-np.abs(at["before"]))[:14]
    report.figure(
        static.paired_rows(
            [found["neurons"][i] for i in order],
            {side: bare([at[side][i] for i in order]) for side in ("before", "after")},
            x_title="mean activation at t_ans",
        ),
        "silent",
        "The most active GLU_Valid neurons before and after the chosen heads are zeroed.",
    )


def effects(report: Report, results: dict[str, Result]) -> None:
    """The verdict under every ablation."""
    report.section("9. The verdict under every ablation, against random sets")
    report.text(
        "A_Prev takes all earlier occurrences of the target as keys, A_Prev (published) those "
        "before the first attempt; A_Verif is the smallest set found here, A_Verif (published) the "
        "first three heads of A_Prev (published) by the published score."
    )
    for key in ("effects_zero", "effects_mean", "effects_resample", "effects_published"):
        found = results[key]
        where = (
            "heads at all tokens and of neurons at the last, as published"
            if found["where"] == "all"
            else f"the last {found['where']} tokens"
        )
        few = sorted({x["null_n"] for x in found["sets"].values()})
        report.table(
            [
                {
                    "set": name,
                    "size": len(x["components"]),
                    'valid judged "not"': estimate(x["disabled"]),
                    'random: judged "not"': spread(x["null"]["disabled"]),
                    "draws": x["draws"],
                    "as strong": x["share"],
                    'invalid still "not"': x["invalid_kept"]["mean"],
                    'random: still "not"': spread(x["null"]["invalid_kept"]),
                    "KL": x["kl"],
                }
                for name, x in found["sets"].items()
            ],
            caption=f"{found['kind']} ablation of {where}; {found['n']} samples, half of them "
            f"valid; plain model: {found['none']['disabled']['mean']:.3f} and "
            f"{found['none']['invalid_kept']['mean']:.3f}. Random: mean and 95 % range of sets "
            f"matched in kind, layers and count, each run on {' or '.join(map(str, few))} of the "
            "samples and compared with the set on the same ones.",
        )
    found = results["effects_zero"]["sets"]
    report.figure(
        static.values_with_null(
            list(found),
            [x["disabled"]["mean"] for x in found.values()],
            low=[x["disabled"]["low"] for x in found.values()],
            high=[x["disabled"]["high"] for x in found.values()],
            value_title='valid attempts judged "not"',
            null=[x["null"]["disabled"] for x in found.values()],
        ),
        "effects",
        f"Verification disabled by zeroing each set over the last "
        f"{results['effects_zero']['where']} tokens; grey: random sets.",
    )


def interventions(report: Report, results: dict[str, Result]) -> None:
    """What the model writes."""
    found = results["interventions"]
    report.section("10. What it writes: the interventions table")
    rows = []
    for name, x in found["rows"].items():
        ours = x["outcomes"]["interp-1"]
        rows.append(
            {
                "intervention": name,
                "size": len(x["components"]),
                "success": estimate(ours["success"]),
                "partial": ours["partial"]["mean"],
                "fail": ours["fail"]["mean"],
                "ood": ours["ood"]["mean"] + ours["empty"]["mean"],
                "random: success": "–" if x["random"] is None else estimate(x["random"]["success"]),
                "draws": x["draws"],
                "as strong": "–" if x["share"] is None else x["share"],
            }
        )
    report.table(
        rows,
        caption=f"{found['n']} valid attempts, cut at t_ans; {found['max_new_tokens']} tokens; the "
        f'set zeroed (last {found["where"]} tokens) for the token after every " (". Success: '
        "verification disabled. Random: the texts of all random sets together, each set on "
        f"{found['each']} or so of the attempts.",
    )
    report.figure(
        static.stacked_shares(
            {
                name: {key: value["mean"] for key, value in x["outcomes"]["interp-1"].items()}
                for name, x in found["rows"].items()
            }
        ),
        "outcomes",
        "Success: verification disabled.",
    )
    published.outcomes(report, results)
    example = found["rows"].get("A_Verif", found["rows"]["none"])["examples"][0]
    report.text(f"An example under A_Verif:\n\n```\n{example.replace('```', '')}\n```")


def side_effects(report: Report, results: dict[str, Result]) -> None:
    """Arithmetic and plain English."""
    found = results["side_effects"]
    report.section("11. What else the same sets do")
    rows = []
    draws = 0
    for name, x in found.items():
        if name == "n":
            continue
        draws = max(draws, len(x.get("arithmetic_null", ())))
        row = {
            "set, zeroed at every token": name,
            "result's last digit right": estimate(x["arithmetic"]),
            "random: right": _pooled(x.get("arithmetic_null")),
            "right, less random": _beside(x.get("arithmetic_beside")),
        }
        if "loss" in found["none"]:
            row |= {
                "perplexity of plain English": math.exp(x["loss"]["mean"]),
                "more nats a token": estimate(x["loss_change"]) if "loss_change" in x else "–",
                "random: more nats": _pooled(x.get("loss_change_null")),
                "nats, less random": _beside(x.get("loss_change_beside")),
            }
        rows.append(row)
    report.table(
        rows,
        caption=f"{found['n']} results of the model's own attempts. Nats: the loss on plain "
        "English with the set zeroed minus the plain model's, text by text, with its interval "
        f"over texts. Random: mean and its interval over {draws} matched sets, each on two results "
        "and on one text; less random: the set less a random one on the same ones, over draws.",
    )


def _pooled(values: list[float] | None) -> Estimate | str:
    """The mean of random draws with its interval."""
    return "–" if not values else mean_estimate(torch.tensor(values))


def _beside(found: Result | None) -> Estimate | str:
    return "–" if found is None else estimate(found)


def sufficiency(report: Report, results: dict[str, Result]) -> None:
    """Sets carried from run to run."""
    found = results["sufficiency"]
    report.section("12. Sufficiency: the set carried from one run into the other")
    report.table(
        [
            {
                "direction": side,
                "set": name,
                "effect (share of the gap)": f"{x['effect']:.3f} [{x['effect_low']:.3f}, "
                f"{x['effect_high']:.3f}]",
                "random: effect": spread(x["effect_null"]),
                "draws": len(x["effect_null"]),
                "as strong": x["share"],
                "verdicts flipped": estimate(x["flipped"]),
                "random: flipped": spread(x["flipped_null"]),
            }
            for side in ("valid into invalid", "invalid into valid")
            for name, x in found[side].items()
        ],
        caption=f"{found['n']} test pairs, sets patched at the last {found['window']} tokens; "
        "effects with intervals over pairs. Random: mean and 95 % range of matched sets, "
        f"patched in {found['null_n']} of the pairs.",
    )


def stability(report: Report, results: dict[str, Result]) -> None:
    """Which heads are chosen again."""
    found = results["stability"]
    report.section("13. Stability")
    sets = sorted(found["sets"].items(), key=lambda pair: -pair[1])
    counts = sorted(found["counts"].items(), key=lambda pair: -pair[1])
    report.text(
        f"The choice of section 7 was made again on find samples drawn with replacement, "
        f"{found['draws']} times. It gave "
        + "; ".join(f"{heads} ({count} times)" for heads, count in sets)
        + ". By head: "
        + ", ".join(f"{head} {count}" for head, count in counts)
        + f". On the test samples instead it gives {', '.join(found['on_test'])}. Where several "
        "orders reach 95 % with equally few heads, the one listed first in section 7 is taken: "
        "other sets of that size disable verification too."
    )
