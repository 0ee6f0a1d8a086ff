"""The paper's numbers on texts under intervention, with ours.

Numbers are those of the released notebooks and posts (ajyl/self_verification, ajyl/verify_circuit,
ajyl.github.io) on a Qwen2.5-3B trained on CountDown: 36 layers, 576 heads, 396,288 GLU neurons.
"""

from __future__ import annotations

from interp.studies.steps import Result

V1 = {
    "none": (0.0, 0.0),
    "GLU_Valid": (16.3, 1.0),
    "GLU_Valid and GLU_Invalid": (33.0, 10.67),
    "A_Prev": (93.33, 6.0),
    "A_Verif": (92.33, 7.33),
}
"""Success and partial in percent by rule `v1`, n = 300 (none: n = 20)."""

FINAL = {
    "none": (0.0, 0.0, 100.0),
    "GLU_Valid": (16.33, 1.0, 82.67),
    "GLU_Valid and GLU_Invalid": (44.67, 2.33, 53.0),
    "A_Prev": (96.0, 3.67, 0.33),
    "A_Verif": (95.33, 4.67, 0.0),
}
"""Success, partial and fail in percent by rule `final`, of the same texts."""

INTERVALS = {
    "GLU_Valid": (12.6, 20.9),
    "GLU_Valid and GLU_Invalid": (39.1, 50.3),
    "A_Prev": (93.1, 97.7),
    "A_Verif": (92.3, 97.2),
}
"""Wilson's 95 % interval of that success, which was not published."""

Results = dict[str, Result]


def outcomes(results: Results) -> list[tuple[str | float, ...]]:
    """The texts under intervention by every published rule, in percent, with the paper's."""
    found, close = (results[f"interventions{end}"]["rows"] for end in ("", "_published"))
    rows = []
    for name, x in found.items():
        paper = name.removesuffix(" (published)")
        if paper == name and f"{name} (published)" in found:
            paper = ""  # the paper's numbers are shown with its own choice of heads
        interval = INTERVALS.get(paper)
        rows.append(
            (
                name,
                x["outcomes"]["next_token"]["success"]["mean"],
                _percent(x, "v1", ("success", "partial")),
                _slashed(V1.get(paper)),
                _percent(x, "final"),
                _slashed(FINAL.get(paper)),
                "–" if interval is None else "{:g} to {:g}".format(*interval),
                _percent(close[name], "final"),
            )
        )
    return rows


def _percent(
    row: Result, rule: str, kinds: tuple[str, ...] = ("success", "partial", "fail")
) -> str:
    return _slashed(tuple(100 * row["outcomes"][rule][kind]["mean"] for kind in kinds))


def _slashed(values: tuple[float, ...] | None) -> str:
    return "–" if values is None else " / ".join(f"{round(value, 2):g}" for value in values)
