"""`ocdit render`: CAD files become a library of views."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ocdit_core.commands.common import add_command, report
from ocdit_core.errors import ConfigError, OcditError

EXAMPLES = """\
  ocdit render drill.glb mug.ply --out my_objects/
  ocdit render models/*.ply --unit mm --out my_objects/
  ocdit render part_0815.stl --name bracket --out my_objects/ --sheet bracket.png
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "render", "render CAD files from all sides, into a library of objects", EXAMPLES)
    parser.add_argument(
        "meshes", metavar="MESH", nargs="+", type=Path, help="GLB, glTF, OBJ, PLY, STL, OFF, DAE or 3MF"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="LIBRARY", help="the library's folder (made if new)")
    parser.add_argument(
        "--unit",
        default="auto",
        choices=("auto", "m", "cm", "mm", "in"),
        help="of the files' numbers; default: auto, what the file states, or guessed from the size",
    )
    parser.add_argument("--views", type=int, default=12, choices=(12, 42, 162), help="views an object (default: 12)")
    parser.add_argument("--name", metavar="NAME", help="the object's name, for one mesh (default: the file's name)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write a picture of all the views rendered")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Render; returns 2 when a mesh could not be used (the others are done), else 0."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ocdit_core.objects.onboarding import add_objects

    if arguments.name is not None and len(arguments.meshes) > 1:
        raise ConfigError(f"--name names one object, but {len(arguments.meshes)} meshes were given")
    failed: list[Path] = []

    def note(path: Path, error: OcditError) -> None:
        failed.append(path)
        report(error)

    with logging_redirect_tqdm([logging.getLogger("ocdit_core")]):
        added = add_objects(
            arguments.out,
            arguments.meshes,
            names=None if arguments.name is None else [arguments.name],
            unit=arguments.unit,
            views=arguments.views,
            on_error=note,
            progress=len(arguments.meshes) > 1,
        )
    if added:
        print(f"{arguments.out}: {len(added)} object{'s' if len(added) > 1 else ''} rendered: {', '.join(added)}")
    if added and arguments.sheet is not None:
        from ocdit_core.images import write_image
        from ocdit_core.objects.library import ObjectLibrary
        from ocdit_core.visualization import contact_sheet

        write_image(arguments.sheet, contact_sheet(ObjectLibrary(arguments.out).select(added)))
        print(f"{arguments.sheet}: contact sheet")
    return 2 if failed else 0
