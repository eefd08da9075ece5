"""`ocdit render`, `ocdit capture` and `ocdit objects`: make, list and check an object library."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.options import add_command, add_pages, check_pages, counted, positive, print_table, report
from ocdit_core.errors import ConfigError, LibraryError, OcditError

if TYPE_CHECKING:
    from ocdit_core.objects.gallery import Card
    from ocdit_core.objects.library import ObjectEntry, ObjectLibrary

RENDER_EXAMPLES = """\
  ocdit render drill.glb mug.ply --out my_objects/
  ocdit render ycbv/models --out ycbv_objects/ --html ycbv_objects.html
  ocdit render parts/*.stl --unit mm --views 42 --jobs 4 --out my_objects/
  ocdit render part_0815.stl --name bracket --out my_objects/ --sheet bracket.png
"""
CAPTURE_EXAMPLES = """\
  ocdit capture photos/*.jpg --name mug --out my_objects/ --sheet mug.png
  ocdit capture photos/*.jpg --name mug --out my_objects/ --click 320,240
  ocdit capture photos/*.jpg --name mug --out my_objects/ --masks masks/*.png

Take about twelve photos from all sides, each with the whole object, which should fill a third to two thirds of the
image. Without --click or --masks the background must be of one colour, unless the photos are transparent around the
object. Check the sheet: it shows what was cut out of each photo.
"""
OBJECTS_EXAMPLES = """\
  ocdit objects my_objects/
  ocdit objects my_objects/ --sheet sheet.png --html page.html
  ocdit objects my_objects/ --remove old_mug broken_drill
"""
_MOST_NAMES = 12
"""Names that the summary of `ocdit render` lists."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    parser = add_command(subparsers, "render", "render CAD files into an object library", RENDER_EXAMPLES)
    text = (
        "GLB, glTF, OBJ, PLY, STL, OFF, DAE, 3MF, STEP, IGES or USD file, or a folder of such: BOP, GSO, YCB, Objaverse"
    )
    parser.add_argument("meshes", metavar="MESH", nargs="+", type=Path, help=text)
    parser.add_argument("--out", required=True, type=Path, metavar="LIBRARY", help="library folder")
    text = "length unit of the files (default: auto, the unit that a file states, else guessed from the size)"
    parser.add_argument("--unit", default="auto", choices=("auto", "m", "cm", "mm", "in"), help=text)
    parser.add_argument("--views", type=int, default=12, choices=(12, 42, 162), help="viewpoints (default: 12)")
    text = "only the objects of this list: a JSON list of names, or one name a line"
    parser.add_argument("--only", type=Path, metavar="FILE", help=text)
    text = "processes (default: one for each core, fewer for few objects)"
    parser.add_argument("--jobs", type=positive, metavar="N", help=text)
    parser.add_argument("--force", action="store_true", help="render unchanged objects as well")
    parser.add_argument("--name", metavar="NAME", help="name of the object, for one mesh (default: from the file name)")
    add_pages(parser, "the templates")
    parser.set_defaults(run=render)

    parser = add_command(subparsers, "capture", "make an object from photos, without a CAD file", CAPTURE_EXAMPLES)
    parser.add_argument("photos", metavar="PHOTO", nargs="+", type=Path, help="PNG, JPEG, BMP, TIFF or WebP file")
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the object")
    parser.add_argument("--out", required=True, type=Path, metavar="LIBRARY", help="library folder")
    ways = parser.add_mutually_exclusive_group()
    text = "an image for each photo, white on the object, named after it: 1.png, 1_mask.png or 1.jpg.png for 1.jpg"
    ways.add_argument("--masks", nargs="+", type=Path, metavar="MASK", help=text)
    text = "a pixel on the object, for each photo or one for all"
    ways.add_argument("--click", nargs="+", type=point, metavar="X,Y", help=text)
    parser.add_argument("--diameter", type=float, metavar="METRES", help="largest extent of the object, if known")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also write an image of the cut-outs")
    parser.set_defaults(run=capture)

    parser = add_command(subparsers, "objects", "list and check the objects of a library", OBJECTS_EXAMPLES)
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="library folder, made by `ocdit render`")
    parser.add_argument("--remove", nargs="+", metavar="NAME", default=[], help="first delete these objects")
    add_pages(parser, "the templates")
    parser.set_defaults(run=list_objects)


def render(arguments: argparse.Namespace) -> int:
    """Render; return 2 if a mesh could not be used (the others are done), else 0."""
    from ocdit_core.objects.library import ObjectLibrary
    from ocdit_core.objects.onboarding import add_objects

    check_pages(arguments)
    if arguments.name is not None and len(arguments.meshes) > 1:
        raise ConfigError(f"--name names one object, but {len(arguments.meshes)} meshes were given")
    meshes = arguments.meshes if arguments.only is None else _chosen(arguments.meshes, arguments.only)
    failed: list[Path] = []

    def note(path: Path, error: OcditError) -> None:
        failed.append(path)
        report(error)

    added = add_objects(
        arguments.out,
        meshes,
        names=None if arguments.name is None else [arguments.name],
        unit=arguments.unit,
        views=arguments.views,
        jobs=arguments.jobs or 0,
        force=arguments.force,
        on_error=note,
        progress=True,
    )
    print(f"{arguments.out}: {_summary(added.rendered, added.unchanged, len(failed))}")
    names = [*added.rendered, *added.unchanged]
    if names and (arguments.sheet is not None or arguments.html is not None):
        review(ObjectLibrary(arguments.out), names, arguments, quiet=True)
    return 2 if failed else 0


def _chosen(meshes: list[Path], listed: Path) -> list[Path]:
    """Return the mesh files whose objects a list names; raises ConfigError if it names one that is not there."""
    from ocdit_core.objects.meshes import expand_meshes
    from ocdit_core.objects.onboarding import object_names

    text = listed.read_text(encoding="utf-8")
    try:
        wanted = dict.fromkeys(map(str, json.loads(text) if text.lstrip().startswith("[") else text.split("\n")))
    except ValueError as error:
        raise ConfigError(f"{listed}: neither a JSON list nor one name a line ({error})") from error
    files = expand_meshes(meshes)
    found = dict(zip(object_names(files), files, strict=True))
    names = [name.strip() for name in wanted if name.strip()]
    missing = [name for name in names if name not in found]
    if missing or not names:
        reason = f"{len(missing)} of its {len(names)} objects are not among the meshes, such as {missing[:1]}"
        raise ConfigError(f"{listed}: {reason if names else 'names no object'}")
    return [found[name] for name in names]


def _summary(rendered: tuple[str, ...], unchanged: tuple[str, ...], failed: int) -> str:
    more = f" and {len(rendered) - _MOST_NAMES} more" if len(rendered) > _MOST_NAMES else ""
    named = f": {', '.join(rendered[:_MOST_NAMES])}{more}" if rendered else ""
    parts = [f"{counted(len(rendered), 'object')} rendered{named}"]
    if unchanged:
        parts.append(f"{len(unchanged)} unchanged")
    if failed:
        parts.append(f"{failed} failed")
    return "; ".join(parts)


def capture(arguments: argparse.Namespace) -> int:
    """Capture; return 2 if a photo could not be used (the others are), else 0."""
    from ocdit_core.images import write_image
    from ocdit_core.objects.archive import save_templates
    from ocdit_core.objects.capture import capture_object
    from ocdit_core.objects.library import update_manifest
    from ocdit_core.visualization import capture_sheet

    check_pages(arguments)
    captured = capture_object(
        arguments.name,
        arguments.photos,
        masks=arguments.masks,
        clicks=arguments.click,
        diameter=arguments.diameter,
        on_error=lambda path, error: report(error),
    )
    save_templates(arguments.out, captured.templates)
    update_manifest(arguments.out, [arguments.name])
    print(f"{arguments.out}: {arguments.name} captured, {counted(len(captured.templates), 'view')}")
    if arguments.sheet is not None:
        write_image(arguments.sheet, capture_sheet(captured.previews))
        print(f"{arguments.sheet}: cut-outs of the photos")
    return 2 if captured.problems else 0


def point(text: str) -> tuple[float, float]:
    """Parse X,Y (for argparse)."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point X,Y in pixels, such as 320,240") from None
    return x, y


def list_objects(arguments: argparse.Namespace) -> int:
    """List and check a library; return 2 if an object is damaged or its templates are wrong, else 0."""
    from ocdit_core.objects.archive import stored_names
    from ocdit_core.objects.library import ObjectLibrary, remove_objects

    check_pages(arguments)
    if arguments.remove:
        remove_objects(arguments.library, arguments.remove)
        print(f"{arguments.library}: removed {', '.join(dict.fromkeys(arguments.remove))}")
        if not stored_names(arguments.library):
            print(f"{arguments.library}: holds no object now")
            return 0
    library = ObjectLibrary(arguments.library)
    rows, bad = review(library, library, arguments)
    if rows:
        print_table(["object", "id", "views", "diameter", "unit", "origin", "symmetries", "source"], rows)
    return 2 if bad else 0


def review(
    library: ObjectLibrary, names: Iterable[str], arguments: argparse.Namespace, *, quiet: bool = False
) -> tuple[list[list[str]], int]:
    """Read and check objects one by one, and write what --sheet and --html ask for.

    Args:
        library: library of the objects.
        names: names of the objects.
        arguments: arguments of the command.
        quiet: do not print problems of the templates.

    Returns:
        A table row for each undamaged object, and the number of objects with problems.
    """
    from ocdit_core.objects.gallery import Card, length, symmetry_text
    from ocdit_core.objects.templates import check_views
    from ocdit_core.visualization import ContactSheets
    from ocdit_core.web_page import write_page

    names = list(names)
    sheets = None if arguments.sheet is None else ContactSheets(arguments.sheet, len(names))
    rows: list[list[str]] = []
    bad: list[str] = []
    entries: dict[str, ObjectEntry] = {}
    try:
        entries = library.manifest
    except LibraryError as error:
        bad.append(str(error))
        report(error)

    def cards() -> Iterator[Card]:
        for name in names:
            try:
                templates = library[name]
            except LibraryError as error:
                bad.append(name)
                report(error)
                yield Card(name=name, problems=[str(error)])
                continue
            problems = check_views(templates)
            bad.extend([name] if problems else [])
            for problem in problems if not quiet else []:
                report(LibraryError(f"{name}: {problem}"))
            if sheets is not None:
                sheets.add(templates)
            entry = entries.get(name)
            number = str(entry.id) if entry else "-"
            main = templates.sources[0] if templates.sources else "-"
            facts = [length(templates.diameter), templates.unit or "-", templates.origin]
            rows.append([name, number, str(len(templates)), *facts, symmetry_text(templates) or "-", main])
            yield Card(name=name, templates=templates, entry=entry, problems=problems)

    if arguments.html is not None:
        write_page(arguments.html, "gallery.html", title=library.path.resolve().name, cards=cards())
    else:
        deque(cards(), maxlen=0)
    if sheets is not None:
        sheets.finish()
        for path in sheets.written:
            print(f"{path}: contact sheet")
    if arguments.html is not None:
        print(f"{arguments.html}: page of {counted(len(names), 'object')}")
    return rows, len(bad)
