"""Target objects: from names in a library to encoded templates, cached in memory and on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ocdit_core.errors import ConfigError, OutputError
from ocdit_core.files import replacing
from ocdit_core.inference.geometry import ObjectGeometry
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.ocdit import OCDiT, TargetSet, TemplateFeatures, join_templates
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary

logger = logging.getLogger(__name__)

# Raised whenever the same templates and weights give other features, or the format of the files changes.
FEATURES_VERSION = 2
# A disk cache that grows larger loses its least recently used files.
MAX_CACHE_BYTES = 2 << 30
# As many objects stay in memory, about 2 MB each, beside those in use.
MAX_MEMORY_OBJECTS = 128

_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedObjects:
    """Target objects, encoded once by `Segmenter.encode_objects` for many images.

    Attributes:
        object_ids: names of the targets, in the order in which they were given.
        runs: sets of the coarse model, one run of the network each: the targets, then the distractors.
        singles: targets of the refine model, as sets of one object each; None without a refine model.
        geometry: geometry of each target.
    """

    object_ids: tuple[str, ...]
    runs: tuple[TargetSet, ...]
    singles: TargetSet | None = None
    geometry: tuple[ObjectGeometry, ...] = ()

    @property
    def count(self) -> int:
        """Number of objects, distractors included."""
        return sum(run.tokens.object_indices.shape[1] for run in self.runs)


class TargetEncoder:
    """Encodes target objects for a coarse and a refine model; several threads may use it at the same time.

    Args:
        coarse: the coarse model.
        refine: the refine model, if there is one.
        settings: inference settings.
        cache: see `ObjectEncoder`.
    """

    def __init__(
        self, coarse: Network, refine: Network | None, settings: InferenceSettings, cache: str | Path | None
    ) -> None:
        self._coarse = ObjectEncoder(coarse, cache)
        self._refine = None if refine is None else ObjectEncoder(refine, cache)
        self._distractors = settings.distractors
        # Those in use: what they compute once is kept when other targets change.
        self._geometry: WeakValueDictionary[int, ObjectGeometry] = WeakValueDictionary()

    @torch.inference_mode()
    def encode(self, library: ObjectLibrary, object_ids: Sequence[str]) -> EncodedObjects:
        """Return encoded target objects; raises the errors of `Segmenter.set_objects`."""
        names = tuple(object_ids)
        if not names:
            raise ConfigError(f"no target objects are named; the library has {', '.join(library.object_ids)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"a target object is named twice in {', '.join(names)}")
        # Random other objects for the positions that the targets leave free in the last run (paper 4.2).
        capacity = self._coarse.network.model.config.denoiser.max_objects
        others = np.random.default_rng(0).permutation([name for name in library.object_ids if name not in names])
        distractors = others[: min(self._distractors, -len(names) % capacity)].tolist()
        templates, features = self._features(self._coarse, library, [*names, *distractors])
        geometry = tuple(self._geometry_of(own) for own in templates[: len(names)])
        # More objects than learned positions take turns.
        parts = [features[begin : begin + capacity] for begin in range(0, len(features), capacity)]
        runs = [self._coarse.network.encode_targets(join_templates(part)) for part in parts]
        singles = None
        if self._refine is not None:
            _, features = self._features(self._refine, library, names)
            singles = self._refine.network.encode_targets(join_templates(features, one_set=False))
        return EncodedObjects(object_ids=names, runs=tuple(runs), singles=singles, geometry=geometry)

    def _geometry_of(self, templates: ObjectTemplates) -> ObjectGeometry:
        parts = (templates.points, templates.pose, templates.symmetries_discrete, templates.symmetries_continuous)
        key = hash((templates.diameter, *(part.tobytes() for part in parts)))
        return self._geometry.setdefault(key, ObjectGeometry(templates))

    def _features(
        self, encoder: ObjectEncoder, library: ObjectLibrary, names: Sequence[str]
    ) -> tuple[list[ObjectTemplates], list[TemplateFeatures]]:
        """Return the templates of each object and their features, with the same number of views for all."""
        library.require(names)
        # An object's archive may hold hundreds of views: only the chosen ones of each stay in memory.
        most = encoder.network.model.config.denoiser.max_views
        chosen = [library[name].best_views(most) for name in names]
        views = max(len(templates) for templates in chosen)
        chosen = [templates.exactly(views) for templates in chosen]
        features = [encoder.encode(templates) for templates in chosen]
        encoder.trim()
        return chosen, features


class ObjectEncoder:
    """Encodes templates with one model, each object once; several threads may use it at the same time.

    Args:
        network: the model.
        cache: folder of cached features on disk; "auto": `default_cache`; None: no disk cache.
    """

    def __init__(self, network: Network, cache: str | Path | None = "auto") -> None:
        self.network = network
        folder = default_cache() if cache == "auto" else cache
        self._disk = None if folder is None else FeatureCache(folder)
        self._memory: dict[str, TemplateFeatures] = {}
        self._weights = ""

    @torch.inference_mode()
    def encode(self, templates: ObjectTemplates, views: int | None = None) -> TemplateFeatures:
        """Return the features (1, 1, V, ...) of one object.

        Args:
            templates: templates of the object.
            views: number of views V (see `ObjectTemplates.exactly`); default: all.
        """
        chosen = templates.exactly(len(templates) if views is None else views)
        key = templates_digest(chosen)
        if key in self._memory:
            self._memory[key] = self._memory.pop(key)  # the last one is the one used last
            return self._memory[key]
        features = None if self._disk is None else self._disk.read(self._file(key), self.network.device)
        if features is None:
            # As they are read from disk: sums over tensors of another memory layout differ in the fifth digit.
            features = self._compute(chosen).map(Tensor.contiguous)
            if self._disk is not None:
                self._disk.write(self._file(key), features)
        self._memory[key] = features
        return features

    def trim(self) -> None:
        """Forget the features that have not been used for longest, beyond the bounds of memory and disk cache."""
        for key in [*self._memory][:-MAX_MEMORY_OBJECTS]:
            del self._memory[key]
        if self._disk is not None:
            self._disk.trim()

    def _file(self, key: str) -> str:
        # Computed once, when it is first needed: it reads all weights of the backbone.
        self._weights = self._weights or weights_digest(self.network.model, self.network.device)
        return f"{self._weights[:24]}-{key[:40]}"

    def _compute(self, chosen: ObjectTemplates) -> TemplateFeatures:
        height, width = self.network.model.config.template_size
        rgb, masks = (
            np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA) for view in views])
            for views in (chosen.rgb, chosen.mask.astype(np.float32))
        )
        return self.network.encode_templates(rgb, masks)


def default_cache() -> Path | None:
    """Return the user's folder of cached features; None: there is no home folder.

    It is $OCDIT_CACHE/features, else $XDG_CACHE_HOME/ocdit/features, else ~/.cache/ocdit/features.
    """
    own, shared = os.environ.get("OCDIT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own) / "features"
    # The XDG specification ignores relative paths.
    if os.path.isabs(shared):
        return Path(shared) / "ocdit" / "features"
    try:
        return Path.home() / ".cache" / "ocdit" / "features"
    except RuntimeError:
        return None


def templates_digest(templates: ObjectTemplates) -> str:
    """Return a hexadecimal hash of an object's images and masks."""
    digest = hashlib.sha256(repr(templates.rgb.shape).encode())
    digest.update(np.ascontiguousarray(templates.rgb).data)
    digest.update(np.packbits(templates.mask).data)
    return digest.hexdigest()


def weights_digest(model: OCDiT, device: torch.device) -> str:
    """Return a hexadecimal hash of all that template features depend on besides the templates.

    This is the backbone and the matching prior, their configuration and the size of templates; and the kind of device
    and the version of torch, as their results differ in the last digits.
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
    """A folder of template features, which any number of processes may share and which may be deleted at any time.

    A backbone such as DINOv2 takes a second of CPU time for each object; reading its features takes a millisecond.

    Args:
        folder: the folder; created with the first file.
        max_bytes: size above which `trim` deletes files.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.folder = Path(folder)
        self._max_bytes = max_bytes
        self._writable = True

    def read(self, key: str, device: torch.device) -> TemplateFeatures | None:
        """Return the features of a key on a device; None: there are none, or they are damaged."""
        path = self._path(key)
        try:
            with safetensors.safe_open(path, "pt") as file:
                checksum = (file.metadata() or {}).get("crc32")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if checksum != _checksum(tensors):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            logger.warning("%s: damaged template features (%s); computing them again", path, reason)
            return None
        # The time of its last use, for `trim`.
        with suppress(OSError):
            os.utime(path)
        return _assemble({name: tensor.to(device) for name, tensor in tensors.items()})

    def write(self, key: str, features: TemplateFeatures) -> None:
        """Write features atomically; a folder that cannot be written is logged once and then left alone."""
        if not self._writable:
            return
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in _parts(features).items()}
        path = self._path(key)
        try:
            with replacing(path, guard=False) as temporary:
                safetensors.torch.save_file(tensors, temporary, metadata={"crc32": _checksum(tensors)})
        except (OutputError, safetensors.SafetensorError) as error:
            self._writable = False
            logger.warning("%s: template features cannot be cached there (%s)", path, error)

    def trim(self) -> None:
        """Delete the least recently used files until the rest has at most `max_bytes`."""
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
    # Viewed as uint8, as NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
