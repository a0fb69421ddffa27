"""Dataclasses of settings that validate themselves: the base of `hta.config` and of the options of every command.

Each field carries its help text, range, unit and choices as metadata; the command lines are built from them.
"""

import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hta.errors import UserError


def option(
    default: Any, text: str, *, low=None, high=None, above=None, below=None, choices=None, unit="", default_note=""
) -> Any:
    """A dataclass field that knows its command-line help and its valid values.

    Args:
        default: the value if none is given; None means "not given" and is then valid, whatever the field's type.
        text: help for the command line.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        choices: the only valid values.
        unit: of the value, for the help.
        default_note: appended to the default in the help.
    """
    bounds = dict(low=low, high=high, above=above, below=below, choices=choices)
    return field(default=default, metadata=dict(text=text, unit=unit, default_note=default_note, **bounds))


def describe_range(metadata: Mapping[str, Any]) -> str:
    """The valid values of a field in words, such as "0 < value <= 1"; empty if there is no limit."""
    if metadata["choices"]:
        return "one of " + ", ".join(str(c) for c in metadata["choices"])
    left = f"{metadata['low']} <= " if metadata["low"] is not None else ""
    left = f"{metadata['above']} < " if metadata["above"] is not None else left
    right = f" <= {metadata['high']}" if metadata["high"] is not None else ""
    right = f" < {metadata['below']}" if metadata["below"] is not None else right
    return f"{left}value{right}" if left or right else ""


def field_type(owner: type, name: str) -> type:
    """The runtime type of a field's values: `int` for `int | None`, `tuple` for `tuple[str, ...]`."""
    hint = typing.get_type_hints(owner)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return typing.get_origin(hint) or hint


def _in_range(value: Any, m: Mapping[str, Any]) -> bool:
    """Whether a value is within the bounds and choices of its field."""
    if m["choices"] is not None:
        return value in m["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    limits = (("low", operator.ge), ("high", operator.le), ("above", operator.gt), ("below", operator.lt))
    return all(m[name] is None or compare(value, m[name]) for name, compare in limits)


@dataclass(frozen=True)
class Checked:
    """Base of the dataclasses of settings, which validates types and ranges on construction.

    Raises:
        UserError: a value of another type or out of range; names the option.
    """

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), field_type(type(self), f.name)
            if value is None and f.default is None:
                continue
            if kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, f.name, value)
            right_type = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if not right_type or not _in_range(value, f.metadata):
                wanted = describe_range(f.metadata) or f"a value of type {kind.__name__}"
                raise UserError(f"--{f.name} {value}: must be {wanted}")


def require_keys(data: Any, keys: set[str], source: str) -> None:
    """Require a JSON object with exactly these keys.

    Raises:
        UserError: no object, or unknown or missing keys; names the file.
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: not a JSON object where the keys {', '.join(sorted(keys))} are expected")
    difference = {"unknown": sorted(set(data) - keys), "missing": sorted(keys - set(data))}
    found = "; ".join(f"{kind} key {', '.join(names)}" for kind, names in difference.items() if names)
    if found:
        raise UserError(f"{source}: {found}: not written by this version of hta")


def from_mapping(cls: type, data: Any, source: str) -> Any:
    """Build one dataclass of settings from a JSON object.

    Raises:
        UserError: an unknown or missing key, or a value out of range.
    """
    require_keys(data, {f.name for f in fields(cls)}, source)
    try:
        return cls(**data)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
