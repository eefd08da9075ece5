"""Looking through a library's objects: checks, contact sheets and the page, in one pass over the archives."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.common import report
from ocdit_core.errors import ImageError, LibraryError

if TYPE_CHECKING:
    from ocdit_core.objects.library import ObjectEntry, ObjectLibrary


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was seen: a row of facts for each sound archive, and how many objects have something wrong with them."""

    rows: list[list[str]]
    bad: int


HEADER = ["object", "id", "views", "diameter", "unit", "origin", "symmetries", "source"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --sheet and --html."""
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="PNG",
        help="also write a picture of the views; more than 40 objects make several: PNG_01, PNG_02 ...",
    )
    parser.add_argument("--html", type=Path, metavar="PAGE", help="also write a web page with every view, to filter")


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ImageError for a --sheet that could not be written in the end, before the work begins."""
    from ocdit_core.files import check_output
    from ocdit_core.images import SUFFIXES

    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{arguments.sheet}: --sheet needs a picture's suffix, such as .png")
    check_output(*(path for path in (arguments.sheet, arguments.html) if path is not None))


def review(
    library: ObjectLibrary, names: Iterable[str], arguments: argparse.Namespace, *, known: bool = False
) -> Review:
    """Read and check objects one by one, and write what --sheet and --html ask for.

    What is wrong with them is printed on stderr, or only counted where it is `known` from the rendering.
    """
    from ocdit_core.objects.gallery import length, symmetry_text, writing_gallery
    from ocdit_core.objects.templates import check_views
    from ocdit_core.visualization import ContactSheets

    names = list(names)
    entries, bad = _entries(library)
    rows = []
    with ExitStack() as stack:
        sheets = None if arguments.sheet is None else ContactSheets(arguments.sheet, len(names))
        page = None
        if arguments.html is not None:
            page = stack.enter_context(writing_gallery(arguments.html, library.path.resolve().name))
        for name in names:
            try:
                templates = library[name]
            except LibraryError as error:
                bad += 1
                report(error)
                if page is not None:
                    page.add_damaged(name, str(error))
                continue
            problems = check_views(templates)
            bad += bool(problems)
            for problem in problems if not known else []:
                report(LibraryError(f"{name}: {problem}"))
            if sheets is not None:
                sheets.add(templates)
            entry = entries.get(name)
            if page is not None:
                page.add(templates, entry, problems)
            number = str(entry.id) if entry else "-"
            main = templates.sources[0] if templates.sources else "-"
            facts = [length(templates.diameter), templates.unit or "-", templates.origin]
            rows.append([name, number, str(len(templates)), *facts, symmetry_text(templates) or "-", main])
        if sheets is not None:
            sheets.finish()
    for path in sheets.written if sheets is not None else []:
        print(f"{path}: contact sheet")
    if page is not None:
        print(f"{arguments.html}: page of {len(names)} object{'s' if len(names) > 1 else ''}")
    return Review(rows=rows, bad=bad)


def _entries(library: ObjectLibrary) -> tuple[dict[str, ObjectEntry], int]:
    try:
        return library.manifest, 0
    except LibraryError as error:
        report(error)
        return {}, 1
