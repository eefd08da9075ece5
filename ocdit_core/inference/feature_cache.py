"""Features of objects' views on disk, so that a program that starts again need not compute them again.

A backbone such as DINOv2 takes a second of CPU for each object; reading its features takes a millisecond.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ocdit_core.errors import OutputError
from ocdit_core.files import replacing
from ocdit_core.models.ocdit import OCDiT, TemplateFeatures
from ocdit_core.objects.archive import ObjectTemplates

logger = logging.getLogger(__name__)

FEATURES_VERSION = 2
"""Raised whenever the same views and weights give other features, or the files change."""

MAX_BYTES = 2 << 30
"""A cache that outgrows this loses the files that were not used for longest."""

_SUFFIX = ".safetensors"


def default_cache() -> Path | None:
    """Return the user's folder for features: in $OCDIT_CACHE, else in $XDG_CACHE_HOME/ocdit, else in ~/.cache/ocdit.

    None where there is no home either.
    """
    own, shared = os.environ.get("OCDIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own) / "features"
    # The specification has relative paths ignored.
    if os.path.isabs(shared):
        return Path(shared) / "ocdit" / "features"
    try:
        return Path.home() / ".cache" / "ocdit" / "features"
    except RuntimeError:
        return None


def views_digest(templates: ObjectTemplates) -> str:
    """Return a hexadecimal hash of an object's views: colours and masks, whatever the object is called."""
    digest = hashlib.sha256(repr(templates.rgb.shape).encode())
    digest.update(np.ascontiguousarray(templates.rgb).data)
    digest.update(np.packbits(templates.mask).data)
    return digest.hexdigest()


def weights_digest(model: OCDiT, device: torch.device) -> str:
    """Return a hexadecimal hash of all that features of views depend on besides the views.

    That is the backbone and the matching prior, their settings and the templates' size, not the denoiser's weights;
    and the kind of device and the version of torch, which round in their own ways.
    """
    config = model.config
    settings = (config.template_size, config.backbone, config.matching_prior, config.denoiser)
    digest = hashlib.sha256(repr((FEATURES_VERSION, settings, device.type, torch.__version__)).encode())
    for name, module in (("backbone", model.backbone), ("prior", model.prior)):
        for key, value in module.state_dict().items() if module is not None else ():
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


class FeatureCache:
    """A folder of features; it may be shared by any number of processes, deleted at any time, or not writable.

    Args:
        folder: made with the first file.
        max_bytes: see `trim`.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = Path(folder)
        self._max_bytes = max_bytes
        self._writable = True

    def read(self, key: str, device: torch.device) -> TemplateFeatures | None:
        """Return the features that were written under this key, on a device; None if there are none that are sound."""
        path = self._path(key)
        try:
            with safetensors.safe_open(path, "pt") as file:
                checksum = (file.metadata() or {}).get("crc32")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            return self._damaged(path, str(error))
        if checksum != _checksum(tensors):
            return self._damaged(path, "its checksum is wrong")
        # The time of its last use, by which `trim` goes.
        with suppress(OSError):
            os.utime(path)
        return _assemble({name: tensor.to(device) for name, tensor in tensors.items()})

    def write(self, key: str, features: TemplateFeatures) -> None:
        """Keep features under a key, atomically; where that is not possible it is logged once, and left."""
        if not self._writable:
            return
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _parts(features).items()}
        path = self._path(key)
        try:
            with replacing(path, guard=False) as temporary:
                safetensors.torch.save_file(tensors, temporary, metadata={"crc32": _checksum(tensors)})
        except (OutputError, safetensors.SafetensorError) as error:
            self._writable = False
            logger.warning("%s: features of views cannot be kept there (%s); computing them each time", path, error)

    def trim(self) -> None:
        """Delete the files that were not used for longest until the rest is no more than `max_bytes`."""
        files = []
        with suppress(OSError):
            for entry in os.scandir(self.folder):
                with suppress(OSError):
                    if entry.name.endswith(_SUFFIX):
                        files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        size = sum(one for _, one, _ in files)
        for _, one, path in sorted(files):
            if size <= self._max_bytes:
                return
            with suppress(OSError):
                os.unlink(path)
            size -= one

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    @staticmethod
    def _damaged(path: Path, reason: str) -> None:
        logger.warning("%s: damaged features of views (%s); computing them anew", path, " ".join(reason.split())[:120])


def plain_layout(features: TemplateFeatures) -> TemplateFeatures:
    """Return the same with each tensor in the order of its axes, as it comes from disk.

    Convolutions leave their results in another order, in which later sums round in another way: without this, results
    would differ in the fifth digit between the first and the second run of a program.
    """
    return _assemble({name: tensor.contiguous() for name, tensor in _parts(features).items()})


def _parts(features: TemplateFeatures) -> dict[str, Tensor]:
    parts = {"features": features.features}
    parts |= {f"descriptor_{number}": tensor for number, tensor in enumerate(features.descriptors)}
    return parts if features.global_features is None else parts | {"global": features.global_features}


def _assemble(parts: dict[str, Tensor]) -> TemplateFeatures:
    descriptors = sum(name.startswith("descriptor_") for name in parts)
    return TemplateFeatures(
        features=parts["features"],
        descriptors=tuple(parts[f"descriptor_{number}"] for number in range(descriptors)),
        global_features=parts.get("global"),
    )


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(_bytes(tensors[name]), zlib.crc32(f"{name} {tuple(tensors[name].shape)}".encode(), value))
    return f"{value:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    # By way of uint8: NumPy knows no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
