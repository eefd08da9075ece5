"""Errors for users: one line with the offending value and the remedy."""

from __future__ import annotations


class OcditError(Exception):
    """Base class of the errors of this package; the message is one line that can be shown to the user."""


class ConfigError(OcditError):
    """A setting is unknown, of the wrong type or out of range; the message contains its dotted key."""


class ImageError(OcditError):
    """An image is missing, unreadable, of an unsupported type, or has values that are not finite."""


class MeshError(OcditError):
    """A CAD model is missing, unreadable, empty, or has vertices that are not finite."""


class RenderingError(OcditError):
    """Rendering failed: there is no off-screen OpenGL context, or an object is out of view."""


class LibraryError(OcditError):
    """A folder of rendered objects is missing, empty, damaged, or of another schema version."""


class UnknownObjectError(LibraryError):
    """The library has no object of this name; `known` lists its objects."""

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
    """Training or evaluation data is missing or damaged; `kind` names the damage in a few words, for counts."""

    def __init__(self, message: str, *, kind: str = "damaged"):
        super().__init__(message)
        self.kind = kind


class BagError(OcditError):
    """A recorded bag is missing, damaged or truncated, lacks a topic, or cannot be written."""
