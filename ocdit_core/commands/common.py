"""What the subcommands share: how they report problems, and how they print tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ocdit_core.errors import OcditError


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Return a new subcommand's parser, with examples under its help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def report(error: OcditError) -> None:
    """Print one problem on stderr, where the work goes on with the next item."""
    from tqdm import tqdm

    # A progress bar may be standing on this line.
    tqdm.write(f"ocdit: error: {error}", file=sys.stderr)


def positive(text: str) -> int:
    """Parse a number above 0 (for argparse)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def fraction(text: str) -> float:
    """Parse a number from 0 to 1 (for argparse)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 1")
    return value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns on stdout: the first left-aligned, numbers right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        cells = (
            text.rjust(width) if row is not header and text[:1].isdigit() else text.ljust(width)
            for text, width in zip(row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())
