"""The fast path against the plain one: the same masks, however the work is cut, and less of it."""

import dataclasses
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.images import read_image
from ocdit_core.inference import evaluation
from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.mask_generator import Generated, MaskGenerator
from ocdit_core.inference.memory import GIB, footprint
from ocdit_core.inference.precision import half_context
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.weights import find_weights
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPriorConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig, TargetSet
from ocdit_core.models.representation import RepresentationConfig

CPU = torch.device("cpu")
PICTURE = Path(__file__).parents[3] / "examples" / "pictures" / "table.jpg"
MEAN, HEUN = SamplerConfig(steps=0), SamplerConfig(steps=3)


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(*, prior: bool = False, representation: bool = False, width: int = 64, depth: int = 3) -> OCDiT:
    """Random weights of moderate size; gates that are not zero, so that every part of the network counts."""
    torch.manual_seed(0)
    config = OCDiTConfig(
        image_size=(64, 96),
        template_size=(32, 32),
        backbone=BackboneConfig(kind="conv", frozen=False, channels=(8, 16, 24), blocks=1),
        vae=MaskVAEConfig(
            patch=4,
            encoder_channels=(16, 16, 32),
            decoder_channels=(32, 16, 16),
            latent_channels=8,
            groups=8,
            attention_heads=8,
        ),
        denoiser=DenoiserConfig(
            width=width,
            depth=depth,
            heads=4,
            max_objects=8,
            max_views=4,
            representation=RepresentationConfig() if representation else None,
        ),
        matching_prior=MatchingPriorConfig(metric_channels=8, context_channels=8, hidden_channels=8) if prior else None,
    )
    made = OCDiT(config).eval()
    for name, parameter in made.named_parameters():
        if "modulation" in name or "presence.head" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


@torch.inference_mode()
def targets(generator: MaskGenerator, *, sets: int = 1, objects: int = 3, views: int = 3) -> TargetSet:
    random = torch.Generator().manual_seed(1)
    size = generator.model.config.template_size
    rgb = torch.rand(sets, objects, views, 3, *size, generator=random)
    masks = (torch.rand(sets, objects, views, *size, generator=random) > 0.3).float()
    features = generator.model.encode_templates(rgb, masks)
    with half_context(CPU, generator.model.denoiser.head.mlp[0].weight.dtype == torch.bfloat16):
        return generator.model.encode_targets(features)


@torch.inference_mode()
def generate(
    generator: MaskGenerator,
    *,
    sets: int = 1,
    objects: int = 3,
    windows: int = 1,
    ensemble: int = 1,
    sampler: SamplerConfig = MEAN,
    size: tuple[int, int] = (64, 96),
    pictures: np.ndarray | None = None,
) -> Generated:
    clock = StageClock(CPU)
    if pictures is None:
        pictures = np.random.default_rng(2).integers(0, 256, (sets * windows, *size, 3), np.uint8)
    return generator.generate(
        generator.encode(pictures, clock),
        targets(generator, sets=sets, objects=objects),
        sampler=sampler,
        ensemble=ensemble,
        random=torch.Generator().manual_seed(3),
        clock=clock,
    )


def assert_same(found: Generated, expected: Generated, bar: float = 1e-5) -> None:
    """Absolute on probabilities and on latents, which random weights let grow above 1; and relative on latents."""
    assert found.probabilities.shape == expected.probabilities.shape
    assert np.abs(found.probabilities - expected.probabilities).max() < bar
    difference = found.latents - expected.latents
    assert difference.abs().max() < bar * max(1, expected.latents.abs().max())
    assert difference.norm() / expected.latents.norm() < bar


PLAIN = InferenceSettings(plain=True)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(
    ("objects", "ensemble", "windows", "sampler", "size"),
    [
        (1, 1, 1, MEAN, (64, 96)),
        (1, 4, 1, HEUN, (96, 64)),
        (3, 2, 1, MEAN, (48, 112)),
        (3, 3, 2, HEUN, (64, 96)),
        (8, 1, 3, MEAN, (64, 48)),
        (8, 2, 1, HEUN, (64, 96)),
        (12, 1, 1, HEUN, (64, 96)),
        (12, 4, 2, MEAN, (32, 96)),
    ],
)
def test_fast_equals_plain(prior, objects, ensemble, windows, sampler, size):
    one = model(prior=prior)
    case = {"objects": objects, "ensemble": ensemble, "windows": windows, "sampler": sampler, "size": size}
    expected = generate(MaskGenerator(one, CPU, settings=PLAIN), **case)
    assert_same(generate(MaskGenerator(one, CPU), **case), expected)
    assert expected.probabilities.std() > 0.01


def test_fast_equals_plain_with_presence_tokens_and_several_sets():
    one = model(representation=True)
    case = {"sets": 3, "objects": 2, "windows": 2, "ensemble": 2, "sampler": HEUN}
    assert_same(generate(MaskGenerator(one, CPU), **case), generate(MaskGenerator(one, CPU, settings=PLAIN), **case))


# Heun's steps raise rounding errors of the trained network: about 1e-5 of a probability at the worst pixel.
@pytest.mark.parametrize(("sampler", "bar"), [(MEAN, 1e-5), (HEUN, 3e-5)])
def test_fast_equals_plain_on_the_embedded_model(sampler, bar):
    one = OCDiT.from_pretrained(find_weights("ocdit-tiny"))
    picture = cv2.resize(read_image(PICTURE), (160, 128))
    case = {"ensemble": 2, "windows": 2, "sampler": sampler, "pictures": np.stack([picture, picture[:, ::-1]])}
    expected = generate(MaskGenerator(one, CPU, settings=PLAIN), **case)
    assert_same(generate(MaskGenerator(one, CPU), **case), expected, bar)


def test_the_plain_path_uses_the_weights_of_the_model_itself():
    one = model()
    generator = MaskGenerator(one, CPU, settings=PLAIN)
    before = generate(generator).latents
    with torch.no_grad():
        one.denoiser.blocks[0].self_attention.in_proj.weight.mul_(2)
    assert (generate(generator).latents - before).abs().max() > 1e-3


def test_settings_that_do_not_go_with_the_plain_path_are_refused():
    with pytest.raises(ConfigError, match="plain"):
        InferenceSettings(plain=True, compile=True)
    with pytest.raises(ConfigError, match="max_memory: -1"):
        InferenceSettings(max_memory=-1)


class Batches:
    """Notes how many units and masks a network is given at once; runs out of memory above a number of units."""

    def __init__(self, one: OCDiT, most: int | None = None) -> None:
        self.units: list[int] = []
        self.masks: list[int] = []
        self._most = most
        one.denoiser.register_forward_pre_hook(self._before)
        one.vae.decoder.register_forward_pre_hook(lambda _, inputs: self.masks.append(len(inputs[0])))

    def _before(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        units = inputs[0].shape[0] * inputs[0].shape[1]
        if self._most is not None and units > self._most:
            raise torch.cuda.OutOfMemoryError("tried to allocate 1 GiB")
        self.units.append(units)


@pytest.mark.parametrize(("sets", "windows", "ensemble"), [(1, 1, 5), (1, 3, 2), (5, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("units", [1, 2, 3])
def test_results_do_not_depend_on_how_the_work_is_cut(sets, windows, ensemble, units):
    case = {"sets": sets, "windows": windows, "ensemble": ensemble, "sampler": HEUN}
    one = model(prior=True)
    expected = generate(MaskGenerator(one, CPU), **case)
    needs = footprint(one.config, objects=3, image_size=(64, 96))
    limit = (sets * windows * needs.window + (units + 0.5) * needs.evaluation) / GIB
    generator = MaskGenerator(one, CPU, settings=InferenceSettings(max_memory=limit))
    batches = Batches(generator.model)
    found = generate(generator, **case)
    assert max(batches.units) <= units
    assert sum(batches.units) == HEUN.evaluations * sets * windows * ensemble
    # The matching prior's draft is encoded, never decoded.
    assert sum(batches.masks) == 3 * sets * windows * ensemble
    assert max(batches.masks) <= (units + 0.5) * needs.evaluation / needs.mask
    assert_same(found, expected, 1e-6)


def test_out_of_memory_halves_the_batch_and_is_said_once(caplog):
    case = {"windows": 2, "ensemble": 4, "sampler": HEUN}
    one = model()
    expected = generate(MaskGenerator(one, CPU), **case)
    generator = MaskGenerator(one, CPU)
    batches = Batches(generator.model, most=3)
    with caplog.at_level(logging.WARNING, logger=evaluation.__name__.rpartition(".")[0]):
        for _ in range(2):
            assert_same(generate(generator, **case), expected, 1e-6)
    # 8 units do not fit, nor 4; from then on it is known.
    assert set(batches.units) == {2}
    (record,) = caplog.records
    assert "out of memory on cpu with 8 at once" in record.getMessage()


def test_out_of_memory_with_nothing_left_to_halve_is_an_error():
    one = model()
    generator = MaskGenerator(one, CPU)
    Batches(generator.model, most=0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        generate(generator, ensemble=3)


def test_what_depends_on_noise_levels_alone_is_computed_once():
    one = model()
    calls = []
    one.denoiser.blocks[0].mlp_modulation.linear.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    generator = MaskGenerator(one, CPU)
    for _ in range(3):
        generate(generator, sampler=HEUN)
    # One call for each of the schedule's levels.
    assert len(calls) == 3


def test_bfloat16_is_close_and_leaves_the_model_alone():
    one = model(prior=True)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    exact = generate(MaskGenerator(one, CPU), ensemble=2, sampler=HEUN)
    half = MaskGenerator(one, CPU, settings=InferenceSettings(precision="bfloat16"))
    assert half.model.denoiser.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    found = generate(half, ensemble=2, sampler=HEUN)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    difference = (found.latents - exact.latents).norm() / exact.latents.norm()
    assert 1e-5 < difference < 0.03
    assert found.probabilities.dtype == np.float32
    assert np.abs(found.probabilities - exact.probabilities).mean() < 0.01


def test_auto_is_float32_on_the_cpu():
    one = model()
    assert MaskGenerator(one, CPU).model.denoiser.blocks[0].mlp.fc1.weight.dtype == torch.float32


def test_compiled_equals_eager(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    one = model(width=32, depth=1)
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:  # no C++ compiler at hand, or none that torch can use
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    compiled = MaskGenerator(one, CPU, settings=InferenceSettings(compile=True))
    assert_same(generate(compiled, sampler=HEUN), generate(MaskGenerator(one, CPU), sampler=HEUN))


def test_a_generator_for_another_precision_does_not_change_the_first():
    one = model()
    first = MaskGenerator(one, CPU)
    before = generate(first)
    MaskGenerator(one, CPU, settings=dataclasses.replace(InferenceSettings(), precision="bfloat16"))
    assert_same(generate(first), before, 1e-9)
