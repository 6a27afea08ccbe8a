"""Reads a config: the defaults of `sed.defaults`, then its files, then `KEY VALUE` overrides; all values are checked.

    cfg = load_config("configs/quickstart.yaml", ["SOLVER.BASE_LR", "0.001"])

A config file holds only what differs from the defaults. It may name one `_BASE_` file, which may name none itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from sed.defaults import OLD_KEYS, OLD_VALUES, ROWS, get_cfg
from sed.options.option import LARGEST, Row, unlikely

BASE_KEY = "_BASE_"
ZOO = "model_zoo://"  # begins a `_BASE_` that is a config of Detectron2's own model zoo


class ConfigError(ValueError):
    """A config file or an override that cannot be used; the message names the file, the key and the remedy."""


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    defaults: CfgNode | None = None,
    options: Mapping[str, Row] = ROWS,
) -> CfgNode:
    """The config of a file: the defaults, its `_BASE_`, the file itself and the overrides, in this order.

    Args:
        path: YAML; None: the defaults.
        overrides: KEY, VALUE, KEY, VALUE, ...
        defaults: the config to start from; None: `get_cfg()`. The Detectron2 engine has more keys.
        options: key -> what its value may be.

    Raises:
        ConfigError: for a missing file, an unknown key (naming the nearest known one), a value of another type,
            a second `_BASE_` hop or an odd number of override words.
    """
    cfg = get_cfg() if defaults is None else defaults
    base, layers = read_layers(path)
    if base and defaults is None:
        raise ConfigError(f"{path}: {BASE_KEY} {base} is a Detectron2 config, but ENGINE is not detectron2")
    layers += [("command line", node) for node in _pairs(overrides)]
    for origin, values in layers:
        _merge(cfg, values, origin)
    check(cfg, options)
    return cfg


def read_layers(path: str | Path | None) -> tuple[str, list[tuple[str, dict]]]:
    """Reads the files of a config without checking their keys.

    Args:
        path: YAML; None: no file.

    Returns:
        The Detectron2 config that they start from, "" unless the last `_BASE_` begins with "model_zoo://" (Detectron2
        engine only); and (origin, values) of each file, the base first.

    Raises:
        ConfigError: for a missing file, one that is not a YAML mapping, or a second `_BASE_` hop.
    """
    if path is None:
        return "", []
    values = read_yaml(Path(path))
    layers = [(str(path), values)]
    base = _base_of(values, path)
    if base and not base.startswith(ZOO):
        base_path = Path(path).parent / base
        base_values = read_yaml(base_path)
        layers.insert(0, (str(base_path), base_values))
        base = _base_of(base_values, base_path)
        if base and not base.startswith(ZOO):
            raise ConfigError(f"{base_path}: a {BASE_KEY} file may not name a {BASE_KEY} itself; copy its keys")
    return base, layers


def _base_of(values: dict, path: str | Path) -> str:
    """Takes `_BASE_` out of a file's values; "": it has none."""
    base = values.pop(BASE_KEY, None)
    if base is not None and not (isinstance(base, str) and base):
        raise ConfigError(f"{path}: {BASE_KEY} is {base!r}; expected the path of a config file")
    return base or ""


def read_value(key: str, path: str | Path | None, overrides: Sequence[str] = ()) -> object:
    """The value of a top-level key, without a check of the others: ENGINE decides how they are checked."""
    value = get_cfg()[key]
    for _, values in read_layers(path)[1] + [("", node) for node in _pairs(overrides)]:
        value = values.get(key, value)
    return value


def _pairs(overrides: Sequence[str]) -> list[dict]:
    for word in overrides[::2]:
        if word.startswith("--"):
            raise ConfigError(f"command line: {word} stands among KEY VALUE pairs; put flags before the first KEY")
    if len(overrides) % 2:
        raise ConfigError(f"command line: expected pairs KEY VALUE, got {' '.join(overrides)!r}")
    nodes = []
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *parents, leaf = key.split(".")
        try:
            node: dict = {leaf: CfgNode._decode_cfg_value(value)}
        except (RecursionError, MemoryError, TypeError):  # of Python's parser: nested too deep
            raise ConfigError(f"command line: {key} has a value that cannot be read: {value[:40]}...") from None
        for parent in reversed(parents):
            node = {parent: node}
        nodes.append(node)
    return nodes


def read_yaml(path: Path, what: str = "config file") -> dict:
    """The mapping of a YAML file; an empty file is an empty one.

    Args:
        path: of the file.
        what: it is, for the message.

    Raises:
        ConfigError: for a file that is missing, no regular file, no text or no mapping.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigError(
                f"{path}: expected a {what}, this is {'a folder' if path.is_dir() else 'no regular file'}"
            )
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            leaves(values)  # ends where an anchor holds itself
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        told = "nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{path}: not YAML: {told}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(values).__name__}")
    return values


def leaves(node: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Every (dotted key, value) of a tree of mappings."""
    rows: list[tuple[str, object]] = []
    for key, value in node.items():
        full = f"{prefix}{key}"
        rows += leaves(value, f"{full}.") if isinstance(value, dict) else [(full, value)]
    return rows


def _merge(cfg: CfgNode, values: dict, origin: str) -> None:
    known = dict(leaves(cfg))
    for key, value in leaves(values):
        if key in OLD_KEYS:
            raise ConfigError(f"{origin}: {key} {OLD_KEYS[key]}")
        if isinstance(value, str) and (key, value) in OLD_VALUES:
            raise ConfigError(f"{origin}: {key} {value}: {OLD_VALUES[key, value]}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{origin}: unknown key {key}; the nearest known one is {near}")
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        try:
            node[leaf] = _coerce(value, known[key])
        except (TypeError, ValueError):
            want, got = type(known[key]).__name__, type(value).__name__
            raise ConfigError(f"{origin}: {key} expects {want} (default {known[key]!r}), got {got} {value!r}") from None


def _coerce(value: object, default: object) -> object:
    """`value` in the type of `default`; TypeError or ValueError where the conversion would lose something."""
    if default is None:  # Detectron2's "as another key": no type to compare with
        return value
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, str):
        if value is None:
            return ""
        if isinstance(value, (str, int, float)):
            return str(value)
    elif isinstance(default, float):
        if isinstance(value, (int, float, str)):  # YAML reads 1e-4 as a string
            return float(value)
    elif isinstance(default, int):
        if isinstance(value, int):
            return value
    elif isinstance(default, (tuple, list)):
        if isinstance(value, str):  # one name where names are expected
            return type(default)([value])
        if isinstance(value, (tuple, list)):
            return type(default)(value)
    raise TypeError


def check(cfg: CfgNode, options: Mapping[str, Row]) -> None:
    """Raise ConfigError for a value that its key does not allow."""
    for key, value in leaves(cfg):
        if key in options and unlikely(value):
            raise ConfigError(f"{key} is {str(value)[:40]}; expected finite numbers up to {LARGEST}")
        if key in options and (wrong := options[key].wrong(value)):
            raise ConfigError(f"{key} {wrong}")
