"""How an option is declared, and how a dataclass of options is read from a section of the config."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**31 - 1  # of any number: seeds and sizes of tensors end there


@dataclass(frozen=True)
class Row:
    """One option as the config knows it.

    Attributes:
        key: dotted, in capitals.
        default: see `kind`.
        meaning: one line for docs/options.md.
        choices: the values that it may have; empty: any.
        low: least value of a number, or of each number of a list.
        high: largest value.
        count: least and largest length of a list; lists within it hold one value or more.
        kind: the type: bool, int, float, str, or a list or tuple of them or of lists.
    """

    key: str
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    low: float = -inf
    high: float = inf
    count: tuple[float, float] = (0, inf)
    kind: Any = None

    def wrong(self, value: Any) -> str:
        """What is wrong with a value, as the rest of a sentence that begins with the key; "": nothing."""
        if self.choices and value not in self.choices:
            return f"is {value!r}; it must be one of {', '.join(map(str, self.choices))}"
        if self.kind in (int, float) and not self.low <= value <= self.high:
            return f"must be {_range(self.low, self.high)}, not {value}"
        if get_origin(self.kind) in (list, tuple):
            low, high = self.count
            if not (low <= len(value) <= high and all(self._fits(v, get_args(self.kind)[0]) for v in value)):
                return f"is {value!r}; expected {_how_many(low, high)}{_named(get_args(self.kind)[0])}" + (
                    f" {_range(self.low, self.high)}" if (self.low, self.high) != (-inf, inf) else ""
                )
        return ""

    def _fits(self, value: Any, kind: Any) -> bool:
        if get_origin(kind) in (list, tuple):
            inner = get_args(kind)[0]
            return isinstance(value, (list, tuple)) and len(value) > 0 and all(self._fits(v, inner) for v in value)
        if kind is str:
            return isinstance(value, str)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (whole or (kind is float and isinstance(value, float))) and self.low <= value <= self.high


def unlikely(value: Any) -> bool:
    """Whether a value is, or holds, a number that is infinite, no number, or larger than `LARGEST`."""
    if isinstance(value, (list, tuple)):
        return any(map(unlikely, value))
    return isinstance(value, (int, float)) and not abs(value) <= LARGEST


def _range(low: float, high: float) -> str:
    return f"at least {low}" if high == inf else f"from {low} to {high}"


def _how_many(low: float, high: float) -> str:
    return f"{low} " if low == high else f"{low} or more " if high == inf else f"{low} to {high} "


def _named(kind: Any) -> str:
    if get_origin(kind) in (list, tuple):
        return f"lists of {_named(get_args(kind)[0])}"
    return {int: "whole numbers", float: "numbers", str: "words"}[kind]


def option(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[Any] = (),
    low: float = -inf,
    high: float = inf,
    count: tuple[float, float] = (0, inf),
) -> Any:  # Any: it is assigned to fields of every type
    """A field of a dataclass of options; the arguments are those of `Row`."""
    more = {"meaning": meaning, "choices": tuple(choices), "low": low, "high": high, "count": count}
    if isinstance(default, list):  # each config gets a list of its own
        return field(default_factory=lambda: copy.deepcopy(default), metadata=more)
    return field(default=default, metadata=more)


def section(kind: type[T]) -> T:
    """A field that is itself a dataclass of options: a section within the section."""
    return field(default_factory=kind)


def rows(kind: type, prefix: str = "") -> Iterator[Row]:
    """Every option of a dataclass and of those within it, in the order of declaration."""
    types = get_type_hints(kind)
    for each in fields(kind):
        key = f"{prefix}{each.name.upper()}"
        inner = _inner(each)
        if inner is not None:
            yield from rows(inner, f"{key}.")
        else:
            default = each.default_factory() if callable(each.default_factory) else each.default
            yield Row(key, default, **each.metadata, kind=types[each.name])


def from_section(kind: type[T], section: Mapping[str, Any]) -> T:
    """The dataclass that a section of a config describes, field by field."""
    values = {}
    for each in fields(kind):  # type: ignore[arg-type]
        value, inner = section[each.name.upper()], _inner(each)
        values[each.name] = value if inner is None else from_section(inner, value)
    return kind(**values)


def _inner(each: Field) -> type | None:
    """The dataclass of a field that is a section; None for an option."""
    factory = each.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None
