"""Dataclasses of settings that validate themselves: the base of `hta.config` and of the options of every command.

Each field carries its help text, range, unit and choices as metadata; the command lines are built from them.
"""

import json
import math
import operator
import types
import typing
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hta.errors import UserError, parameters_named
from hta.files import check_plain

_MOST_JSON_BYTES = 1 << 24
_MOST_DIGITS = 18
_SHOWN = 100  # characters of a wrong value

_LIMITS = {"low": operator.ge, "high": operator.le, "above": operator.gt, "below": operator.lt}


def option(
    default: Any, text: str, *, low=None, high=None, above=None, below=None, choices=None, unit="", default_note=""
) -> Any:
    """A dataclass field with its command-line help `text`, its valid values and their unit.

    Args:
        default: the value if none is given; None means "not given" and is then valid, whatever the field's type.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        default_note: appended to the default in the help.
    """
    bounds = dict(low=low, high=high, above=above, below=below, choices=choices)
    return field(default=default, metadata=dict(text=text, unit=unit, default_note=default_note, **bounds))


def describe_range(metadata: Mapping[str, Any]) -> str:
    """The valid values of a field in words, such as "0 < value <= 1"; empty if there is no limit."""
    m = {name: value for name, value in metadata.items() if value is not None}
    if "choices" in m:
        return "one of " + ", ".join(map(str, m["choices"]))
    left = f"{m['above']} < " if "above" in m else f"{m['low']} <= " if "low" in m else ""
    right = f" < {m['below']}" if "below" in m else f" <= {m['high']}" if "high" in m else ""
    return f"{left}value{right}" if left or right else ""


def field_type(owner: type, name: str) -> type:
    """The runtime type of a field: `int` for `int | None`, `tuple` for `tuple[str, ...]`, `str` for `Literal`."""
    hint = typing.get_type_hints(owner)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    origin = typing.get_origin(hint) or hint
    return str if origin is typing.Literal else origin


def _in_range(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a value is within the bounds and choices of its field."""
    if metadata.get("choices") is not None:
        return all(one in metadata["choices"] for one in (value if isinstance(value, tuple) else [value]))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return all(metadata.get(name) is None or holds(value, metadata[name]) for name, holds in _LIMITS.items())


@dataclass(frozen=True)
class Checked:
    """Base of the dataclasses of settings, which validates types and ranges on construction.

    Raises:
        UserError: a value of another type or out of range; names the option.
    """

    @parameters_named()
    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), field_type(type(self), f.name)
            if getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
                value = value.item()
            if value is None and f.default is None:
                continue
            if isinstance(value, int) and abs(value) >= 10**_MOST_DIGITS:
                raise UserError(f"--{f.name}: has more than {_MOST_DIGITS} digits")
            if (type(value), kind) in ((int, float), (list, tuple)):
                value = kind(value)
            object.__setattr__(self, f.name, value)
            right_type = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if not right_type or not _in_range(value, f.metadata):
                wanted = describe_range(f.metadata) or f"a value of type {kind.__name__}"
                shown = brief(f"{value}") if isinstance(value, str | int | float) else f"of type {type(value).__name__}"
                raise UserError(f"--{f.name} {shown}: must be {wanted}")


def brief(text: str) -> str:
    """The beginning of a text from outside, with its control characters spelt out."""
    start = text[:_SHOWN]
    return start if start.isprintable() else start.encode("unicode_escape").decode()


def refuse_given(names: Iterable[str], given: Container[str], reason: str) -> None:
    """Refuse, with a UserError, the first of some options that was given on the command line."""
    for name in names:
        if name in given:
            raise UserError(f"--{name}: {reason}")


def read_json(path: Path, version: int) -> dict[str, Any]:
    """The object in a JSON file without its `format_version`; a UserError if it is none or has another version."""
    try:
        check_plain(path, _MOST_JSON_BYTES)
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    found = data.pop("format_version", None) if isinstance(data, dict) else None
    if found != version:
        wanted = f"this version of hta reads format {version}: use the one that wrote the file"
        raise UserError(f"{path}: has format {brief(str(found))}, but {wanted}")
    return data


def require_keys(data: Any, keys: set[str], source: str) -> None:
    """Require a JSON object with exactly these keys, or raise a UserError that names the file, `source`."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: not a JSON object where the keys {', '.join(sorted(keys))} are expected")
    difference = {"unknown": sorted(set(data) - keys), "missing": sorted(keys - set(data))}
    found = "; ".join(f"{kind} key {brief(', '.join(names))}" for kind, names in difference.items() if names)
    if found:
        raise UserError(f"{source}: {found}: not written by this version of hta")


def from_mapping(cls: type, data: Any, source: str) -> Any:
    """Build a dataclass of settings, and those in it, from a JSON object.

    A UserError names the file, `source`, and the unknown or missing key or the value out of range.
    """
    require_keys(data, {f.name for f in fields(cls)}, source)
    kinds = {name: field_type(cls, name) for name in data}
    nested = {name: from_mapping(kind, data[name], source) for name, kind in kinds.items() if is_dataclass(kind)}
    try:
        return cls(**data | nested)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
