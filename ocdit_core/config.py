"""Typed settings from YAML: dataclasses, validated when they are built; errors contain the dotted key."""

import contextlib
import copy
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from ocdit_core.errors import ConfigError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping of a YAML file; raises ConfigError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a YAML mapping of settings, is {type(content).__name__}")
    return content


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return `values` with overrides such as model.denoiser.depth=12 applied; raises ConfigError."""
    result = copy.deepcopy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{override!r}: an override must look like path.to.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{override!r}: the value is not YAML") from error
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{key}: {parent!r} is a value, it has no settings below it")
            node = child
        node[last] = value
    return result


def build(cls: type[T], values: Any, path: str = "") -> T:
    """Return an instance of the dataclass `cls` from a mapping.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or an invalid value; the message contains the dotted key.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{path or 'settings'}: must be a mapping, is {values!r}")
    assert dataclasses.is_dataclass(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key}: unknown setting{hint}")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing, and it has no default")
    arguments = {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parameters:
            return None
        (member,) = (p for p in parameters if p is not type(None))
        return _convert(member, value, path)
    if origin is Literal:
        if value not in parameters:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, parameters))}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: {value!r} must be a list")
        if origin is list or parameters[-1] is Ellipsis:
            return origin(_convert(parameters[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) != len(parameters):
            raise ConfigError(f"{path}: {value!r} must have {len(parameters)} entries")
        return tuple(
            _convert(p, item, f"{path}[{i}]") for i, (p, item) in enumerate(zip(parameters, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {value!r} must be a mapping")
        return dict(value)
    if hint is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        # YAML reads 1e-4 as a string: its floats need a dot.
        with contextlib.suppress(ValueError):
            return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{path}: {value!r} must be of type {hint.__name__}")
    return value


def as_dict(settings: Any) -> dict[str, Any]:
    """Return a dataclass as plain values for YAML."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def to_yaml(settings: Any) -> str:
    """Return a dataclass as YAML text."""
    return yaml.safe_dump(as_dict(settings), sort_keys=False)
