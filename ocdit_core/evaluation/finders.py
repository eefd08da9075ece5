"""Methods that can be evaluated, by name, with their settings: opened once in each process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ocdit_core.config import apply_overrides, as_dict, build
from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.baselines import ColourBackProjection, ColourSettings
from ocdit_core.evaluation.metrics import ObjectFinder
from ocdit_core.inference.presets import with_preset
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.weights import find_weights, recommended_settings

if TYPE_CHECKING:
    from ocdit_core.evaluation.cnos_like import CnosSettings

METHODS = ("ocdit", "colour", "cnos")


@dataclass(frozen=True, kw_only=True)
class FinderSpec:
    """A method with all its settings.

    Attributes:
        method: one of METHODS.
        weights: of a method that has some: an embedded model's name, a folder, or a hub id.
        device: auto, cpu, cuda ...
        settings: of the method.
        threshold: of the scores, from which on the method would report an instance. It is evaluated with all that it
            finds where the settings allow: average precision ranks them.
    """

    method: str
    weights: str
    device: str
    settings: InferenceSettings | ColourSettings | CnosSettings
    threshold: float

    def open(self) -> ObjectFinder:
        """Return the finder; raises WeightsError or ConfigError."""
        # Models and what runs them take seconds to load.
        if isinstance(self.settings, ColourSettings):
            return ColourBackProjection(self.settings)
        if isinstance(self.settings, InferenceSettings):
            from ocdit_core.inference.segmenter import Segmenter

            return Segmenter.from_pretrained(self.weights, device=self.device, settings=self.settings)
        from ocdit_core.evaluation.cnos_like import CnosLike

        return CnosLike.from_pretrained(self.weights, device=self.device, settings=self.settings)

    def identity(self) -> dict[str, Any]:
        """Return plain values for JSON that say which results this gives; the device is not among them."""
        known: dict[str, Any] = {"method": self.method, "settings": as_dict(self.settings)}
        if self.method != "colour":
            known |= {"weights": self.weights, "weights_sha256": _digest(self.weights)}
        return known


def finder_spec(
    method: str,
    *,
    weights: str = "ocdit-tiny",
    device: str = "auto",
    preset: str | None = None,
    overrides: Sequence[str] = (),
    threshold: float | None = None,
) -> FinderSpec:
    """Return a method with its recommended settings, changed.

    Args:
        method: one of METHODS.
        weights: of a method that has some.
        device: auto, cpu, cuda ...
        preset: of ocdit, between speed and care (see `with_preset`).
        overrides: settings such as "ensemble=4" or "sampler.steps=9".
        threshold: see `FinderSpec`; default: the settings' score_threshold. Unless an override says otherwise, that of
            the settings then becomes 0.

    Raises:
        ConfigError: an unknown method, a setting that does not exist, or a value that it cannot have.
        WeightsError: there are no such weights.
    """
    settings: InferenceSettings | ColourSettings | CnosSettings
    if preset is not None and method != "ocdit":
        raise ConfigError(f"preset: {preset!r} is for the method ocdit; {method} has none")
    if method == "ocdit":
        recommended = recommended_settings(weights)
        recommended = recommended if preset is None else with_preset(recommended, preset)
        settings = build(InferenceSettings, apply_overrides(as_dict(recommended), list(overrides)))
    elif method == "colour":
        settings = build(ColourSettings, apply_overrides(as_dict(ColourSettings()), list(overrides)))
    elif method == "cnos":
        from ocdit_core.evaluation.cnos_like import CnosSettings

        settings = build(CnosSettings, apply_overrides(as_dict(CnosSettings()), list(overrides)))
    else:
        raise ConfigError(f"method: {method!r} is unknown; use {', '.join(METHODS)}")
    reported = settings.score_threshold if threshold is None else threshold
    if not any(override.startswith("score_threshold=") for override in overrides):
        settings = replace(settings, score_threshold=0.0)
    return FinderSpec(method=method, weights=weights, device=device, settings=settings, threshold=reported)


def _digest(weights: str) -> str:
    digest = sha256()
    folder = find_weights(weights)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".yaml"):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
