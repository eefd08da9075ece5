"""Inference settings, presets, and where a model's weights and recommended settings are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ocdit_core.config import apply_overrides, as_dict, build, read_yaml
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.models.checkpoints import CONFIG_FILE
from ocdit_core.models.mask_vae import DOWNSAMPLING
from ocdit_core.models.published import SUFFIXES

SETTINGS_FILE = "inference.yaml"
REFINE_FOLDER = "refine"
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "weights"

Score = Literal["mean", "expected_iou"]
"""Score of an instance. mean: mean probability over the mask. expected_iou: sum of the probabilities inside the mask
over its area plus the sum of the probabilities outside, an estimate of the mask IoU with the object."""

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of the denoiser and the decoder, and of the image encoder in OpenVINO. auto: bfloat16 on GPUs that support
it, else float32."""

Engine = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
"""What runs the image encoder; the rest runs in torch. tensorrt: through ONNX Runtime."""


def _check_size(size: tuple[int, int] | None) -> None:
    if size and any(side <= 0 or side % DOWNSAMPLING for side in size):
        raise ConfigError(f"image_size: {list(size)} must be positive multiples of {DOWNSAMPLING}")


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ConfigError(f"{name}: {value} must be at least {least}")


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """Settings of the refine stage (paper 3.3, 4.2), for models that have one.

    Attributes:
        enabled: refine the proposals of the coarse stage.
        image_size: (height, width) of the model input for crops in pixels, multiples of 16; default: the size that the
            refine model was trained at.
        crops: crops of each proposal, with different margins and offsets, that are averaged.
        rounds: refinements of each proposal; each one crops around the mask of the one before.
        margin: margin on each side of a proposal's box, as a fraction of the box.
        proposal_threshold: coarse probability above which a pixel belongs to a proposal.
        mask_threshold: probability above which a pixel belongs to a refined mask.
        snap: move the borders of masks to edges of the image.
        coarse_weight: exponent of the coarse score in the score, the weighted geometric mean of both scores.
        prompts: show location prompts to a model that was trained with them; False: they only choose regions, masks and
            scores.
    """

    enabled: bool = True
    image_size: tuple[int, int] | None = None
    crops: int = 1
    rounds: int = 1
    margin: float = 0.2
    proposal_threshold: float = 0.2
    mask_threshold: float = 0.5
    snap: bool = False
    coarse_weight: float = 0.5
    prompts: bool = True

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        _check_at_least(1, crops=self.crops, rounds=self.rounds)
        _check_fractions(
            margin=self.margin,
            proposal_threshold=self.proposal_threshold,
            mask_threshold=self.mask_threshold,
            coarse_weight=self.coarse_weight,
        )


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Settings of a `Tracker`.

    Attributes:
        keep: frames for which the id of an instance that is not found is kept.
        max_distance: largest distance of the boxes' centres at which an instance keeps its id without an overlap of the
            masks, as a multiple of the larger diagonal of both boxes.
        min_similarity: lowest similarity of the colours at which an instance keeps its id, in [0, 1]: the Bhattacharyya
            coefficient of the masks' colour histograms; 0 ignores colours.
        interval: every how many frames the whole image is segmented. In the frames between, only the instances of the
            frame before are, where they are expected, by the refine model: a fraction of the time, but what is new is
            found at the next whole frame.
    """

    interval: int = 1
    keep: int = 30
    max_distance: float = 1.0
    min_similarity: float = 0.5

    def __post_init__(self) -> None:
        _check_at_least(1, interval=self.interval)
        _check_at_least(0, keep=self.keep, max_distance=self.max_distance)
        _check_fractions(min_similarity=self.min_similarity)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Settings of a `Segmenter`.

    Attributes:
        image_size: (height, width) of the model input in pixels, multiples of 16; default: the size that the model was
            trained at. Larger inputs show small objects better (the paper's choice for LM-O and HB).
        sampler: sampler of both stages; default: the posterior mean, one evaluation of the network.
        ensemble: initial noises whose probabilities are averaged, in both stages.
        crops: scaled crops of the image that are averaged with it; 5 or 10 in the paper.
        guided_crop: average one more crop, around all objects found so far (paper 4.2).
        fine_image_size: (height, width) of a larger model input at which the matching prior alone proposes small
            objects, for models with a refine stage; default: none.
        prior_weight: weight of the matching prior's own mask in the mean with the denoiser's.
        distractors: most other objects of the library that take positions left free by the targets; they claim pixels
            that look more like them.
        mask_threshold: probability above which a pixel belongs to a mask of the coarse stage.
        score_threshold: lowest score of a reported instance.
        calibration: (a, b) of the score sigmoid(a logit(score) + b), measured so that a score is the probability of an
            IoU of 0.5 with the object; default: none.
        score: kind of score.
        max_instances: most instances of one object in an image.
        size_weight: with depth, exponent of the factor in the score that compares an instance's size with its object's;
            0: no comparison.
        refine: settings of the refine stage.
        track: settings of a `Tracker`.
        precision: numerical precision of the network.
        engine: runtime of the image encoder; onnxruntime and tensorrt need the extra onnx, openvino that of its name.
        compile: compile the denoiser with torch.compile, which takes a minute or more for each number of objects and
            image size.
    """

    image_size: tuple[int, int] | None = None
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=0))
    ensemble: int = 1
    crops: int = 0
    guided_crop: bool = False
    fine_image_size: tuple[int, int] | None = None
    prior_weight: float = 0.0
    distractors: int = 0
    mask_threshold: float = 0.5
    score_threshold: float = 0.5
    score: Score = "mean"
    calibration: tuple[float, float] | None = None
    max_instances: int = 4
    size_weight: float = 1.0
    refine: RefineSettings = field(default_factory=RefineSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    precision: Precision = "auto"
    engine: Engine = "torch"
    compile: bool = False

    def __post_init__(self) -> None:
        _check_size(self.image_size)
        _check_size(self.fine_image_size)
        _check_at_least(1, ensemble=self.ensemble, max_instances=self.max_instances)
        _check_at_least(0, crops=self.crops, distractors=self.distractors, size_weight=self.size_weight)
        _check_fractions(
            prior_weight=self.prior_weight, mask_threshold=self.mask_threshold, score_threshold=self.score_threshold
        )
        if self.calibration is not None and self.calibration[0] <= 0:
            raise ConfigError(f"calibration: {list(self.calibration)}: the first number must be positive")


# Paper 3.3, 3.4, 4.2: full image, five crops and the guided one; connected parts are proposals; one refinement over six
# crops, whose mean probability is the score.
PAPER = InferenceSettings(
    image_size=(480, 640),
    sampler=SamplerConfig(steps=9, rho=9.0),
    crops=5,
    guided_crop=True,
    distractors=64,
    refine=RefineSettings(image_size=(224, 224), crops=6, proposal_threshold=0.5, coarse_weight=0.0),
)

PRESETS = ("fast", "paper")
"""fast: the settings that the model recommends. paper: `PAPER`."""


def recommended_settings(
    name_or_path: str | Path, *, preset: str | None = None, overrides: Sequence[str] = ()
) -> InferenceSettings:
    """Return the settings that a model recommends, or those of a preset, with overrides.

    Args:
        name_or_path: name of an embedded model, a folder, or a hub id.
        preset: one of `PRESETS`; None: fast.
        overrides: settings such as "ensemble=4" or "sampler.steps=9".

    Raises:
        WeightsError: there is no such model.
        ConfigError: there is no such preset or setting, or a value is not valid.
    """
    if preset not in (None, *PRESETS):
        raise ConfigError(f"preset: {preset!r} is not one of {', '.join(PRESETS)}")
    settings = PAPER if preset == "paper" else load_settings(find_weights(name_or_path))
    return build(InferenceSettings, apply_overrides(as_dict(settings), list(overrides))) if overrides else settings


def load_settings(folder: Path) -> InferenceSettings:
    """Return the settings of inference.yaml in a model's folder; without that file, the default settings."""
    path = folder / SETTINGS_FILE
    return build(InferenceSettings, read_yaml(path)) if path.is_file() else InferenceSettings()


def find_weights(name_or_path: str | Path) -> Path:
    """Return the folder of a model.

    Args:
        name_or_path: name of an embedded model, a folder, or a hub id (owner/model), which is downloaded.

    Raises:
        WeightsError: there is no such model.
    """
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
        # Also a checkpoint in the published naming, see `OCDiT.from_pretrained`.
        patterns = [CONFIG_FILE, SETTINGS_FILE, f"{REFINE_FOLDER}/*", *(f"*{suffix}" for suffix in SUFFIXES)]
        folder = huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=patterns)
    except Exception as error:  # many types, all of which mean that the model cannot be downloaded
        raise WeightsError(f"{complaint}, nor a hub id that can be reached ({type(error).__name__})") from error
    return Path(folder)


def refine_weights(folder: Path) -> Path | None:
    """Return the folder of the refine model in a coarse model's folder; None: there is none."""
    second = folder / REFINE_FOLDER
    return second if second.is_dir() else None
