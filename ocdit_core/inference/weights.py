"""Where a model's files are: an embedded model by name, a folder, or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ocdit_core.config import apply_overrides, as_dict, build
from ocdit_core.errors import WeightsError
from ocdit_core.inference.presets import with_preset
from ocdit_core.inference.settings import SETTINGS_FILE, InferenceSettings, load_settings
from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE

REFINE_FOLDER = "refine"
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "weights"


def recommended_settings(
    name_or_path: str | Path, *, preset: str | None = None, overrides: Sequence[str] = ()
) -> InferenceSettings:
    """Return the settings that a model recommends, changed.

    Args:
        name_or_path: an embedded model's name, a folder, or a hub id.
        preset: choices between speed and care (see `ocdit_core.inference.presets`).
        overrides: settings such as "ensemble=4" or "sampler.steps=9".

    Raises:
        WeightsError: there is no such model.
        ConfigError: there is no such preset or setting, or a setting cannot have this value.
    """
    settings = load_settings(find_weights(name_or_path))
    if preset is not None:
        settings = with_preset(settings, preset)
    return build(InferenceSettings, apply_overrides(as_dict(settings), list(overrides))) if overrides else settings


def refine_weights(folder: Path) -> Path | None:
    """Return the folder of the refine model that belongs to a coarse model's folder, None where it has none."""
    second = folder / REFINE_FOLDER
    return second if second.is_dir() else None


def find_weights(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a folder as it is, an embedded model by name, a hub id once downloaded."""
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if (EMBEDDED_WEIGHTS / path).is_dir():
        return EMBEDDED_WEIGHTS / path
    embedded = ", ".join(sorted(p.name for p in EMBEDDED_WEIGHTS.iterdir() if (p / CONFIG_FILE).is_file()))
    complaint = f"no model {str(name_or_path)!r}: neither a folder nor one of the embedded models ({embedded})"
    if str(name_or_path).count("/") != 1 or path.is_absolute():
        raise WeightsError(complaint)
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            str(name_or_path), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, SETTINGS_FILE, f"{REFINE_FOLDER}/*"]
        )
    except Exception as error:  # its many kinds of errors all mean that the model cannot be had
        raise WeightsError(f"{complaint}, nor a hub id that can be reached ({type(error).__name__})") from error
    return Path(folder)
