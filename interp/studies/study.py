"""What every study has: settings, steps kept on disk under one key, and a way to open it again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Generic, TypeVar

from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.records import read_sealed, write_sealed
from interp.core.run_options import Progress
from interp.core.schema import CheckedSettings
from interp.models.language_model import LanguageModel
from interp.models.registry import known_models
from interp.results.keys import result_key, tokeniser_key
from interp.studies.steps import Results, Steps, read_results, tuples

MANIFEST = "study.json"
SHIPPED = Path(__file__).parent.parent / "data" / "studies"
"""Studies that ship: a folder each, named as the kind and the model, with the report and, where
they are small enough, `study.json` and the steps; what `begin` and `Report.save` write."""

S = TypeVar("S", bound=CheckedSettings)
"""The settings of a kind of study: a frozen dataclass of plain values and tuples of them."""

Kept = TypeVar("Kept")
Counted = TypeVar("Counted")


@dataclass(frozen=True, kw_only=True)
class StudyContext(Generic[S]):
    """What every step of a study starts from.

    progress: called by long steps with (parts done, parts in all).
    """

    model: LanguageModel
    settings: S
    progress: Progress | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `make` gives; computed at the first call with this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def counted(self, parts: Iterable[Counted]) -> Iterator[Counted]:
        """Parts of the work one by one, with progress reported after each."""
        every = list(parts)
        for done, part in enumerate(every, start=1):
            yield part
            if self.progress is not None:
                self.progress(done, len(every))


@dataclass(frozen=True, kw_only=True)
class StudyKind(Generic[S]):
    """A kind of study.

    name: its directories are `studies/<name>-<key>` under the cache. version: of what its steps
    compute; part of every key, so that results of another version are not used. settings: the
    class of its settings. beside: the roles of other models it compares with. rules: what else its
    results depend on, such as the version of the judge that ships.
    """

    name: str
    version: int
    settings: type[S]
    beside: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study(Generic[S]):
    """Results of every step by name, the seconds they took, and where they are kept.

    made: the day of its last run, as 2026-11-23. beside: names of the other models, by role; None
    for a role without a model.
    """

    model: str
    model_hash: str
    beside: dict[str, str | None]
    settings: S
    results: Results
    seconds: dict[str, float]
    directory: Path
    made: str = ""


def begin(
    kind: StudyKind[S],
    model: LanguageModel,
    *beside: LanguageModel | None,
    settings: S,
    key: Sequence[Any] = (),
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Study[S], Steps]:
    """A study, and its steps to call. The results of the steps appear in the study.

    Args:
        kind: of study.
        model: the model studied.
        beside: the other models, or None, in the order of `kind.beside`.
        settings: part of the key.
        key: plain values that every step depends on as well.
        directory: where step results go; by default under the cache, by the key.
        say: called with a line for every step.

    Raises:
        InterpError: the directory cannot be written.
    """
    directory = directory or usual_directory(kind, model, settings, key)
    steps = Steps(directory=directory, key=[study_key(kind, model, settings, key)], say=say)
    names = {role: other and other.name for role, other in zip(kind.beside, beside, strict=True)}
    write_manifest(directory, kind, model.name, model.hash, settings, names, steps.of)
    study = Study(
        model=model.name,
        model_hash=model.hash,
        made=str(date.today()),
        beside=names,
        settings=settings,
        results=steps.results,
        seconds=steps.seconds,
        directory=directory,
    )
    return study, steps


def usual_directory(
    kind: StudyKind[S], model: LanguageModel, settings: S, key: Sequence[Any] = ()
) -> Path:
    """Where `begin` keeps a study that is given no directory."""
    return cache_dir() / "studies" / f"{kind.name}-{study_key(kind, model, settings, key)}"


def study_key(
    kind: StudyKind[S], model: LanguageModel, settings: S, key: Sequence[Any] = ()
) -> str:
    """The key that every step of a study depends on."""
    return str(
        result_key(
            f"study {kind.name}",
            kind.version,
            model,
            rules=kind.rules,
            tokeniser=tokeniser_key(model),
            settings=asdict(settings),
            key=list(key),
        )
    )


def write_manifest(
    directory: Path,
    kind: StudyKind[S],
    model: str,
    model_hash: str,
    settings: S,
    beside: dict[str, str | None],
    of: str,
) -> Path:
    """Write what a directory's study is: its models, its settings and the key of its steps."""
    about = {"model": model, "model_hash": model_hash, "of": of, "beside": beside}
    about |= {"settings": asdict(settings), "made": str(date.today())}
    return write_sealed(directory / MANIFEST, f"study {kind.name}", kind.version, about)


def open_study(kind: StudyKind[S], directory: Path) -> Study[S]:
    """A kept study with the steps it has.

    Raises:
        InterpError: the directory holds no study of the kind.
    """
    try:
        about, _ = read_sealed(directory / MANIFEST, f"study {kind.name}", kind.version)
        settings = kind.settings(**tuples(about["settings"]))
        results, seconds = read_results(directory, about["of"])
        return Study(
            model=about["model"],
            model_hash=about["model_hash"],
            made=about["made"],
            beside={role: about["beside"][role] for role in kind.beside},
            settings=settings,
            results=results,
            seconds=seconds,
            directory=directory,
        )
    except (InterpError, ValueError, TypeError, KeyError) as error:
        raise InterpError(
            f"the study in {directory}", f"no readable {MANIFEST}", "run the study first"
        ) from error


def kept_studies(kind: StudyKind[S]) -> list[Study[S]]:
    """The studies under the cache, newest first, then those that ship; some are unfinished."""
    names = f"{kind.name}-*/{MANIFEST}"
    found, ship = (root.glob(names) for root in study_roots())
    studies = []
    for path in (*sorted(found, key=lambda path: -path.stat().st_mtime), *_in_order(ship)):
        with suppress(InterpError):  # of another version, or damaged
            studies.append(open_study(kind, path.parent))
    return studies


def study_roots() -> tuple[Path, Path]:
    """The folders that hold studies: those made here, and those that ship."""
    return cache_dir() / "studies", SHIPPED


def shipped_reports(kind: StudyKind[Any]) -> list[Path]:
    """The folders of the reports that ship of a kind of study; see `SHIPPED`."""
    return [path.parent for path in _in_order(SHIPPED.glob(f"{kind.name}-*/report.md"))]


def _in_order(files: Iterable[Path]) -> list[Path]:
    """Files of studies that ship: those of the default model first."""
    default = known_models()[0].name
    return sorted(files, key=lambda path: (not path.parent.name.endswith(default), path))
