from pathlib import Path

import pytest

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.meshes import check_unit, choose_unit

PATH = Path("can.glb")


@pytest.mark.parametrize(
    ("size", "given", "stated", "name", "guessed"),
    [
        (0.12, "auto", 1.0, "m", False),
        (120, "auto", 0.001, "mm", False),
        (139, "auto", None, "mm", True),
        (12, "auto", None, "cm", True),
        (1.9, "auto", None, "m", True),
        (4, "in", 1.0, "in", False),
        (139, "cm", 1.0, "cm", False),
        (4.9, "auto", 1.0, "m", False),
        (5000, "auto", None, "mm", True),
        (0.46, "auto", 0.3048, "ft", False),
        (141_000, "auto", 1e-6, "um", False),
        (0.28, "auto", 0.5, "0.5 m", False),
    ],
)
def test_the_unit_is_given_stated_or_guessed_in_this_order(size, given, stated, name, guessed):
    unit = choose_unit(PATH, size, given=given, stated=stated)
    assert (unit.name, unit.guessed, unit.warning) == (name, guessed, None)


def test_a_stated_unit_is_obeyed_with_a_warning_unless_it_is_absurd():
    truck = choose_unit(PATH, 8, stated=1.0)
    assert (truck.name, truck.guessed) == ("m", False)
    assert truck.warning.startswith("can.glb: is 8 m wide, the unit being m (stated by the file), which is outside")
    can = choose_unit(PATH, 139, stated=1.0)
    assert (can.name, can.guessed) == ("mm", True)
    assert can.warning.startswith(
        "can.glb: would be 139 m wide in m, the unit that the file states; taken as mm, 0.139 m"
    )


@pytest.mark.parametrize(
    ("size", "given", "reason"),
    [
        (139, "m", "139 m if the unit is m .given."),
        (0.1, "mm", "0.0001 m if the unit is mm .given."),
        (0.0004, "auto", "outside 5 mm .. 5 m"),
        (20_001, "auto", "guessed from the size"),
    ],
)
def test_absurd_sizes_are_refused(size, given, reason):
    with pytest.raises(MeshError, match=reason) as caught:
        choose_unit(PATH, size, given=given, stated=1.0)
    assert "--unit" in str(caught.value)


def test_an_unknown_unit_is_refused():
    assert check_unit("auto") == "auto"
    with pytest.raises(ConfigError, match=r"furlong.*auto, m, cm, mm, in"):
        check_unit("furlong")
