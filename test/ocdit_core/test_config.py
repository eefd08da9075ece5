from dataclasses import dataclass, field
from typing import Literal

import pytest

from ocdit_core.config import apply_overrides, as_dict, build, read_yaml
from ocdit_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width: {self.width} must be positive")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


def test_builds_nested_settings_and_back():
    values = {"name": "x", "inner": {"width": 8, "sizes": [3], "pair": [1, 2], "rate": "1e-4"}, "other": {"kind": "b"}}
    settings = build(Outer, values)
    assert settings.inner == Inner(width=8, sizes=(3,), pair=(1, 2.0), rate=1e-4)
    assert settings.other == Inner(kind="b")
    assert build(Outer, as_dict(settings)) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "inner": {"widht": 8}}, "inner.widht: unknown setting; did you mean 'width'"),
        ({"name": "x", "inner": {"width": "wide"}}, "inner.width: 'wide' must be of type int"),
        ({"name": "x", "inner": {"width": True}}, "inner.width: True must be of type int"),
        ({"name": "x", "inner": {"width": 0}}, "inner.width: 0 must be positive"),
        ({"name": "x", "inner": {"kind": "c"}}, "inner.kind: 'c' is not one of 'a', 'b'"),
        ({"name": "x", "inner": {"sizes": 3}}, "inner.sizes: 3 must be a list"),
        ({"name": "x", "inner": {"pair": [1]}}, "inner.pair: .* must have 2 entries"),
        ({"name": "x", "inner": 3}, "inner: must be a mapping"),
        ({}, "name: missing"),
    ],
)
def test_complaints_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, values)


def test_overrides():
    values = {"name": "x", "inner": {"width": 8}}
    changed = apply_overrides(values, ["inner.width=16", "other.kind=b", "name=y"])
    assert changed == {"name": "y", "inner": {"width": 16}, "other": {"kind": "b"}}
    assert values["inner"]["width"] == 8
    for bad in ("inner.width", "=3", "name.deeper=1"):
        with pytest.raises(ConfigError):
            apply_overrides(values, [bad])


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a YAML mapping"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_yaml(tmp_path / "broken.yaml")
