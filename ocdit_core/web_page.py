"""Self-contained HTML pages from the Jinja2 templates in `ocdit_core/templates`.

A template extends `base.html` (light and dark style; blocks `style` and `body`) and may import the macros `table`,
`bars` and `figure` of `macros.html`. Values are escaped, an undefined name is an error, and the filter `data_uri`
embeds an image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import DataError
from ocdit_core.files import replacing

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells for the macro `table`.

    Attributes:
        header: one cell per column.
        rows: cells; the first column is aligned left, the others right.
        caption: shown above the table.
        row_classes: CSS class of each row: "dim", "mark" or "".
        text_columns: indices of further columns that are aligned left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    row_classes: Sequence[str] = ()
    text_columns: Sequence[int] = ()


def write_page(path: str | Path, template: str, **context: Any) -> int:
    """Render a template to a file, atomically.

    The page is written piece by piece as it is rendered: a generator in the context is consumed lazily, so that a page
    may be larger than memory.

    Args:
        path: HTML file to write.
        template: file name in `ocdit_core/templates`.
        context: variables of the template.

    Returns:
        The size of the page in characters.

    Raises:
        DataError: Jinja2 is not installed, or the file cannot be written.
    """
    stream = _environment().get_template(template).stream(context)
    stream.enable_buffering(64)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        return sum(file.write(piece) for piece in stream)


def data_uri(image: np.ndarray) -> str:
    """Return a (H, W, 3) uint8 RGB image as a data URI in WebP format."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=82, method=2)
    return encode_uri(buffer.getvalue(), "image/webp")


def encode_uri(content: bytes, media_type: str) -> str:
    """Return content as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError:
        raise DataError("HTML pages need the package jinja2: pip install jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment
