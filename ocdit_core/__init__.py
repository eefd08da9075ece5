"""OC-DiT: zero-shot instance segmentation by a latent diffusion transformer conditioned on rendered views."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["ObjectLibrary", "Segmenter", "__version__"]

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.objects.library import ObjectLibrary


def __getattr__(name: str) -> Any:
    # Loaded on first use: `ocdit --help` and `ocdit render` need not wait for torch.
    if name == "Segmenter":
        from ocdit_core.inference.segmenter import Segmenter

        return Segmenter
    if name == "ObjectLibrary":
        from ocdit_core.objects.library import ObjectLibrary

        return ObjectLibrary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
