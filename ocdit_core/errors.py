"""The errors a user can meet: each message says what is wrong, with which value, and what would be right."""

from __future__ import annotations


class OcditError(Exception):
    """Base of every error that this package raises on purpose; its text is one line fit to be shown as it is."""


class ConfigError(OcditError):
    """A setting is unknown, of the wrong type or out of range; the message holds the dotted path to its key."""


class ImageError(OcditError):
    """A picture is missing, unreadable, of an unsupported kind, or holds values that are not finite."""


class MeshError(OcditError):
    """A CAD model is missing, unreadable, empty, or has vertices that are not finite."""


class RenderingError(OcditError):
    """No picture could be drawn: the off-screen OpenGL context is missing, or an object is out of the view."""


class LibraryError(OcditError):
    """A folder of rendered objects is missing, empty, damaged, or of another schema version."""


class UnknownObjectError(LibraryError):
    """An object was asked for that the library does not hold; `known` lists what it holds."""

    def __init__(self, unknown: list[str], known: list[str]):
        self.unknown = unknown
        self.known = known
        names = ", ".join(repr(name) for name in unknown)
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        super().__init__(f"unknown object {names}: the library holds {', '.join(known[:20])}{more}")

    def __reduce__(self) -> tuple[type[UnknownObjectError], tuple[list[str], list[str]]]:
        return type(self), (self.unknown, self.known)


class OutputError(OcditError):
    """A file cannot be written, or would replace one that this package did not write."""


class WeightsError(OcditError):
    """A checkpoint is missing, truncated, or does not fit the model that its config describes."""


class DataError(OcditError):
    """Training or evaluation data is missing or damaged; `kind` says in two or three words how, for counts."""

    def __init__(self, message: str, *, kind: str = "damaged"):
        super().__init__(message)
        self.kind = kind


class BagError(OcditError):
    """A recorded bag is missing, damaged or cut off, lacks what was asked of it, or cannot be written."""
