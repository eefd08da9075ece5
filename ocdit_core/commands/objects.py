"""`ocdit objects`: what a library holds, and whether all of it can be read and believed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands import views
from ocdit_core.commands.common import add_command, print_table

EXAMPLES = """\
  ocdit objects my_objects/
  ocdit objects my_objects/ --sheet sheet.png --html page.html
  ocdit objects my_objects/ --remove old_mug broken_drill
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "objects", "list and check the objects of a library", EXAMPLES)
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="a folder that `ocdit render --out` wrote")
    parser.add_argument("--remove", nargs="+", metavar="NAME", default=[], help="first delete these objects")
    views.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List; returns 2 when an object is damaged or its views are not right, else 0."""
    from ocdit_core.objects.archive import stored_names
    from ocdit_core.objects.library import ObjectLibrary, remove_objects

    views.check_options(arguments)
    if arguments.remove:
        remove_objects(arguments.library, arguments.remove)
        print(f"{arguments.library}: removed {', '.join(dict.fromkeys(arguments.remove))}")
        if not stored_names(arguments.library):
            print(f"{arguments.library}: holds no object now")
            return 0
    library = ObjectLibrary(arguments.library)
    seen = views.review(library, library, arguments)
    if seen.rows:
        print_table(views.HEADER, seen.rows)
    return 2 if seen.bad else 0
