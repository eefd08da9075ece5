"""Write output files atomically, and never over a file that this package did not write.

Each output folder has a hidden list of the files written to it, `.ocdit-files.jsonl`, with checksums. An existing file
is replaced or removed only if it is listed and unchanged; anything else belongs to the user.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ocdit_core.errors import OutputError

OWN_FILES = ".ocdit-files.jsonl"
"""Name of the list of own files in a folder: a line {"file": name, "sha256": checksum} for each that was written."""

_inputs: ContextVar[frozenset[tuple[int, int]]] = ContextVar("inputs", default=frozenset())


@contextmanager
def replacing(path: str | Path, *, guard: bool = True, known: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed to `path` when the block ends without an error.

    The folder is created if it is missing. The temporary file keeps the suffix of `path`, which selects the format in
    many writers.

    Args:
        path: the file to write.
        guard: refuse to replace files that ocdit did not write, and add this one to the list. False is for folders
            that only ocdit writes to: caches, training runs.
        known: return, from its content, whether a file that is not listed is nevertheless ours.

    Raises:
        OutputError: `path` exists and is not ours, is an input, or cannot be written to; a file that was there before
            is untouched.
    """
    path = Path(path)
    if guard:
        check_output(path, known=known)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private, but results should have the user's usual permissions.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            if guard:
                # Before renaming: if the process is killed in between, no unlisted file remains.
                _list(path, temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except (OSError, UnicodeError) as error:
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from error


def write_bytes(path: str | Path, data: bytes, *, guard: bool = True) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path, guard=guard) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, *, guard: bool = True) -> None:
    """Write UTF-8 text atomically; see `replacing`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), guard=guard)


def reason(error: OSError | UnicodeError) -> str:
    """Return why a file could not be read or written, in a few words."""
    if isinstance(error, UnicodeError):
        return "its name has characters that this locale cannot encode; set LC_ALL=C.UTF-8"
    return error.strerror or str(error)


def check_output(*paths: str | Path, known: Callable[[Path], bool] | None = None) -> None:
    """Check that files can be written, before long work begins.

    Raises:
        OutputError: one exists that is an input of this command, a folder, or a file that ocdit did not write.
    """
    for path in map(Path, paths):
        if not os.path.lexists(path):
            continue
        if _identity(path) in _inputs.get():
            raise OutputError(f"{path}: is an input of this command; choose another output")
        if path.is_dir():
            raise OutputError(f"{path}: is a folder, where a file is to be written")
        if not is_own(path) and not (known is not None and known(path)):
            raise OutputError(
                f"{path}: exists and was not written by ocdit, or was changed since; move it or choose another output"
            )


def is_own(path: Path, *, changed: bool = False) -> bool:
    """Return whether ocdit wrote a file and it is unchanged since; `changed` accepts a changed one."""
    if path.is_symlink() or not path.is_file():
        return False
    checksums = _listed(path.parent).get(path.name, set())
    return bool(checksums) if changed else bool(checksums) and _checksum(path) in checksums


def own_files(folder: Path) -> list[Path]:
    """Return the files in a folder that ocdit wrote and that are unchanged since, sorted."""
    return [path for name in sorted(_listed(folder)) if is_own(path := folder / name)]


@contextmanager
def protecting(inputs: Iterable[Path]) -> Iterator[None]:
    """Refuse to replace these files inside the block, even those that ocdit wrote: they are still to be read."""
    token = _inputs.set(_inputs.get() | {identity for path in inputs if (identity := _identity(path))})
    try:
        yield
    finally:
        _inputs.reset(token)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _listed(folder: Path) -> dict[str, set[str]]:
    """Return the checksums of the files that ocdit wrote to a folder, by name."""
    listed: dict[str, set[str]] = {}
    with suppress(OSError):
        for line in (folder / OWN_FILES).read_bytes().splitlines():
            # A killed process may leave an incomplete line.
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                listed.setdefault(str(entry["file"]), set()).add(entry["sha256"])
    return listed


def _list(path: Path, content: Path) -> None:
    line = json.dumps({"file": path.name, "sha256": _checksum(content)}) + "\n"
    # A single append, so that processes may share a folder.
    with (path.parent / OWN_FILES).open("ab", buffering=0) as file:
        file.write(line.encode("ascii"))


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
