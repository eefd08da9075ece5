from pathlib import Path

import pytest

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.meshes import check_unit, choose_unit

PATH = Path("can.glb")


@pytest.mark.parametrize(
    ("size", "given", "stated", "name", "guessed", "warned"),
    [
        (0.12, "auto", "m", "m", False, False),
        (120, "auto", "mm", "mm", False, False),
        (139, "auto", "m", "mm", True, True),  # a can of 67 x 67 x 122 units in a format of metres
        (12, "auto", "m", "cm", True, True),
        (139, "auto", None, "mm", True, False),
        (12, "auto", None, "cm", True, False),
        (1.9, "auto", None, "m", True, False),
        (4, "in", "m", "in", False, False),
        (139, "cm", "m", "cm", False, False),
        (4.9, "auto", "m", "m", False, False),
        (5000, "auto", None, "mm", True, False),
    ],
)
def test_the_unit_is_given_stated_or_guessed_in_this_order(size, given, stated, name, guessed, warned):
    unit = choose_unit(PATH, size, given=given, stated=stated)
    assert (unit.name, unit.guessed) == (name, guessed)
    assert (unit.warning is not None) == warned
    if warned:
        assert unit.warning.startswith("can.glb: would be")
        assert "--unit" in unit.warning


@pytest.mark.parametrize(
    ("size", "given", "reason"),
    [
        (139, "m", "139 m if the unit is m .given."),
        (1, "mm", "0.001 m"),
        (0.004, "auto", "outside 5 mm .. 5 m"),
        (5001, "auto", "guessed from the size"),
    ],
)
def test_absurd_sizes_are_refused(size, given, reason):
    with pytest.raises(MeshError, match=reason) as caught:
        choose_unit(PATH, size, given=given, stated="m")
    assert "--unit" in str(caught.value)


def test_an_unknown_unit_is_refused():
    assert check_unit("auto") == "auto"
    with pytest.raises(ConfigError, match=r"furlong.*auto, m, cm, mm, in"):
        check_unit("furlong")
