"""Where shards come from: local files, folders, patterns and web addresses; and their bytes, in order."""

from __future__ import annotations

import http.client
import itertools
import logging
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Protocol

from ocdit_core.errors import DataError

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds without a byte before a web server is given up and asked again."""

RETRIES = 3
"""Attempts to go on after a broken connection, without a byte in between."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_address(source: str | Path) -> bool:
    """Return whether a source is a web address."""
    return str(source).startswith(("http://", "https://"))


def expand_sources(source: str | Path) -> list[str]:
    """Return the shards meant, in order.

    Args:
        source: a .tar file, a folder with some, a web address, or one of these with braces:
            shard-{000000..000099}.tar, {a,b}/shard.tar.

    Raises:
        DataError: a pattern that cannot be read, a folder without shards, or no such file.
    """
    found: list[str] = []
    for name in expand_braces(str(source)):
        path = Path(name)
        if is_address(name):
            found.append(name)
        elif path.is_dir():
            shards = sorted(str(entry) for entry in path.glob("*.tar") if not entry.name.startswith("."))
            if not shards:
                raise DataError(f"{path}: holds no shard (*.tar)", kind="missing file")
            found += shards
        elif path.is_file():
            found.append(name)
        else:
            raise DataError(f"{path}: no such shard", kind="missing file")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for: {000..012} counts, with leading zeros, {a,b} lists.

    Raises:
        DataError: braces that are neither.
    """
    parts: list[list[str]] = []
    at = 0
    for match in _BRACES.finditer(pattern):
        inner = match[1]
        numbers = _RANGE.fullmatch(inner)
        if numbers is not None and int(numbers[1]) <= int(numbers[2]):
            width = len(numbers[1])
            choices = [f"{n:0{width}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
        elif "," in inner:
            choices = inner.split(",")
        else:
            raise DataError(f"{pattern}: {match[0]} is neither a rising range {{000000..000099}} nor a list {{a,b}}")
        parts += [[pattern[at : match.start()]], choices]
        at = match.end()
    parts.append([pattern[at:]])
    return ["".join(choice) for choice in itertools.product(*parts)]


class ByteSource(Protocol):
    """What a shard is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""

    def close(self) -> None:
        """Give the file or connection back."""


def open_source(source: str | Path) -> ByteSource:
    """Open a shard for reading from its beginning.

    Raises:
        DataError: missing, or the server does not answer.
    """
    if is_address(source):
        return WebFile(str(source))
    try:
        return Path(source).open("rb")
    except FileNotFoundError:
        raise DataError(f"{source}: no such shard", kind="missing file") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})", kind="missing file") from error


class WebFile:
    """A file on a web server, read in order; a connection that breaks is made anew and goes on where it broke.

    Raises:
        DataError: the server does not answer, or refuses.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._position = 0
        self._length: int | None = None
        self._failures = 0
        self._response: IO[bytes] = self._connect()

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            DataError: the connection broke again and again.
        """
        while True:
            try:
                data = self._response.read(size)
                if data or size == 0 or self._length is None or self._position >= self._length:
                    self._position += len(data)
                    self._failures = 0 if data else self._failures
                    return data
                reason = f"{self._length - self._position} bytes are missing"
            except (OSError, http.client.HTTPException) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._failures += 1
            if self._failures > RETRIES:
                raise DataError(
                    f"{self.address}: the connection broke at byte {self._position} ({reason})", kind="network"
                )
            logger.info("%s: goes on at byte %d (%s)", self.address, self._position, reason)
            self._response.close()
            self._response = self._connect()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _connect(self) -> IO[bytes]:
        request = urllib.request.Request(self.address)
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            raise DataError(f"{self.address}: the server says {error.code} {error.reason}", kind="network") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise DataError(f"{self.address}: no connection ({reason})", kind="network") from error
        if self._position and response.status != http.client.PARTIAL_CONTENT:
            # A server without ranges starts again: what is known already is read past.
            left = self._position
            while left and (skipped := response.read(min(left, 1 << 20))):
                left -= len(skipped)
        elif not self._position:
            length = response.headers.get("Content-Length")
            self._length = int(length) if length is not None and length.isdecimal() else None
        return response
