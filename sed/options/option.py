"""How an option is declared, and how a dataclass of options is read from a section of the config."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One option as the config knows it.

    Attributes:
        key: dotted, in capitals.
        default: its type is the key's type.
        meaning: one line for docs/options.md.
        choices: the values that it may have; empty: any.
        low: least value of a number.
        high: largest value.
    """

    key: str
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    low: float = -inf
    high: float = inf


def option(
    default: Any, meaning: str, *, choices: Sequence[Any] = (), low: float = -inf, high: float = inf
) -> Any:  # Any: it is assigned to fields of every type
    """A field of a dataclass of options; the arguments are those of `Row`."""
    more = {"meaning": meaning, "choices": tuple(choices), "low": low, "high": high}
    if isinstance(default, list):  # each config gets a list of its own
        return field(default_factory=lambda: copy.deepcopy(default), metadata=more)
    return field(default=default, metadata=more)


def section(kind: type[T]) -> T:
    """A field that is itself a dataclass of options: a section within the section."""
    return field(default_factory=kind)


def rows(kind: type, prefix: str = "") -> Iterator[Row]:
    """Every option of a dataclass and of those within it, in the order of declaration."""
    for each in fields(kind):
        key = f"{prefix}{each.name.upper()}"
        inner = _inner(each)
        if inner is not None:
            yield from rows(inner, f"{key}.")
        else:
            default = each.default_factory() if callable(each.default_factory) else each.default
            yield Row(key, default, **each.metadata)


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
