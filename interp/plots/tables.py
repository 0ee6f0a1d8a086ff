"""Results in notebooks and terminals: a line, a table, and bars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any, ClassVar, TypeVar

from interp.core.errors import InterpError
from interp.core.schema import Brief
from interp.plots.style import visible

T = TypeVar("T")

MOST = 12
"""The most rows of a table in a notebook, and of records in a line."""


class Tabled(Brief):
    """A result with `to_dataframe()`: a notebook shows its line and the first rows of the table.

    Attributes:
        strongest_by: the column by whose absolute value rows are sorted first; None keeps them.
    """

    strongest_by: ClassVar[str | None] = None

    def to_dataframe(self) -> Any:
        """The result as a pandas DataFrame."""
        raise NotImplementedError

    def _shown(self) -> Any:
        """The DataFrame that a notebook shows."""
        table = self.to_dataframe()
        if self.strongest_by is not None:
            table = table.sort_values(self.strongest_by, key=abs, ascending=False, kind="stable")
        return table.head(MOST)

    def _repr_html_(self) -> str:
        line = f"<p>{escape(repr(self))}</p>"
        try:
            shown = self._shown().map(_spelled)
        except InterpError:  # such as fractions of a gap that is 0
            return line
        return line + shown.to_html(index=False, float_format="{:z.3f}".format, border=0)


class Listing(Tabled, list[T]):
    """A list of records that have a `label` and a `value`: a line, a table, and bars.

    Attributes:
        measure: what the value is, with its unit.
    """

    def __init__(self, records: Iterable[T], measure: str) -> None:
        super().__init__(records)
        self.measure = measure

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Listing(found, self.measure) if isinstance(at, slice) else found

    def __repr__(self) -> str:
        shown = ", ".join(f"{one.label} {one.value:z.3f}" for one in self[:MOST])  # type: ignore[attr-defined]
        more = f", and {len(self) - MOST} more" if len(self) > MOST else ""
        return f"[{shown}{more}]"

    def to_dataframe(self) -> Any:
        """One row per record."""
        from pandas import DataFrame

        rows = [{name: _plain(value) for name, value in _named(one)} for one in self]
        return DataFrame(rows).rename(columns={"value": self.measure})

    def plot(self) -> Any:
        """A Plotly figure of the values as bars, from the first record downwards."""
        from interp.plots.components import bars

        return bars([(one.label, one.value) for one in self], x_title=self.measure)  # type: ignore[attr-defined]


def _named(one: Any) -> list[tuple[str, Any]]:
    """The fields of a dataclass or a named tuple, with their values."""
    names = [field.name for field in fields(one)] if is_dataclass(one) else one._fields
    return [(name, getattr(one, name)) for name in names]


def _plain(value: Any) -> Any:
    """A number or a text as it is, anything else in words."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _spelled(value: Any) -> Any:
    """A text with visible spaces if it begins or ends with one, which a table would not show."""
    return visible(value) if isinstance(value, str) and value != value.strip() else value
