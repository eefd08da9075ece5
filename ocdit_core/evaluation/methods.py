"""Methods that can be evaluated: OC-DiT with its settings, and two baselines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from ocdit_core.config import as_dict
from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.baselines import ColourBackProjection, FeatureMatching
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings, find_weights, recommended_settings
from ocdit_core.models.ocdit import OCDiT

METHODS = ("ocdit", "colour", "cnos")
Method = Segmenter | ColourBackProjection | FeatureMatching


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A method with its settings; picklable, opened once in each process.

    Attributes:
        method: one of METHODS.
        weights: model of ocdit and cnos: an embedded model's name, a folder, or a hub id.
        device: auto, cpu, cuda ...
        settings: settings of ocdit; None for a baseline.
        threshold: recommended score threshold, used for precision, recall, mean IoU and false masks. The method runs
            with `settings.score_threshold`, by default 0: average precision ranks all results.
    """

    method: str
    weights: str
    device: str
    settings: InferenceSettings | None
    threshold: float

    def open(self) -> Method:
        """Load the method; raises WeightsError or ConfigError."""
        if self.method == "colour":
            return ColourBackProjection()
        if self.method == "cnos":
            return FeatureMatching(OCDiT.from_pretrained(find_weights(self.weights)), device=self.device)
        return Segmenter.from_pretrained(self.weights, device=self.device, settings=self.settings)

    def identity(self) -> dict[str, Any]:
        """Return what determines the results, as JSON values; the device is not included."""
        identity: dict[str, Any] = {"method": self.method}
        if self.settings is not None:
            # A tracker runs over the results: other settings of it do not change them.
            identity["settings"] = {key: value for key, value in as_dict(self.settings).items() if key != "track"}
        if self.method != "colour":
            identity |= {"weights": self.weights, "weights_sha256": _digest(self.weights)}
        return identity


def method_spec(
    method: str,
    *,
    weights: str = "ocdit-small",
    device: str = "auto",
    preset: str | None = None,
    overrides: Sequence[str] = (),
    threshold: float | None = None,
) -> MethodSpec:
    """Return a method with its recommended settings and overrides.

    Args:
        method: one of METHODS.
        weights: model of ocdit and cnos.
        device: auto, cpu, cuda ...
        preset: preset of ocdit (see `ocdit_core.inference.settings`).
        overrides: settings of ocdit such as "ensemble=4" or "sampler.steps=9".
        threshold: see `MethodSpec`; default: the recommended score_threshold.

    Raises:
        ConfigError: an unknown method, preset or setting, an invalid value, or settings for a baseline.
        WeightsError: there are no such weights.
    """
    settings = None
    if method not in METHODS:
        raise ConfigError(f"method: {method!r} is unknown; use {', '.join(METHODS)}")
    if method == "ocdit":
        settings = recommended_settings(weights, preset=preset, overrides=overrides)
        recommended = settings.score_threshold
        if not any(override.startswith("score_threshold=") for override in overrides):
            settings = replace(settings, score_threshold=0.0)
    elif preset is not None or overrides:
        raise ConfigError(f"the baseline {method} has no settings; omit --preset and --set")
    else:
        recommended = (ColourBackProjection if method == "colour" else FeatureMatching).threshold
    return MethodSpec(
        method=method,
        weights=weights,
        device=device,
        settings=settings,
        threshold=recommended if threshold is None else threshold,
    )


def _digest(weights: str) -> str:
    digest = sha256()
    folder = find_weights(weights)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".yaml"):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
