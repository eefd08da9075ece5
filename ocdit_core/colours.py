"""Colours by which objects are told apart in images, pages and ROS messages."""

import colorsys
import zlib
from collections.abc import Iterable

Colour = tuple[int, int, int]

# Far apart in hue and lightness, none near black, grey or white, which images are full of.
PALETTE: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200),
    (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 160), (110, 80, 255),
)  # fmt: skip
_GOLDEN = 0.618033988749895


def object_colours(names: Iterable[str]) -> dict[str, Colour]:
    """Return an RGB colour for each name: no two alike up to 20 names, the same for the same set of names always.

    A name keeps its colour in other sets too, unless an alphabetically earlier name there claims the same one.
    """
    colours: dict[str, Colour] = {}
    taken: set[int] = set()
    for name in sorted(set(names)):
        if len(taken) == len(PALETTE):
            taken.clear()
        index = zlib.crc32(name.encode()) % len(PALETTE)
        while index in taken:
            index = (index + 1) % len(PALETTE)
        taken.add(index)
        colours[name] = PALETTE[index]
    return colours


def number_colour(number: int) -> Colour:
    """Return an RGB colour for the number 1, 2, ...: the palette's for the first 20, then ones spread over all hues."""
    if number <= len(PALETTE):
        return PALETTE[(number - 1) % len(PALETTE)]
    # Multiples of the golden ratio never come close to an earlier one soon; three tones keep neighbours in hue apart.
    saturation, value = ((0.85, 0.95), (0.55, 0.9), (0.9, 0.65))[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
