"""`ocdit render`: CAD files become a library of views."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ocdit_core.commands import views
from ocdit_core.commands.common import add_command, positive, report
from ocdit_core.errors import ConfigError, OcditError

EXAMPLES = """\
  ocdit render drill.glb mug.ply --out my_objects/
  ocdit render ycbv/models --out ycbv_objects/ --html ycbv_objects.html
  ocdit render parts/*.stl --unit mm --views 42 --jobs 4 --out my_objects/
  ocdit render part_0815.stl --name bracket --out my_objects/ --sheet bracket.png
"""
# Names that one line of the summary holds.
_NAMED = 12


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "render", "render CAD files from all sides, into a library of objects", EXAMPLES)
    parser.add_argument(
        "meshes",
        metavar="MESH",
        nargs="+",
        type=Path,
        help="GLB, glTF, OBJ, PLY, STL, OFF, DAE or 3MF; or a folder of BOP models",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="LIBRARY", help="the library's folder (made if new)")
    parser.add_argument(
        "--unit",
        default="auto",
        choices=("auto", "m", "cm", "mm", "in"),
        help="of the files' numbers; default: auto, what the file states, or guessed from the size",
    )
    parser.add_argument(
        "--views", type=int, default=12, choices=(12, 42, 162), help="directions an object is seen from (default: 12)"
    )
    parser.add_argument(
        "--in-plane",
        type=positive,
        default=1,
        metavar="N",
        help="views a direction, the camera turned about its axis in N even steps (default: 1)",
    )
    parser.add_argument(
        "--renderer",
        default="auto",
        choices=("auto", "moderngl", "pyvista"),
        help="moderngl (OpenGL) or pyvista (VTK); default: auto, moderngl where there is EGL, else pyvista",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="processes that share the work (default: one for each core, fewer for little work)",
    )
    parser.add_argument("--force", action="store_true", help="render all again, also what has not changed")
    parser.add_argument("--name", metavar="NAME", help="the object's name, for one mesh (default: the file's name)")
    views.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Render; returns 2 when a mesh could not be used (the others are done), else 0."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ocdit_core.objects.library import ObjectLibrary
    from ocdit_core.objects.onboarding import add_objects
    from ocdit_core.objects.templates import ViewSettings

    views.check_options(arguments)
    if arguments.name is not None and len(arguments.meshes) > 1:
        raise ConfigError(f"--name names one object, but {len(arguments.meshes)} meshes were given")
    failed: list[Path] = []

    def note(path: Path, error: OcditError) -> None:
        failed.append(path)
        report(error)

    with logging_redirect_tqdm([logging.getLogger("ocdit_core")]):
        renderer = _renderer(arguments.renderer)
        added = add_objects(
            arguments.out,
            arguments.meshes,
            names=None if arguments.name is None else [arguments.name],
            unit=arguments.unit,
            settings=ViewSettings(views=arguments.views, in_plane=arguments.in_plane, renderer=renderer),
            jobs=arguments.jobs or 0,
            force=arguments.force,
            on_error=note,
            progress=True,
        )
    print(f"{arguments.out}: {_summary(added.rendered, added.unchanged, len(failed))}")
    names = [*added.rendered, *added.unchanged]
    if names and (arguments.sheet is not None or arguments.html is not None):
        views.review(ObjectLibrary(arguments.out), names, arguments, known=True)
    return 2 if failed else 0


def _renderer(name: str) -> str:
    """Return the renderer that "auto" means on this machine: what was drawn by which is part of an object's recipe."""
    from ocdit_core.objects.opengl_renderer import open_renderer

    if name != "auto":
        return name
    with open_renderer("auto") as found:
        return found.name


def _summary(rendered: tuple[str, ...], unchanged: tuple[str, ...], failed: int) -> str:
    named = ", ".join(rendered[:_NAMED]) + (f" and {len(rendered) - _NAMED} more" if len(rendered) > _NAMED else "")
    parts = [f"{len(rendered)} object{'s' if len(rendered) != 1 else ''} rendered" + (f": {named}" if named else "")]
    if unchanged:
        parts.append(f"{len(unchanged)} unchanged")
    if failed:
        parts.append(f"{failed} failed")
    return "; ".join(parts)
