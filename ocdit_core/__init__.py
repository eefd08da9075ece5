"""OC-DiT: zero-shot instance segmentation by a latent diffusion transformer conditioned on rendered views."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["ObjectLibrary", "Segmenter", "__version__"]

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.objects.library import ObjectLibrary


# Loaded on first use: `ocdit --help` and `ocdit render` need not wait for torch.
_LAZY = {"Segmenter": "ocdit_core.inference.segmenter", "ObjectLibrary": "ocdit_core.objects.library"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
