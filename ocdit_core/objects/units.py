"""The unit of a CAD file's numbers: given, stated by the file, or concluded from the object's size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ocdit_core.errors import ConfigError, MeshError

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
"""Metres in one unit of length."""

MIN_DIAMETER, MAX_DIAMETER = 0.005, 5.0
"""Metres: what is smaller or larger is a wrong unit, or no object that a robot's camera meets."""


@dataclass(frozen=True, kw_only=True)
class ChosenUnit:
    """The unit that a file is read in, and why.

    Attributes:
        name: a key of UNITS.
        how: the reason in words.
        guessed: whether it was concluded from the size.
        warning: a line for the user where the file states another unit; None otherwise.
    """

    name: str
    how: str
    guessed: bool
    warning: str | None = None


def check_unit(unit: str) -> str:
    """Return the unit if it is "auto" or one of UNITS.

    Raises:
        ConfigError: it is not.
    """
    if unit != "auto" and unit not in UNITS:
        raise ConfigError(f"unit: {unit!r} is unknown; use auto, {', '.join(UNITS)}")
    return unit


def choose_unit(path: Path, size: float, *, given: str = "auto", stated: str | None = None) -> ChosenUnit:
    """Choose the unit of an object that is `size` units wide.

    A plausible object is 5 mm to 5 m wide. The rule, first match first:

    1. a unit that is given is taken, and an object that it makes implausible is refused;
    2. the unit that the file states (glTF: metres; COLLADA and 3MF: in the file; a BOP models folder: millimetres) is
       taken if it makes the object plausible;
    3. otherwise the size decides: up to 2 units are metres, below 20 centimetres, above that millimetres, since what
       fits in a hand or stands on a table is far more common than what fills a room. Many files are glTF by name but
       were exported in another unit: a can of 67 x 67 x 122 units is 0.14 m, not 139 m. Where this overrides a
       stated unit there is a warning;
    4. what is below 0.005 or above 5000 units wide makes sense in no unit and is refused.

    Args:
        path: of the file, for messages.
        size: the object's diameter in the file's numbers, above 0.
        given: "auto", or a key of UNITS.
        stated: the unit that the file states, if any.

    Raises:
        ConfigError: `given` is unknown.
        MeshError: the size is implausible.
    """
    if check_unit(given) != "auto":
        unit = ChosenUnit(name=given, how="given", guessed=False)
    elif stated is not None and MIN_DIAMETER <= size * UNITS[stated] <= MAX_DIAMETER:
        unit = ChosenUnit(name=stated, how="stated by the file", guessed=False)
    else:
        name = "m" if size <= 2 else "cm" if size < 20 else "mm"
        warning = None
        if stated is not None:
            warning = (
                f"{path.name}: would be {size * UNITS[stated]:.3g} m wide in {stated}, the unit that the file states; "
                f"taken as {name}, {size * UNITS[name]:.3g} m; --unit to change"
            )
        unit = ChosenUnit(name=name, how="guessed from the size", guessed=True, warning=warning)
    metres = size * UNITS[unit.name]
    if not MIN_DIAMETER <= metres <= MAX_DIAMETER:
        raise MeshError(
            f"{path}: is {size:.4g} units wide, {metres:.3g} m if the unit is {unit.name} ({unit.how}), which is "
            f"outside {MIN_DIAMETER * 1000:g} mm .. {MAX_DIAMETER:g} m; say which it is with --unit m, cm, mm or in"
        )
    return unit
