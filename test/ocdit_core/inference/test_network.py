"""`Network.generate` against the plain computation, in any batches and precisions."""

import dataclasses
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from plain_network import PlainNetwork

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.images import read_image
from ocdit_core.inference.network import Network, collect_timings, lap
from ocdit_core.inference.settings import InferenceSettings, find_weights
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPriorConfig, PriorMaps, relevant_cells, relevant_windows
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, OCDiTConfig, TargetSet
from ocdit_core.models.representation import RepresentationConfig

CPU = torch.device("cpu")
IMAGE = Path(__file__).parents[3] / "examples" / "images" / "table.jpg"
MEAN, HEUN = SamplerConfig(steps=0), SamplerConfig(steps=3)
PRIOR = MatchingPriorConfig(metric_channels=8, hidden_channels=8)


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(*, prior=None, representation=None, width=64, depth=3) -> OCDiT:
    """Random weights of moderate size, and gates that are not zero, so that every part of the network counts."""
    torch.manual_seed(0)
    config = OCDiTConfig(
        image_size=(64, 96),
        template_size=(32, 32),
        backbone=BackboneConfig(kind="conv", frozen=False),
        vae=MaskVAEConfig(channels=(16, 16, 32), latent_channels=8, blocks=1),
        denoiser=DenoiserConfig(
            width=width, depth=depth, heads=4, max_objects=8, max_views=4, representation=representation
        ),
        matching_prior=prior,
    )
    model = OCDiT(config).eval()
    for name, parameter in model.named_parameters():
        if "modulation" in name or "presence.head" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_network(model: OCDiT, **settings) -> Network:
    return Network(model, CPU, InferenceSettings(**settings))


@torch.inference_mode()
def inputs(
    network: Network, *, sets=1, objects=3, windows=1, size=(64, 96), images=None
) -> tuple[ImageFeatures, TargetSet]:
    """Features of random images, and of targets with three views."""
    random = torch.Generator().manual_seed(1)
    template_size = network.model.config.template_size
    rgb = torch.rand(sets, objects, 3, 3, *template_size, generator=random)
    masks = (torch.rand(sets, objects, 3, *template_size, generator=random) > 0.3).float()
    if images is None:
        images = np.random.default_rng(2).integers(0, 256, (sets * windows, *size, 3), np.uint8)
    return network.encode(images), network.encode_targets(network.model.encode_templates(rgb, masks))


@torch.inference_mode()
def generate(network: Network, *, crops=1, **case) -> np.ndarray:
    return network.generate(*inputs(network, **case), crops)[0]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    return float(np.abs(first - second).max())


def assert_equals_plain(
    model: OCDiT, case: dict, crops: int = 1, bar: float = 1e-5, spread: float = 0.01, **settings
) -> None:
    network = make_network(model, **settings)
    plain = PlainNetwork(model, InferenceSettings(**settings)).generate(*inputs(network, **case), crops)
    assert plain.std() > spread
    with pytest.MonkeyPatch.context() as patch:
        # The plain network computes all cells.
        patch.setattr("ocdit_core.models.matching_prior.RULED_OUT", -1.0)
        assert difference(generate(network, crops=crops, **case), plain) < bar


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["published", "prior"])
@pytest.mark.parametrize(
    ("objects", "ensemble", "windows", "sampler", "size"),
    [
        (1, 1, 1, MEAN, (64, 96)),
        (1, 4, 1, HEUN, (96, 64)),
        (3, 2, 1, MEAN, (48, 112)),
        (3, 3, 2, HEUN, (64, 96)),
        (8, 1, 3, MEAN, (64, 48)),
        (8, 4, 2, MEAN, (32, 96)),
    ],
)
def test_results_equal_those_of_the_plain_network(prior, objects, ensemble, windows, sampler, size):
    case = {"objects": objects, "windows": windows, "size": size}
    assert_equals_plain(make_model(prior=prior), case, windows, ensemble=ensemble, sampler=sampler)


def test_results_equal_those_of_the_plain_network_with_all_options_and_several_sets():
    model = make_model(representation=RepresentationConfig(), prior=PRIOR)
    assert_equals_plain(model, {"sets": 3, "objects": 2, "windows": 2}, 2, ensemble=2, sampler=HEUN)


# Heun's steps amplify rounding errors of the trained network: about 1e-5 of a probability at the worst pixel.
@pytest.mark.parametrize(("sampler", "bar"), [(MEAN, 1e-5), (HEUN, 3e-5)])
def test_results_equal_those_of_the_plain_network_with_the_embedded_weights(sampler, bar):
    model = OCDiT.from_pretrained(find_weights("ocdit-small"))
    image = cv2.resize(read_image(IMAGE), (160, 128))
    case = {"windows": 2, "images": np.stack([image, image[:, ::-1]])}
    # Nothing of the random templates is in the image.
    assert_equals_plain(model, case, 2, bar, spread=1e-5, ensemble=2, sampler=sampler)


@torch.inference_mode()
def test_cells_that_do_not_count_change_nothing_and_cells_left_out_keep_the_draft():
    model = make_model(prior=PRIOR)
    conditioning = model.condition(*inputs(make_network(model), objects=2))
    x, count = 80 * torch.randn(1, 2, 2, 8, 4, 6), torch.ones(1, 1, 2, 5, dtype=torch.bool)
    some = torch.tensor([[[[3, 5, 11, 20, 7], [0, 2, 16, 9, 22]]]])

    def denoised(cells, mask) -> torch.Tensor:
        return model.denoiser(x, 80.0, dataclasses.replace(conditioning, cells=cells, mask=mask)).latents

    full = denoised(None, None)
    everything = torch.arange(23, -1, -1).expand(1, 1, 2, -1)
    assert torch.allclose(denoised(everything, everything >= 0), full, atol=1e-5)
    few = denoised(some, count)
    assert torch.allclose(denoised(torch.cat([some, some + 1], 3), torch.cat([count, ~count], 3)), few, atol=1e-5)
    kept = torch.zeros(1, 1, 2, 24, dtype=torch.bool).scatter(3, some, True).view(1, 1, 2, 1, 4, 6)
    outside = ~kept.expand_as(few)
    assert torch.allclose(few[outside], conditioning.draft.expand_as(few)[outside], atol=0.05)
    assert (few - full).abs().max() > 0.05


@torch.inference_mode()
def test_cells_of_one_sample_that_do_not_count_are_left_out_of_attention():
    attention = make_model().denoiser.blocks[0].self_attention
    tokens = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(4))
    mask = torch.arange(30)[None] % 3 > 0
    two = attention(tokens.expand(2, -1, -1), mask.expand(2, -1))
    torch.testing.assert_close(attention(tokens, mask)[mask], two[:1][mask])


def maps_with(logits: torch.Tensor) -> PriorMaps:
    return PriorMaps(channels=logits, logits=logits, log_assignment=logits, draft=logits, presence=logits[0, 0])


@torch.inference_mode()
def test_masks_are_decoded_in_windows_around_connected_cells():
    logits = torch.full((1, 2, 4 * 20, 4 * 30), -9.0)
    for row, column in ((0, 0), (10, 15), (10, 20), (19, 29)):
        logits[0, 1, 4 * row, 4 * column] = 3.0
    logits[0, 1, 40:44, 60:84] = 3.0  # cells 15 to 20 of row 10
    windows = relevant_windows(maps_with(logits))
    # Of the object that is somewhere: 8 cells or the next multiple of 4, inside of the 20 x 30 cells.
    assert sorted(
        (number, rows.start, rows.stop, columns.start, columns.stop) for number, rows, columns in windows
    ) == [(1, 0, 8, 0, 8), (1, 7, 15, 14, 22), (1, 12, 20, 22, 30)]
    network = make_network(make_model(prior=PRIOR))
    latents = torch.randn(2, 3, 8, 20, 30, generator=torch.Generator().manual_seed(5))
    found = network._decode_windows(latents, windows)
    assert found.shape == (2, 3, 320, 480)
    assert not found[0].any()
    alone = network.model.vae.decode(latents[1, :, :, 7:15, 14:22])
    torch.testing.assert_close(found[1, :, 112:240, 224:352], alone)
    assert not found[1, :, 250:, :300].any()


def test_cells_that_the_prior_rules_out_are_left_out():
    logits = torch.full((1, 2, 16, 24), -9.0)
    logits[0, 0, 5, 9] = 3.0
    cells, mask = relevant_cells(maps_with(logits))
    # The cell in row 1 and column 2 of 4 x 6, and its neighbours; one of an object that is nowhere.
    assert sorted(cells[0, 0].tolist()) == [1, 2, 3, 7, 8, 9, 13, 14, 15]
    assert mask.sum(2).tolist() == [[9, 1]]


@pytest.mark.parametrize("settings", [{"compile": True}, {"sampler": HEUN}], ids=["compiled", "several steps"])
def test_compiled_networks_and_several_steps_leave_no_cells_out(monkeypatch, settings):
    monkeypatch.setattr("ocdit_core.models.denoiser.Denoiser.compile_transformer", lambda *_: None)
    for name in ("models.ocdit.relevant_cells", "inference.network.relevant_windows"):
        monkeypatch.setattr(f"ocdit_core.{name}", lambda _: pytest.fail("cells are left out"))
    generate(make_network(make_model(prior=PRIOR), **settings))


def test_a_result_does_not_depend_on_what_else_is_in_the_batch():
    network = make_network(make_model(prior=PRIOR), ensemble=2, sampler=HEUN)
    images = np.random.default_rng(2).integers(0, 256, (4, 64, 96, 3), np.uint8)
    together = generate(network, windows=4, images=images, crops=2)
    assert difference(together[:, :2], generate(network, windows=2, images=images[:2], crops=2)) < 1e-6
    assert difference(together[:, 2:], generate(network, windows=2, images=images[2:], crops=2)) < 1e-6
    # Crops of one image have different noise.
    same = generate(network, windows=2, images=images[[0, 0]], crops=2)
    assert difference(same[:, 0], same[:, 1]) > 1e-3


GUIDED = SamplerConfig(steps=2, guidance=1.5, token_guidance=2.0)


@pytest.mark.parametrize("method", ["heun", "dpm++2m", "euler_maruyama"])
def test_guidance_of_one_changes_no_bit_and_other_guidance_does(method):
    model = make_model(prior=PRIOR, representation=RepresentationConfig(projection=False))
    plain = SamplerConfig(steps=2, method=method)
    found = []
    for changes in (
        {},
        {"negative": "look_alike", "guidance_interval": (1.0, 2.0)},
        {"guidance": 1.5},
        {"guidance": 1.5, "negative": "look_alike"},
        {"guidance": 1.5, "guidance_interval": (0.003, 79.0)},  # no level of the two steps
    ):
        network = make_network(model, sampler=dataclasses.replace(plain, **changes))
        found.append(network.generate(*inputs(network)))
    for same in (1, 4):
        assert all(np.array_equal(one, other) for one, other in zip(found[0], found[same], strict=True))
    for other in (2, 3):
        assert difference(found[0][0], found[other][0]) > 1e-3
    assert difference(found[2][0], found[3][0]) > 1e-3


@torch.inference_mode()
def test_guidance_leads_away_from_no_templates_or_from_those_of_the_look_alike():
    model = make_model(prior=PRIOR)
    image, targets = inputs(make_network(model))
    features = targets.templates.features
    features[:, 2] = features[:, 0] + 0.1 * features[:, 1]
    targets = model.encode_targets(targets.templates)
    conditioning = model.condition(image, targets)
    seen = []

    def conditioned_on(given):
        seen.append(given)
        return lambda x, sigma: model.denoiser.denoise(x, sigma, given)

    x = 3 * model.denoiser.start((1, 1, 3), conditioning.grid, torch.Generator().manual_seed(3))
    for kind in ("nothing", "look_alike"):
        config = dataclasses.replace(GUIDED, negative=kind)
        guided = model.guided(conditioned_on, image, targets, conditioning, config)
        one, other = (model.denoiser.denoise(x, 3.0, given) for given in seen[-2:])
        torch.testing.assert_close(guided(x, 3.0), other + 1.5 * (one - other))
    # A single target has no look-alike.
    assert not model.guided(
        lambda given: given is not conditioning, *inputs(make_network(model), objects=1), conditioning, config
    )
    # Nothing of the templates is left in the first; the second has those of the other target, positions included.
    other_objects = make_network(model).encode_targets(targets.templates.map(lambda part: part + 1))
    for own, given in zip(seen[1].templates[0], model.unconditional(image, other_objects).templates[0], strict=True):
        assert torch.equal(own, given)
    assert seen[3].queries.shape == conditioning.queries.shape
    assert torch.equal(seen[3].queries[:, :, 0], conditioning.queries[:, :, 2])
    assert torch.equal(seen[3].draft[:, :, 2], conditioning.draft[:, :, 0])
    assert torch.equal(seen[3].templates[1][0][2], conditioning.templates[1][0][0])


class Batches:
    """Records how many units the denoiser and how many masks the decoder get at once, and limits the memory.

    Args:
        network: the network.
        most: units (sets x crops x members) with which memory suffices; None: always.
    """

    def __init__(self, network: Network, most: int | None = None) -> None:
        self.units: list[int] = []
        self.masks: list[int] = []
        self._most = most
        network.model.denoiser.register_forward_pre_hook(self._before)
        network.model.vae.decoder.register_forward_pre_hook(lambda _, inputs: self.masks.append(len(inputs[0])))

    def _before(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        units = inputs[0].shape[0] * inputs[0].shape[1]
        if self._most is not None and units > self._most:
            raise torch.cuda.OutOfMemoryError("tried to allocate 1 GiB")
        self.units.append(units)


@pytest.mark.parametrize(("sets", "windows", "ensemble"), [(1, 1, 5), (1, 3, 2), (5, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_out_of_memory_makes_smaller_batches_of_the_same_result(sets, windows, ensemble, most):
    prior = MatchingPriorConfig(metric_channels=8, hidden_channels=8)
    model = make_model(prior=prior)
    settings = {"ensemble": ensemble, "sampler": HEUN}
    case = {"sets": sets, "windows": windows, "crops": windows}
    expected = generate(make_network(model, **settings), **case)
    network = make_network(model, **settings)
    batches = Batches(network, most)
    assert difference(generate(network, **case), expected) < 1e-6
    assert max(batches.units) <= most
    assert sum(batches.units) == HEUN.evaluations * sets * windows * ensemble


def test_out_of_memory_is_logged_once_and_remembered(caplog):
    network = make_network(make_model(), ensemble=8)
    network._denoiser_batch._cells = float("inf")  # as on a GPU
    batches = Batches(network, most=3)
    with caplog.at_level(logging.WARNING, "ocdit_core.inference.network"):
        for _ in range(2):
            generate(network)
    # 8 units do not fit, nor 4.
    assert batches.units == 8 * [2]
    (record,) = caplog.records
    assert "out of memory with a batch of 576 cells" in record.getMessage()


def test_out_of_memory_with_nothing_left_to_halve_is_an_error():
    network = make_network(make_model(), ensemble=3)
    Batches(network, most=0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        generate(network)


def test_batches_on_a_cpu_are_bounded(monkeypatch):
    model = make_model()
    expected = generate(make_network(model, ensemble=4))
    cells = 3 * 4 * 6
    monkeypatch.setattr("ocdit_core.inference.network._DENOISER_CELLS_ON_CPU", 2 * cells)
    monkeypatch.setattr("ocdit_core.inference.network._DECODER_CELLS_ON_CPU", cells)
    network = make_network(model, ensemble=4)
    batches = Batches(network)
    assert difference(generate(network), expected) < 1e-6
    assert batches.units == [2, 2]
    assert batches.masks == [3, 3, 3, 3]


def test_what_depends_on_noise_levels_alone_is_computed_once():
    model = make_model()
    calls = []
    model.denoiser.blocks[0].mlp_modulation.linear.register_forward_hook(lambda *_: calls.append(1))
    network = make_network(model, sampler=HEUN)
    for _ in range(3):
        generate(network)
    assert len(calls) == 3


def test_bfloat16_is_close_and_leaves_the_model_alone():
    model = make_model(prior=PRIOR)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exact = generate(make_network(model, ensemble=2, sampler=HEUN))
    half = make_network(model, precision="bfloat16", ensemble=2, sampler=HEUN)
    assert half.model.denoiser.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    found = generate(half)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - exact).mean() < 0.01
    assert difference(generate(make_network(model, ensemble=2, sampler=HEUN)), exact) < 1e-9


def test_auto_is_float32_on_the_cpu():
    assert make_network(make_model()).model.denoiser.blocks[0].mlp.fc1.weight.dtype == torch.float32


@pytest.mark.slow
def test_compiled_equals_eager(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_model(width=32, depth=1)
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:  # no C++ compiler at hand, or none that torch can use
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    compiled = make_network(model, compile=True, sampler=HEUN)
    assert difference(generate(compiled), generate(make_network(model, sampler=HEUN))) < 1e-5


def test_timings_are_those_of_the_thread_that_collects_them():
    lap("nobody listens")
    with collect_timings() as outer:
        lap("one")
        with collect_timings() as inner:
            lap("two")
        lap("one")
    assert set(outer) == {"one", "total"}
    assert set(inner) == {"two", "total"}
    assert outer["total"] >= outer["one"] >= inner["total"] >= inner["two"] > 0


@torch.inference_mode()
def test_the_priors_own_mask_joins_the_mean_by_its_weight():
    model = make_model(prior=PRIOR)
    case = inputs(make_network(model), sets=2)
    denoised, presence = make_network(model).generate(*case)
    own = make_network(model).match(*case)
    assert own.shape == (2, 3, 64, 96)
    half, _ = make_network(model, prior_weight=0.5).generate(*case)
    assert difference(half[:, 0], (denoised[:, 0] + own) / 2) < 1e-6
    assert presence.shape == (2, 1, 3)
    assert ((presence > 0) & (presence <= 1)).all()


@torch.inference_mode()
def test_a_published_model_has_no_prior_to_ask():
    network = make_network(make_model())
    case = inputs(network)
    assert network.match(*case) is None
    assert (network.generate(*case)[1] == 1).all()
