"""Dataclasses of settings that check themselves: the base of `hta.config` and of the options of every command.

Help, range, unit and choices are in each field's metadata: the command lines are made from them.
"""

import math
import types
import typing
from dataclasses import field, fields
from typing import Any, Literal

from hta.errors import UserError


def option(
    default: Any, text: str, *, low=None, high=None, above=None, below=None, choices=None, unit="", default_note=""
) -> Any:
    """A dataclass field with what a command line and a check need to know about it.

    Args:
        default: the value when nothing is said.
        text: help for a person.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        choices: the only values allowed.
        unit: of the value, for the help.
        default_note: where another default holds, for the help.
    """
    bounds = dict(low=low, high=high, above=above, below=below, choices=choices)
    return field(default=default, metadata=dict(text=text, unit=unit, default_note=default_note, **bounds))


def describe_range(metadata) -> str:
    """The range of a field in words, such as "0 < value <= 1"."""
    if metadata["choices"]:
        return "one of " + ", ".join(str(c) for c in metadata["choices"])
    left = f"{metadata['low']} <= " if metadata["low"] is not None else ""
    left = f"{metadata['above']} < " if metadata["above"] is not None else left
    right = f" <= {metadata['high']}" if metadata["high"] is not None else ""
    right = f" < {metadata['below']}" if metadata["below"] is not None else right
    return f"{left}value{right}" if left or right else ""


def field_type(owner: type, name: str) -> tuple[type, bool]:
    """The plain type of a field and whether it may be None."""
    hint = typing.get_type_hints(owner)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return inner[0], True
    return (str, False) if typing.get_origin(hint) is Literal else (hint, False)


def _in_range(value: Any, m) -> bool:
    """Whether a value satisfies the bounds and choices of its field."""
    if m["choices"] is not None:
        return value in m["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return (
        (m["low"] is None or value >= m["low"])
        and (m["high"] is None or value <= m["high"])
        and (m["above"] is None or value > m["above"])
        and (m["below"] is None or value < m["below"])
    )


class Checked:
    """Base of the dataclasses of settings: checks types and ranges when built."""

    def __post_init__(self):
        for f in fields(self):
            value, (kind, optional) = getattr(self, f.name), field_type(type(self), f.name)
            if value is None and optional:
                continue
            right_type = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, f.name, float(value))
                right_type, value = True, float(value)
            if not right_type or (f.metadata and not _in_range(value, f.metadata)):
                wanted = (describe_range(f.metadata) if f.metadata else "") or f"a value of type {kind.__name__}"
                raise UserError(f"--{f.name} {value}: must be {wanted}")


def require_keys(data: Any, keys: set[str], source: str) -> None:
    """Refuse a JSON object that has not exactly these keys.

    Raises:
        UserError: names the file, and the unknown and missing keys.
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: not a JSON object where the keys {', '.join(sorted(keys))} should be")
    unknown, missing = sorted(set(data) - keys), sorted(keys - set(data))
    if unknown or missing:
        says = [f"unknown key {', '.join(unknown)}"] * bool(unknown) + [f"missing key {', '.join(missing)}"] * bool(
            missing
        )
        raise UserError(f"{source}: {'; '.join(says)}: not written by this version of hta")


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
