"""`interp study`: published studies redone, each one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.terminal import about

if TYPE_CHECKING:
    from interp.models.language_model import LanguageModel
    from interp.studies.report.report import Report
    from interp.studies.study import Study

ReportDir = Annotated[
    Path | None,
    typer.Option(
        callback=lambda path: terminal.tried(path, folder=True),
        help="Folder of the report, in a folder that exists; by default beside the steps.",
    ),
]
study_app = typer.Typer(help="Redo a published study, with controls.", no_args_is_help=True)


@study_app.callback()
def study() -> None:
    """Redo a published study, with controls."""


@study_app.command(
    "verification",
    epilog="Example: interp study verification --model countdown-smollm2 --n 60 --out report",
)
def study_verification_command(
    model: Annotated[str, about("A model that writes CountDown chains of thought.")],
    base: Annotated[
        str | None, about("The model it was trained from; known for models that ship.")
    ] = None,
    n: Annotated[
        int, about("Samples, at least 40. Half are valid; half of each kind is held out.")
    ] = 300,
    draws: Annotated[int, about("Random sets for each selection.")] = 50,
    seed: terminal.SeedOption = 0,
    template: Annotated[
        str,
        about(
            "short (models trained here), paper (the released checkpoint), in-context (shows "
            "the format by worked examples: base models, R1-Distill), or a text file with "
            "{numbers} and {target}, a chat template's special tokens included."
        ),
    ] = "short",
    operands: Annotated[
        str, about("How many numbers a problem has; 3 is easier and shorter.")
    ] = "3,4",
    max_new_tokens: Annotated[
        int, about("Token limit of a chain of thought; truncated ones count too.")
    ] = 300,
    attempts: Annotated[int, about("Attempts of a text that may become samples.")] = 5,
    window: Annotated[
        int, about('Tokens changed at a verdict: 2 (the last digit and " (") or 1 (" (").')
    ] = 2,
    top_k: Annotated[
        str, about("Numbers of GLU vectors per layer to try; the strongest is kept.")
    ] = "10,50",
    threshold: Annotated[
        float, about("Attention to the target from which a head counts as A_Prev.")
    ] = 0.1,
    pairs: Annotated[int, about("Valid-invalid pairs patched, at most.")] = 32,
    dtype: terminal.Dtype = "float32",
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    out: ReportDir = None,
) -> None:
    """How a model checks its own answers (arXiv 2504.14379): every step, one report; resumes.

    Any model that writes attempts as "- 84 - 60 + 47 = 71 (this works)", by training or by its
    prompt, with a tokeniser (such as Qwen2.5's) that keeps digits, " (", "this" and "not" apart.
    """
    from interp.models.registry import base_of
    from interp.studies.verification.report.report import write_up
    from interp.studies.verification.settings import VerificationSettings
    from interp.studies.verification.study import study_verification
    from interp.tasks.countdown import TEMPLATES, make_countdown

    settings = VerificationSettings(
        n=n,
        draws=draws,
        seed=seed,
        template=terminal.text_of(template, TEMPLATES),
        operands=tuple(terminal.numbers(operands) or ()),
        max_new_tokens=max_new_tokens,
        attempts=attempts,
        window=window,
        top_k=tuple(terminal.numbers(top_k) or ()),
        threshold=threshold,
        pairs=pairs,
    )
    make_countdown(1, operands=settings.operands)[0].prompt(settings.template)
    names = [model, base or base_of(model)]
    run_study(
        study_verification, names, dtype, (workers, cluster), write_up, out, settings=settings
    )


@study_app.command(
    "reuse", epilog="Example: interp study reuse --model smollm2-135m-instruct --out report"
)
def study_reuse_command(
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    trained: Annotated[
        str | None, about("The model trained on Colored Objects; known for models that ship.")
    ] = None,
    n: Annotated[int, about("Prompts patched for each task.")] = 48,
    tested: Annotated[int, about("Other prompts, for accuracies.")] = 150,
    sets: Annotated[int, about("Random sets for each intervention.")] = 30,
    share: Annotated[float, about("The most heads kept at a stage, as a share of all.")] = 0.02,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    out: ReportDir = None,
) -> None:
    """Do tasks share circuits (arXiv 2310.08744): every step, one report; resumes."""
    from interp.studies.reuse.report.report import write_up
    from interp.studies.reuse.settings import ReuseSettings
    from interp.studies.reuse.study import study_reuse, trained_from

    settings = ReuseSettings(n=n, tested=tested, sets=sets, share=share, seed=seed)
    names = [model, trained or trained_from(model)]
    run_study(study_reuse, names, dtype, (workers, cluster), write_up, out, settings=settings)


@study_app.command(
    "refusal", epilog="Example: interp study refusal --model smollm2-135m-instruct --out report"
)
def study_refusal_command(
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    prompts: Annotated[
        str | None,
        about(
            "Your own prompts: a .jsonl or .csv file, or hf://owner/name@commit/file of a "
            "data set. Columns: row (an id), prompt, should (answer or refuse); optional task, "
            "kind and base (the text a prompt is written around). Else shipped ones: requests "
            "that a text model cannot meet, or the taboo for the models trained on it."
        ),
    ] = None,
    sha256: Annotated[
        str, about("SHA-256 of that file, as sha256sum prints it; with hf:// the commit will do.")
    ] = "",
    judge: Annotated[
        str,
        about(
            "Who judges the replies: rules, substrings, or FILE.py:FUNCTION of your own, "
            "(prompt, reply) to direct_answer, direct_refusal, indirect_refusal or borderline."
        ),
    ] = "rules",
    system: Annotated[
        str | None, about("A system prompt with a policy: in-context refusal.")
    ] = None,
    n: Annotated[int, about("Shipped prompts of each kind and task; 0 for the usual.")] = 0,
    pairs: Annotated[int, about("Prompt pairs heads are found on.")] = 8,
    select: Annotated[int, about("Prompts a candidate is scored on.")] = 12,
    thin: Annotated[int, about("Candidate directions at every k-th layer only.")] = 2,
    draws: Annotated[int, about("Random sets for each selection; at least 20 for heads.")] = 10,
    max_new_tokens: Annotated[int, about("Token limit of a reply; 0 for the usual.")] = 0,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    out: ReportDir = None,
) -> None:
    """What makes a chat model refuse (arXiv 2406.11717, 2508.11290): one report; resumes."""
    from interp.refusal.cases import cases_from
    from interp.refusal.judging import judge_named
    from interp.studies.refusal.report.report import write_up
    from interp.studies.refusal.settings import RefusalSettings

    judge_named(judge)
    settings = RefusalSettings(
        n=n, pairs=pairs, select=select, thin=thin, draws=draws, max_new_tokens=max_new_tokens,
        seed=seed, system=system,
    )  # fmt: skip
    cases = None if prompts is None else cases_from(prompts, sha256=sha256)
    options = {"judge": judge, "cases": cases, "settings": settings}
    run_study(_refusals, [model], dtype, (workers, cluster), write_up, out, **options)


def _refusals(model: LanguageModel, *, judge: str, **options: Any) -> Study[Any]:
    """The study under a judge by name: another process cannot be sent the judge itself."""
    from interp.refusal.judging import judge_named
    from interp.studies.refusal.study import study_refusal

    return study_refusal(model, judge=judge_named(judge), **options)


def run_study(
    study: Callable[..., Study[Any]],
    names: Sequence[str | None],
    dtype: str,
    shared: tuple[int, str | None],
    write_up: Callable[[Study[Any]], Report],
    out: Path | None,
    **options: Any,
) -> None:
    """Run the study of the models of these names, and save its report.

    `shared`: how many processes share the steps, and of which cluster.
    """
    from interp.studies.workers import step_workers

    run = partial(_study, study, names, dtype, options)
    begin = monotonic()
    workers, cluster = shared
    with terminal.processes(workers, cluster), step_workers(run, workers):
        done = run(say=terminal.say)
    terminal.say(f"all steps are done after {(monotonic() - begin) / 60:z.1f} minutes")
    path = write_up(done).save(out or done.directory)
    minutes = sum(done.seconds.values()) / 60
    terminal.say(f"The report is {path}, from {minutes:z.1f} minutes of computing.")


def _study(
    study: Callable[..., Study[Any]],
    names: Sequence[str | None],
    dtype: str,
    options: dict[str, Any],
    **said: Callable[[str], None],
) -> Study[Any]:
    models = [terminal.load(name, dtype) if name else None for name in names]
    return study(*models, **options, **said)
