"""`ocdit objects`: what a library holds, and whether all of it can be read."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands.common import add_command, print_table, report
from ocdit_core.errors import LibraryError

EXAMPLES = """\
  ocdit objects my_objects/
  ocdit objects my_objects/ --sheet sheet.png
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "objects", "list and check the objects of a library", EXAMPLES)
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="a folder that `ocdit render --out` wrote")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a picture of every object's views")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List; returns 2 when an object is damaged, else 0."""
    from ocdit_core.objects.library import ObjectLibrary

    library = ObjectLibrary(arguments.library)
    rows, sound, damaged = [], [], 0
    for name in library:
        try:
            templates = library[name]
        except LibraryError as error:
            damaged += 1
            report(error)
            continue
        rows.append(
            [name, str(len(templates)), f"{templates.diameter:.3f} m", templates.unit, templates.source_sha256[:12]]
        )
        sound.append(templates)
    if rows:
        print_table(["object", "views", "diameter", "unit", "source"], rows)
    if sound and arguments.sheet is not None:
        from ocdit_core.images import write_image
        from ocdit_core.visualization import contact_sheet

        write_image(arguments.sheet, contact_sheet(sound))
        print(f"{arguments.sheet}: contact sheet")
    return 2 if damaged else 0
