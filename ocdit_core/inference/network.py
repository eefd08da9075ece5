"""Runs one model, coarse or refine: precision, batches that fit into memory, time of each stage."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.inference.settings import InferenceSettings, Precision
from ocdit_core.models.backbones import SameConv2d
from ocdit_core.models.blocks import MLP, Attention, SplitLinear
from ocdit_core.models.denoiser import Conditioning, NoiseLevel
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.matching_prior import SUBCELL, PriorMaps, relevant_windows, without_empty_cells
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet, TemplateFeatures, leaves_out_cells

log = logging.getLogger(__name__)

# Cells (objects x grid) of one batch on a CPU, where no out-of-memory error tells that it is too large. At the
# published sizes, a batch of the denoiser then takes 1.5 GB, and one of the decoder 1 GB.
_DENOISER_CELLS_ON_CPU = 2**15
_DECODER_CELLS_ON_CPU = 2**13


class Network:
    """Generates masks with one model.

    Several threads may use it at the same time.

    Args:
        model: the model, which is moved to the device unless it is copied for its precision; its weights must not
            change any more.
        device: device to run on.
        settings: inference settings.
        stage: prefix of its stages in timings.
    """

    def __init__(self, model: OCDiT, device: torch.device, settings: InferenceSettings, stage: str = "") -> None:
        self._half = computes_in_half(settings.precision, device)
        self.model = prepare(model, device, half=self._half, compiled=settings.compile)
        self._encoder: Callable[[Tensor], ImageFeatures] | None = None
        if settings.engine != "torch":
            from ocdit_core.inference.engines import ImageEncoder

            # Not the prepared copy: its operators cannot be exported.
            self._encoder = ImageEncoder(model.eval(), settings.engine, device, half=self._half)
        self.device = device
        self._settings = settings
        self._stage = stage
        self._levels: dict[float, NoiseLevel] = {}
        on_cpu = device.type == "cpu"
        self._denoiser_batch = _BatchLimit(_DENOISER_CELLS_ON_CPU if on_cpu else math.inf)
        self._decoder_batch = _BatchLimit(_DECODER_CELLS_ON_CPU if on_cpu else math.inf)

    def encode(self, images: np.ndarray) -> ImageFeatures:
        """Return the features of N images (N, h, w, 3) uint8 RGB."""
        if self._encoder is not None:
            features = self._encoder(self._to_tensor(images))
        else:
            # Not in bfloat16 for the matching prior: its similarities differ by little.
            with self._autocast(self._half and self.model.prior is None):
                features = self.model.encode_image(self._to_tensor(images))
        lap(f"{self._stage}backbone", self.device)
        return features

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the backbone features (N, C, h / 16, w / 16) float32 of N images (N, h, w, 3) uint8 RGB."""
        features: Tensor = self.model.backbone(self._to_tensor(images))
        return features.float().cpu().numpy()

    def encode_templates(self, rgb: np.ndarray, masks: np.ndarray) -> TemplateFeatures:
        """Return the features of one object's templates: (V, h, w, 3) uint8 and (V, h, w) float32 in [0, 1]."""
        masks_on_device = torch.from_numpy(masks).to(self.device)
        return self.model.encode_templates(self._to_tensor(rgb)[None, None], masks_on_device[None, None])

    def encode_targets(self, templates: TemplateFeatures) -> TargetSet:
        """Return target objects for `generate`; see `OCDiT.encode_targets`."""
        if templates.descriptors:
            templates = dataclasses.replace(templates, descriptors=without_empty_cells(templates.descriptors))
        with self._autocast(self._half):
            return self.model.encode_targets(templates)

    def generate(
        self,
        image: ImageFeatures,
        targets: TargetSet,
        crops: int = 1,
        *,
        prompts: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        trace: Callable[[float, Tensor], None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generate masks, averaged over the ensemble and, with `prior_weight`, with the matching prior's own.

        The initial noise is the same for all images and all sets of targets, so that a result does not depend on what
        else is in the batch.

        Args:
            image: features of B W crops, W for each set of targets.
            targets: B sets of O objects.
            crops: crops of the same image, which have different noise; W is a multiple of it.
            prompts: prompt maps of the crops, see `OCDiT.match`; the matching prior's own masks, which do not know
                them, are left out then.
            sampler: sampler; default: that of the settings.
            trace: called with the noise level and the denoised latents (B, W E, O, z, ...) of each evaluation.

        Returns:
            (B, W, O, h, w) float32 probabilities of the pixels showing each object; (B, W, O) float32 probabilities of
            each object being in a crop at all, 1 for a model that does not estimate them.
        """
        sets, objects = targets.tokens.object_indices.shape
        windows = image.features.shape[0] // sets
        matched = self.model.match(image, targets, None if prompts is None else prompts.to(self.device))
        _, maps = matched
        sampler = sampler or self._settings.sampler
        # A compiled network takes minutes for each number of cells.
        all_cells = self._settings.compile or prompts is not None or not leaves_out_cells(sampler)
        with self._autocast(self._half):
            latents, tokens = self.model.sample_latents(
                image,
                targets,
                matched,
                sampler,
                ensemble=self._settings.ensemble,
                crops=crops,
                all_cells=all_cells,
                denoise=lambda x, sigma, conditioning: self._denoise(x, self._level(sigma), conditioning),
                trace=trace,
            )
            lap(f"{self._stage}sampling", self.device)
            members = rearrange(latents, "b (w e) o z h w2 -> (b w o) e z h w2", w=windows)
            if maps is None or all_cells:
                decoded = self._decode(members.flatten(0, 1)).unflatten(0, members.shape[:2])
            else:
                decoded = self._decode_windows(members, relevant_windows(maps))
            mean = decoded.mean(1).float().unflatten(0, (sets, windows, objects))
        if maps is not None and self._settings.prior_weight and prompts is None:
            mean = mean.lerp(_masks(maps).unflatten(0, (sets, windows)), self._settings.prior_weight)
        presence = torch.ones(sets, windows, objects)
        if maps is not None:
            presence = maps.presence.float().sigmoid().unflatten(0, (sets, windows))
        views = targets.templates.global_features
        token = self.model.denoiser.presence
        if token is not None and tokens is not None and views is not None:
            presence = presence.to(tokens) * token.score(tokens, views, windows)
        lap(f"{self._stage}decoding", self.device)
        return mean.cpu().numpy(), presence.cpu().numpy()

    def steps(
        self, image: ImageFeatures, targets: TargetSet, size: tuple[int, int], sampler: SamplerConfig | None = None
    ) -> dict[float, np.ndarray]:
        """Return the masks that the denoiser predicts at each noise level, falling, for W crops of one image.

        Args:
            image: features of the crops.
            targets: one set of O objects.
            size: height and width in pixels of the result.
            sampler: sampler; default: that of the settings.

        Returns:
            By noise level, (W E, O, height, width) float32 probabilities, the E members of a crop in succession.
        """
        latents: dict[float, Tensor] = {}  # of a method of second order, the last evaluation at each level
        self.generate(
            image, targets, len(image.features), sampler=sampler, trace=lambda sigma, x: latents.update({sigma: x[0]})
        )
        found = {}
        for sigma, one in latents.items():
            with self._autocast(self._half):
                masks = self._decode(one.flatten(0, 1)).float().unflatten(0, one.shape[:2])
            found[sigma] = F.interpolate(masks, size, mode="area").cpu().numpy()
        return found

    def match(self, image: ImageFeatures, targets: TargetSet) -> np.ndarray | None:
        """Return the matching prior's own masks of B crops, one for each set of O objects: (B, O, h, w) float32.

        None for a model without it. Far cheaper than `generate`.
        """
        _, maps = self.model.match(image, targets)
        masks = None if maps is None else _masks(maps).cpu().numpy()
        lap(f"{self._stage}matching", self.device)
        return masks

    def _level(self, sigma: float) -> NoiseLevel:
        """Return a noise level; it is computed once for all images."""
        if sigma not in self._levels:
            self._levels[sigma] = self.model.denoiser.level(sigma)
        return self._levels[sigma]

    def _denoise(self, x: Tensor, level: NoiseLevel, conditioning: Conditioning) -> Tensor:
        """Return D_theta of (B, W E, O, z h w + C), by halves of sets, crops or members if one batch is too large."""
        sets, members = x.shape[:2]
        cells = math.prod(x.shape[:3]) * math.prod(conditioning.grid)
        denoised = self._denoiser_batch.run(
            cells, sets * members > 1, lambda: self.model.denoiser.denoise(x, level, conditioning)
        )
        if denoised is not None:
            return denoised
        parts = [self._denoise(part, level, own) for part, own in _halves(x, conditioning)]
        return torch.cat(parts, dim=0 if sets > 1 else 1)

    def _decode_windows(self, latents: Tensor, windows: Sequence[tuple[int, slice, slice]]) -> Tensor:
        """Return probabilities (N, E, 16 h, 16 w) of latents (N, E, z, h, w), 0 outside of all windows.

        Args:
            latents: latents of N masks of E members.
            windows: see `relevant_windows`.
        """
        size = (DOWNSAMPLING * side for side in latents.shape[3:])
        found = latents.new_zeros(*latents.shape[:2], *size)
        by_size = defaultdict(list)
        for number, rows, columns in windows:
            by_size[rows.stop - rows.start, columns.stop - columns.start].append((number, rows, columns))
        for same in by_size.values():
            parts = torch.stack([latents[number, :, :, rows, columns] for number, rows, columns in same])
            decoded = self._decode(parts.flatten(0, 1)).unflatten(0, parts.shape[:2])
            for (number, rows, columns), own in zip(same, decoded, strict=True):
                y, x = (slice(DOWNSAMPLING * span.start, DOWNSAMPLING * span.stop) for span in (rows, columns))
                # Windows of two regions of an object may overlap.
                found[number, :, y, x] = torch.maximum(found[number, :, y, x], own)
        return found

    def _decode(self, latents: Tensor) -> Tensor:
        """Return probabilities (N, 16 h, 16 w) of latents (N, z, h, w): in halves where one batch is too large."""
        cells = len(latents) * math.prod(latents.shape[2:])
        decoded = self._decoder_batch.run(cells, len(latents) > 1, lambda: self.model.vae.decode(latents))
        if decoded is not None:
            return decoded
        half = len(latents) // 2
        return torch.cat([self._decode(latents[:half]), self._decode(latents[half:])])

    def _autocast(self, enabled: bool) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _to_tensor(self, rgb: np.ndarray) -> Tensor:
        """(..., h, w, 3) uint8 -> (..., 3, h, w) in [0, 1]."""
        return torch.from_numpy(np.moveaxis(rgb, -1, -3)).to(self.device).float() / 255


def _masks(maps: PriorMaps) -> Tensor:
    """Return the probabilities (B, O, h, w) of the read-out, at the size of the image."""
    return F.interpolate(maps.logits.float().sigmoid(), scale_factor=SUBCELL, mode="bilinear", align_corners=False)


def _halves(x: Tensor, conditioning: Conditioning) -> list[tuple[Tensor, Conditioning]]:
    """Return both halves of a batch (B, W E, O, z h w + C): of its sets, or its crops, or else its members."""
    sets, crops = conditioning.queries.shape[:2]
    if sets > 1:
        halves = slice(0, sets // 2), slice(sets // 2, sets)
        return [(x[half], _select(conditioning, half, slice(0, crops))) for half in halves]
    if crops > 1:
        members, halves = x.shape[1] // crops, (slice(0, crops // 2), slice(crops // 2, crops))
        return [
            (x[:, half.start * members : half.stop * members], _select(conditioning, slice(0, sets), half))
            for half in halves
        ]
    return [(part, conditioning) for part in x.tensor_split(2, dim=1)]


def _select(conditioning: Conditioning, sets: slice, crops: slice) -> Conditioning:
    """Return the conditioning of some sets of targets and some crops."""
    objects = conditioning.queries.shape[2]
    rows = slice(sets.start * objects, sets.stop * objects)
    return dataclasses.replace(
        conditioning,
        queries=conditioning.queries[sets, crops],
        templates=tuple((keys[rows], values[rows]) for keys, values in conditioning.templates),
        draft=None if conditioning.draft is None else conditioning.draft[sets, crops],
        cells=None if conditioning.cells is None else conditioning.cells[sets, crops],
        mask=None if conditioning.mask is None else conditioning.mask[sets, crops],
    )


class _BatchLimit:
    """The largest batch that fits into memory: halved when the device runs out of it.

    Args:
        cells: most cells of a batch.
    """

    def __init__(self, cells: float) -> None:
        self._cells = cells

    def run(self, cells: int, divisible: bool, work: Callable[[], Tensor]) -> Tensor | None:
        """Return the result of a batch; None: it is too large, run it in halves.

        Args:
            cells: cells of the batch.
            divisible: the batch has halves; if not, it is run whatever its size, and out of memory is an error.
            work: computes the batch.
        """
        if divisible and cells > self._cells:
            return None
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            if not divisible:
                raise
        # After the except clause: the error's traceback holds tensors.
        if math.isinf(self._cells):
            log.warning("out of memory with a batch of %d cells: continuing in smaller batches", cells)
        self._cells = cells / 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


class _Timings:
    """Seconds by stage, and the time of the last lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()


_timings: ContextVar[_Timings | None] = ContextVar("timings", default=None)


@contextmanager
def collect_timings() -> Iterator[dict[str, float]]:
    """Collect the seconds of each stage that calls `lap` in this thread; "total" is added at the end."""
    timings = _Timings()
    started, token = timings.last, _timings.set(timings)
    try:
        yield timings.seconds
    finally:
        _timings.reset(token)
        timings.seconds["total"] = time.perf_counter() - started


def lap(stage: str, device: torch.device | None = None) -> None:
    """Add the time since the last lap to a stage, once its work on a GPU is done; without a collector, do nothing."""
    timings = _timings.get()
    if timings is None:
        return
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    now = time.perf_counter()
    timings.seconds[stage] = timings.seconds.get(stage, 0.0) + now - timings.last
    timings.last = now


def computes_in_half(precision: Precision, device: torch.device) -> bool:
    """Return whether the denoiser and the decoder compute in bfloat16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def prepare(model: OCDiT, device: torch.device, *, half: bool, compiled: bool) -> OCDiT:
    """Return the model on a device, in evaluation mode, ready for inference.

    Args:
        model: the model; it is moved itself, or copied if `half` or `compiled`.
        device: the device.
        half: store the weights of denoiser and decoder in bfloat16.
        compiled: compile the denoiser; on a GPU as CUDA graphs.
    """
    if half or compiled:
        model = copy.deepcopy(model)
    if half:
        for part in (model.denoiser, model.vae.decoder):
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(torch.bfloat16)
    model = model.to(device).eval().requires_grad_(False)
    if compiled:
        model.denoiser.compile_transformer("reduce-overhead" if device.type == "cuda" else "default")
    elif device.type == "cpu" and can_pack():
        model = with_packed_layers(model, denoiser=not half)
    return model


class PackedLinear(SplitLinear):
    """A linear layer with weights in oneDNN's layout, on x86 CPUs 20 to 33% faster than MKL, which torch uses.

    torch.compile makes the same choice, but takes a compiler and minutes. The packed copy is made at the first use, for
    the rows that are used.

    Args:
        linear: float32 layer on the CPU with a bias, whose weights are shared; they must not change any more.
        activation: activation of the outputs; "gelu" is the tanh approximation.
    """

    def __init__(self, linear: nn.Linear, activation: Literal["none", "gelu"] = "none"):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._activation = activation
        self._packed: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.rows(x, 0, self.out_features)

    def rows(self, x: Tensor, begin: int, end: int) -> Tensor:
        """See `SplitLinear.rows`."""
        packed = self._packed.get((begin, end))
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach()[begin:end].contiguous())
            self._packed[begin, end] = packed
        approximation = "tanh" if self._activation == "gelu" else ""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, packed, self.bias[begin:end], self._activation, [], approximation
        )
        return y


class FusedConv(SameConv2d):
    """A convolution and its activation in one step, which takes 25 to 45% less time than one after the other.

    At stride 2 the kernel gets a first row and column of zeros: then equal padding on all sides, which needs no padded
    copy of the input, computes the same as the asymmetric one.

    Args:
        conv: float32 layer on the CPU, whose weights are shared at stride 1.
    """

    def __init__(self, conv: SameConv2d):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups, relu6=conv.relu6
        )
        self.weight, self.bias = conv.weight, conv.bias
        if self.stride[0] == 2:
            self.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 0, 1, 0)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """See `SameConv2d`."""
        activation = ("hardtanh", [0.0, 6.0]) if self.relu6 else ("none", [])
        padding = self.padding
        if self.stride[0] == 2:
            padding = tuple(self.kernel_size[0] // 2 + size % 2 for size in x.shape[2:])
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups, *activation, ""
        )
        return y


@cache
def can_pack() -> bool:
    """Return whether this machine has the operators of `PackedLinear` and `FusedConv`, which torch keeps private."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        layer, x = nn.Linear(8, 16), torch.linspace(-1, 1, 24).view(3, 8)
        conv, image = SameConv2d(3, 4, 3, 2, relu6=True), torch.linspace(-9, 9, 192).view(1, 3, 8, 8)
        with torch.no_grad():
            linear_works = torch.allclose(PackedLinear(layer, "gelu")(x), nn.GELU("tanh")(layer(x)), atol=1e-5)
            return linear_works and torch.allclose(FusedConv(conv)(image), conv(image), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def with_packed_layers(model: OCDiT, *, denoiser: bool = True) -> OCDiT:
    """Return a copy of the model with packed linear layers and fused convolutions, sharing all weights.

    Args:
        model: float32 model on the CPU.
        denoiser: pack the denoiser's layers, too; False where they are bfloat16.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in list(model.denoiser.modules()) if denoiser else []:
        if isinstance(module, Attention):
            module.in_proj, module.out_proj = PackedLinear(module.in_proj), PackedLinear(module.out_proj)
        elif isinstance(module, MLP):
            module.fc1, module.activation = PackedLinear(module.fc1, "gelu"), nn.Identity()
            module.fc2 = PackedLinear(module.fc2)
    for parent in list(model.backbone.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.Linear and module.bias is not None:
                setattr(parent, name, PackedLinear(module))
            elif type(module) is SameConv2d:
                setattr(parent, name, FusedConv(module))
    return model
