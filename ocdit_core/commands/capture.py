"""`ocdit capture`: photographs of an object become its views, where there is no CAD file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands.common import add_command, report
from ocdit_core.errors import OcditError

EXAMPLES = """\
  ocdit capture photos/*.jpg --name mug --out my_objects/ --sheet mug.png
  ocdit capture photos/*.jpg --name mug --out my_objects/ --click 320,240
  ocdit capture photos/*.jpg --name mug --out my_objects/ --masks masks/*.png

Take a dozen photos from all sides, the whole object in each, filling a third to two thirds of the picture.
Without --click or --masks the background has to be plain, unless the photos are transparent around the object.
Look at the sheet: it shows what was cut out of each photo.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "capture", "make an object from photos of its sides, without a CAD file", EXAMPLES)
    parser.add_argument("photos", metavar="PHOTO", nargs="+", type=Path, help="PNG, JPEG, BMP, TIFF, WebP ...")
    parser.add_argument("--name", required=True, metavar="NAME", help="the object's name")
    parser.add_argument("--out", required=True, type=Path, metavar="LIBRARY", help="the library's folder (made if new)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--masks",
        nargs="+",
        type=Path,
        metavar="MASK",
        help="a picture for each photo, white on the object; paired by name, or in the order given",
    )
    ways.add_argument(
        "--click",
        nargs="+",
        type=point,
        metavar="X,Y",
        help="a point on the object in pixels, for each photo or one for all",
    )
    parser.add_argument("--diameter", type=float, metavar="METRES", help="the object's largest extent, if known")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a picture of what was cut out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Capture; returns 2 when a photo could not be used (the others are), else 0."""
    from ocdit_core.files import check_output
    from ocdit_core.images import write_image
    from ocdit_core.objects.archive import save_templates
    from ocdit_core.objects.capture import capture_object
    from ocdit_core.objects.library import update_manifest
    from ocdit_core.visualization import capture_sheet

    if arguments.sheet is not None:
        check_output(arguments.sheet)

    def note(path: Path, error: OcditError) -> None:
        report(error)

    captured = capture_object(
        arguments.name,
        arguments.photos,
        masks=arguments.masks,
        clicks=arguments.click,
        diameter=arguments.diameter,
        on_error=note,
    )
    save_templates(arguments.out, captured.templates)
    update_manifest(arguments.out, [arguments.name])
    views = len(captured.templates)
    print(f"{arguments.out}: {arguments.name} captured, {views} view{'s' if views > 1 else ''}")
    if arguments.sheet is not None:
        write_image(arguments.sheet, capture_sheet(captured.previews))
        print(f"{arguments.sheet}: what was cut out of each photo")
    return 2 if captured.problems else 0


def point(text: str) -> tuple[float, float]:
    """Parse X,Y (for argparse)."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point X,Y in pixels, as 320,240") from None
    return x, y
