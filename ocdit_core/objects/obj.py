"""OBJ files made fit for trimesh, which reads the first material file only."""

from __future__ import annotations

import re

from ocdit_core.objects.sources import SourceFiles

_LIBRARY = re.compile(rb"(?m)^[ \t]*mtllib[ \t]+([^\r\n]+?)[ \t]*\r?$")
_COORDINATE = re.compile(rb"(?m)^vt[ \t][^\n]*$")


def readable_obj(files: SourceFiles, data: bytes) -> bytes:
    """Return an OBJ file that trimesh reads as it is meant.

    Several material files count as one. Without any, texture coordinates mean nothing and go: trimesh would drop the
    colours of the vertices in their favour.
    """
    lines = list(dict.fromkeys(name.decode("utf-8", "replace") for name in _LIBRARY.findall(data)))
    if not lines:
        return _COORDINATE.sub(b"", data)
    # One line may list several files, but a name may hold spaces as well.
    names = [name for line in lines for name in ([line] if files.exists(line) else line.split())]
    if names != lines or len(names) > 1:
        files.join(lines[0], names)
    return data
