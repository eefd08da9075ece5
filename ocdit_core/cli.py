"""The command line `ocdit`, with the subcommands of `ocdit_core.commands`."""

import argparse
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ocdit_core import __version__
from ocdit_core.commands import app, benchmark, datasets, evaluation, library, segment, training
from ocdit_core.commands.options import error_line
from ocdit_core.errors import OcditError
from ocdit_core.files import protecting, reason

COMMANDS = (library, segment, app, datasets, training, evaluation, benchmark)
"""Modules with `add_parsers(subparsers)`; they import heavy packages only when a command runs."""

PLUGINS = "ocdit.commands"
"""Entry point group of further commands: each names a module with a function `add_parsers(subparsers)`."""

OUTPUTS = ("out", "sheet", "html", "json", "plot")
"""Options that name files to write; all other paths of a command line are inputs."""

EPILOG = """\
quick start:
  ocdit render drill.glb mug.ply --out my_objects/
  ocdit segment table.jpg --objects my_objects/ --targets drill mug --out out/
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="ocdit",
        description="Segment objects in images, given their CAD models or photos; no training for new objects.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ocdit {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show debug messages, and tracebacks of errors")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parsers(subparsers)
    for plugin in sorted(importlib.metadata.entry_points(group=PLUGINS)):
        try:
            module = plugin.load()
        except ModuleNotFoundError:
            continue  # ocdit_ros is not installed
        module.add_parsers(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 success, 2 invalid input (one line per problem on stderr).

    Args:
        argv: arguments without the program's name; default: the process's own.
    """
    arguments = build_parser().parse_args(argv)
    level = logging.DEBUG if arguments.verbose else logging.INFO
    handler = _Handler()
    handler.setFormatter(logging.Formatter("ocdit: %(message)s"))
    log = logging.getLogger("ocdit_core")
    log.addHandler(handler)
    before, log.level = log.level, level
    # Names of files and objects may have characters that the terminal cannot encode.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with protecting(_input_files(arguments)):
            return int(arguments.run(arguments))
    except OcditError as error:
        return _fail(str(error), arguments.verbose)
    except KeyboardInterrupt:
        print("ocdit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output (head, less) has closed it: buffered output must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, UnicodeError) as error:
        name = getattr(error, "filename", None)
        return _fail(f"{name}: {reason(error)}" if name else reason(error), arguments.verbose)
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Handler(logging.Handler):
    """Write log records to stderr; tqdm's own print keeps a progress bar on its line."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def _input_files(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yield the input files on the command line, which no output may replace."""
    for option, value in vars(arguments).items():
        if option not in OUTPUTS:
            values = value if isinstance(value, list) else [value]
            yield from (Path(one) for one in values if isinstance(one, (Path, str)))


def _fail(message: str, verbose: bool) -> int:
    if verbose:
        logging.getLogger("ocdit_core").exception("traceback:")
    print(error_line(message), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
