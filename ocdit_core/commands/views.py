"""Looking through a library's objects: checks, contact sheets and the page, in one pass over the archives."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.common import report
from ocdit_core.errors import ImageError, LibraryError

if TYPE_CHECKING:
    from ocdit_core.objects.gallery import Card
    from ocdit_core.objects.library import ObjectEntry, ObjectLibrary
    from ocdit_core.visualization import ContactSheets


@dataclass(kw_only=True)
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
    from ocdit_core.visualization import ContactSheets
    from ocdit_core.web_page import write_page

    names = list(names)
    sheets = None if arguments.sheet is None else ContactSheets(arguments.sheet, len(names))
    result = Review(rows=[], bad=0)
    cards = _inspected(library, names, sheets, result, known)
    if arguments.html is not None:
        write_page(arguments.html, "gallery.html", title=library.path.resolve().name, cards=cards)
    else:
        deque(cards, maxlen=0)
    if sheets is not None:
        sheets.finish()
    for path in sheets.written if sheets is not None else []:
        print(f"{path}: contact sheet")
    if arguments.html is not None:
        print(f"{arguments.html}: page of {len(names)} object{'s' if len(names) > 1 else ''}")
    return result


def _inspected(
    library: ObjectLibrary, names: list[str], sheets: ContactSheets | None, result: Review, known: bool
) -> Iterator[Card]:
    """Yield each object for the page, after adding it to the contact sheets and to the result."""
    from ocdit_core.objects.gallery import Card, length, symmetry_text
    from ocdit_core.objects.templates import check_views

    entries, result.bad = _entries(library)
    for name in names:
        try:
            templates = library[name]
        except LibraryError as error:
            result.bad += 1
            report(error)
            yield Card(name=name, problems=[str(error)])
            continue
        problems = check_views(templates)
        result.bad += bool(problems)
        for problem in problems if not known else []:
            report(LibraryError(f"{name}: {problem}"))
        if sheets is not None:
            sheets.add(templates)
        entry = entries.get(name)
        number = str(entry.id) if entry else "-"
        main = templates.sources[0] if templates.sources else "-"
        facts = [length(templates.diameter), templates.unit or "-", templates.origin]
        result.rows.append([name, number, str(len(templates)), *facts, symmetry_text(templates) or "-", main])
        yield Card(name=name, templates=templates, entry=entry, problems=problems)


def _entries(library: ObjectLibrary) -> tuple[dict[str, ObjectEntry], int]:
    try:
        return library.manifest, 0
    except LibraryError as error:
        report(error)
        return {}, 1
