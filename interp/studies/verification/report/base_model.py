"""The report on the model it was trained from: texts, weights, lens, activations, questions."""

from __future__ import annotations

import numpy as np

from interp.plots import static
from interp.studies.formatting import band, estimate
from interp.studies.report.report import Report, escape
from interp.studies.steps import Result


def base(report: Report, results: dict[str, Result]) -> None:
    """The model it was trained from."""
    found = results["base"]
    report.section("14. The model it was trained from")
    report.table(
        [{"share": row["share"], "value": estimate(row)} for row in found["behaviour"]],
        caption=f"{found['base']} on the same task.",
    )
    forced = "; ".join(
        f"{name}: AUC {x['auc']:.3f}, mass on both words {x['mass']:.3f}"
        for name, x in found["forced"].items()
    )
    report.text(
        f'On the trained model\'s texts, log P("this") - log P("not") at t_paren tells valid from '
        f"invalid with {escape(forced)}. Probes on the base model's residual stream reach "
        f"{max(found['probe_accuracy']):.3f}."
    )
    report.table(
        [
            {
                "components": kind,
                "weights": part,
                "relative change": null["selected"],
                "random, same layers": f"{null['mean']:.4f} [{null['low']:.4f}, "
                f"{null['high']:.4f}]",
                "as strong": null["share"],
                "least cosine": null["cosine"],
                "norms apart by up to": null["norms"],
                "least cosine of any": found["least_cosine"][part],
            }
            for kind, parts in found["weights"].items()
            for part, null in parts.items()
        ],
        caption="How much training changed the chosen heads and GLU_Valid. In the paper (RL on "
        "Qwen2.5-3B): cosines 1.0000, norms apart by 2.4e-4 at most.",
    )
    _beside_base(report, found)
    _asked(report, found["asked"])


def _asked(report: Report, asked: Result) -> None:
    """Yes and no to a correct and an incorrect equation."""
    if "refused" in asked:
        report.text(f"It was not asked whether an equation is correct: {escape(asked['refused'])}")
        return
    report.table(
        [
            {
                "equation": side,
                "heads": state,
                "P(yes) / (P(yes) + P(no))": estimate(asked[side][key]["share_positive"]),
                "mass on both": estimate(asked[side][key]["mass"]),
            }
            for side in ("correct", "incorrect")
            for key, state in (("plain", "in place"), ("without", "zeroed"))
        ],
        caption=f"The base model asked whether an equation is correct, n = {asked['n']}. In the "
        "paper, correct ones only: yes .958 with the heads in place, .009 with 29 heads zeroed.",
    )


def _beside_base(report: Report, found: Result) -> None:
    """Lens and activations of both models on the trained model's texts."""
    report.figure(
        static.interval_lines(
            {
                f'"{word}" at t_{group}, {name}': band(sides[group][word])
                for name, sides in found["lens"].items()
                for word, group in (("this", "valid"), ("not", "invalid"))
            },
            x_title="layer",
            y_title="mean probability",
        ),
        "base_lens",
        "Logit lens of the right verdict in both models, on the trained model's texts.",
    )
    apart = found["activations"]
    report.figure(
        static.interval_lines(
            {
                site: (
                    np.array(values),
                    np.array(apart["relative_low"][site]),
                    np.array(apart["relative_high"][site]),
                )
                for site, values in apart["relative"].items()
            },
            x_title="layer",
            y_title="relative difference",
            baseline=0.0,
            baseline_label="none",
        ),
        "base_activations",
        f"|trained - base| / |base| at t_paren, mean over {apart['n']} texts; next-token "
        f"KL(base || trained) {estimate(apart['kl'])} nats.",
    )
