"""What a checkpoint holds beside the weights, checked before a run goes on with it: type, size and range of each field.

torch itself would fail deep inside, wait for ever or crash: an Adam state of another shape is read beyond its end.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sed.data.torch_files import finite, plain_numbers
from sed.runtime.checkpoint_files import REMEDY, CheckpointError
from sed.runtime.rng import rng_state, set_rng_state

LARGEST = 2**31 - 1
# What an optimizer remembers of a parameter once it has changed it
_REMEMBERED = {"SGD": ("momentum_buffer",), "Adam": ("step", "exp_avg", "exp_avg_sq")}
_WAYS = (".fused", ".foreach")  # how torch computes, not what
_SHARES = ("betas", "momentum", "dampening")  # options from 0 to 1


class Field:
    """A value of a checkpoint and where it stands; its errors name file, field, value and what was expected.

    Args:
        value: whatever the file has.
        path: of the file.
        name: dotted; "": the whole of it.
    """

    def __init__(self, value: Any, path: str | Path, name: str = "") -> None:
        self.value, self.path, self.name = value, path, name

    def wrong(self, expected: str) -> CheckpointError:
        """The error of this field."""
        return CheckpointError(
            f"{self.path}: {self.name or 'the content'} is {_shown(self.value)}; expected {expected}; {REMEDY}"
        )

    def __getitem__(self, key: str | int) -> Field:
        table = self.table()
        if key not in table:
            raise CheckpointError(
                f"{self.path}: {self.name or 'the content'} has no {key!r}; expected a checkpoint of this kind of run; "
                f"{REMEDY}"
            )
        return table[key]

    def table(self) -> dict[Any, Field]:
        """The fields of a dictionary."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("a dictionary")
        prefix = f"{self.name}." if self.name else ""
        return {key: Field(value, self.path, f"{prefix}{key}") for key, value in self.value.items()}

    def rows(self, count: int | None = None) -> list[Field]:
        """The items of a list of `count` (None: any number)."""
        if not isinstance(self.value, (list, tuple)) or count not in (None, len(self.value)):
            raise self.wrong(f"a list of {count}" if count is not None else "a list")
        return [Field(value, self.path, f"{self.name}[{i}]") for i, value in enumerate(self.value)]

    def processes(self) -> list[Field]:
        """The items of a list that has one for each process of a run."""
        if not self.rows():
            raise self.wrong("a list of one for each process")
        return self.rows()

    def whole(self, low: int = 0, high: int = LARGEST) -> int:
        """A whole number within limits."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"a whole number from {low} to {high}" if low < high else str(low))
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A number; without limits also NaN, which a metric without ground truth is."""
        free = low == -math.inf and high == math.inf
        if type(self.value) not in (int, float) or not (free or low <= self.value <= high):
            raise self.wrong("a number" if free else f"a number from {low:g} to {high:g}")
        return self.value

    def text(self) -> str:
        """A text."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def flag(self) -> bool:
        """True or False."""
        if type(self.value) is not bool:
            raise self.wrong("True or False")
        return self.value

    def tensor(self, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
        """A tensor of plain, finite numbers of a shape and of one of some types (none: any floating-point one)."""
        value = self.value
        kind = " or ".join(map(str, dtypes)) if dtypes else "floating-point numbers"
        fits = isinstance(value, Tensor) and plain_numbers(value) and tuple(value.shape) == tuple(shape)
        if not fits or not (value.dtype in dtypes if dtypes else value.is_floating_point()):
            raise self.wrong(f"a tensor of shape {tuple(shape)} of {kind}")
        if not finite(value):
            raise self.wrong("finite numbers alone")
        return value

    def like(self, own: Any) -> None:
        """An option of an optimizer: a flag that is `own`, or numbers of the type of `own` and at least 0."""
        high = 1.0 if self.name.rpartition(".")[2].partition("[")[0] in _SHARES else LARGEST
        if isinstance(own, bool) or own is None:
            if self.name.endswith(_WAYS):
                if self.value is not None:
                    self.flag()
            elif self.value is not own:
                raise self.wrong(f"{own}, as here")
        elif isinstance(own, (int, float)):
            self.number(0, high)
        elif isinstance(own, (list, tuple)):
            for row, value in zip(self.rows(len(own)), own, strict=True):
                row.like(value) if not isinstance(value, float) else row.number(0, high)


def check_step(field: Field, path: str | Path, before: int = 0) -> int:
    """The steps of a checkpoint, which its name tells too; `before`: how many fewer the field has."""
    named = re.fullmatch(r"checkpoint_(\d+)", Path(path).stem)
    return field.whole(int(named[1]) - before, int(named[1]) - before) if named else field.whole(-before)


def check_tensors(field: Field, own: Mapping[str, Tensor]) -> None:
    """The tensors of a module by name: shapes and kinds of number are those of `own`, and all of them finite.

    Batch norm's `num_batches_tracked` may be missing: old files have none.
    """
    found = field.table()
    if unknown := next((name for name in found if name not in own), None):
        raise CheckpointError(
            f"{field.path}: {field.name} has {unknown}, unknown here; use the config it was made with"
        )
    for name, value in own.items():
        if name in found:
            found[name].tensor(tuple(value.shape), (value.dtype,))
        elif not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"{field.path}: {field.name} has no {name}; use the config it was made with")


def check_optimizer(field: Field, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's `state_dict`, against one that is about to load it."""
    groups, own = field["param_groups"], optimizer.state_dict()["param_groups"]
    hint = f"{type(optimizer).__name__} of this config's model; see SOLVER.*"
    if not isinstance(groups.value, (list, tuple)) or len(groups.value) != len(own):
        raise groups.wrong(f"the {len(own)} groups of {hint}")
    for row, mine in zip(groups.rows(), own, strict=True):
        table = row.table()
        for key, value in mine.items():
            optional = value is None or isinstance(value, bool)  # torch fills in what an older version did not have
            if key not in table and not optional:
                raise row.wrong(f"{key!r} in it, as {hint} has it")
            if key == "params":
                if [number.value for number in table[key].rows() if type(number.value) is int] != value:
                    raise table[key].wrong(f"the {len(value)} parameters of {hint}")
            elif key in table:
                table[key].like(value)
        if all(key in table and table[key].value for key in ("fused", "foreach")):
            raise table["foreach"].wrong("False beside fused")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = next((_REMEMBERED[k.__name__] for k in type(optimizer).__mro__ if k.__name__ in _REMEMBERED), ())
    for number, row in field["state"].table().items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise row.wrong(f"none such: there are {len(parameters)} parameters")
        table = row.table()
        if table and (lost := [name for name in names if name not in table]):
            raise row.wrong(f"{lost[0]!r} in it, as {hint} has it")
        for name, value in table.items():
            if name == "step":
                if not isinstance(value.value, (int, float)):
                    value.tensor(())
                steps = float(value.value)
                if isinstance(value.value, bool) or not 0 <= steps <= LARGEST or steps % 1:
                    raise value.wrong("a number of steps")
            elif value.value is not None or name != "momentum_buffer":
                tensor = value.tensor(tuple(parameters[number].shape))
                if name.endswith("_sq") and tensor.numel() and tensor.min() < 0:
                    raise value.wrong("squares, at least 0")


def check_scaler(field: Field, own: Mapping[str, Any]) -> None:
    """The state of a loss scaler, against its own; an unused one has none."""
    field.table()
    for key, value in own.items():
        if isinstance(value, float):  # the scale has no limit but its type's
            field[key].number(0, sys.float_info.max)
        else:
            field[key].like(value)


def check_window(field: Field) -> None:
    """The sums of losses since the last line of the log; a loss may have been infinite."""
    sums, counts = field["sums"].table(), field["counts"].table()
    if sums.keys() != counts.keys():
        raise field["counts"].wrong(f"a count of each of {', '.join(map(str, sums))}"[:200])
    for name, row in sums.items():
        value = row.value
        if not isinstance(value, Tensor) or not plain_numbers(value) or value.shape or value.dtype != torch.double:
            raise row.wrong("one number of type torch.float64")
        counts[name].whole(1)


def check_scores(field: Field) -> None:
    """Metrics by name."""
    for name, row in field.table().items():
        if not isinstance(name, str):
            raise row.wrong("a name in place of a number")
        row.number()


def check_rng(field: Field) -> None:
    """The states of a process's random generators, as `rng_state` has them."""
    now = rng_state()
    field["torch"].tensor(tuple(now["torch"].shape), (torch.uint8,))
    if field["cuda"].value is not None:
        field["cuda"].tensor((16,), (torch.uint8,))
    kind, keys, position, has_gauss, gauss = field["numpy"].rows(5)
    if kind.text() != "MT19937":
        raise kind.wrong("MT19937")
    keys.tensor((624,), (torch.int64,))
    position.whole(0, 624)
    has_gauss.whole(0, 1)
    gauss.number()
    version, internal, gauss_next = field["python"].rows(3)
    version.whole(3, 3)
    for row in internal.rows(625):
        row.whole(0, 2**32 - 1)
    internal.rows()[-1].whole(0, 624)
    if gauss_next.value is not None:
        gauss_next.number()
    try:  # the generators look at the rest themselves
        set_rng_state({**field.value, "cuda": None})
    except (RuntimeError, TypeError, ValueError) as error:
        told = str(error).splitlines()[0][:100]
        raise CheckpointError(
            f"{field.path}: {field.name} is no state of random generators ({told}); {REMEDY}"
        ) from None
    finally:
        set_rng_state({**now, "cuda": None})


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = value.dtype if plain_numbers(value) else f"{value.dtype}, sparse, quantised or without values"
        return f"a tensor of shape {tuple(value.shape)} of {numbers}"
    if isinstance(value, (Mapping, list, tuple, set)) and len(value) > 3:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
