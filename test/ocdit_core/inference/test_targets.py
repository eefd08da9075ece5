import dataclasses
import logging
import os
import time

import numpy as np
import pytest
import torch
from builders import TINY_DINO

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.targets import FeatureCache, ObjectEncoder, default_cache, templates_digest, weights_digest
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPriorConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig, TemplateFeatures
from ocdit_core.objects.archive import ObjectTemplates, save_templates

CPU = torch.device("cpu")
CONV = OCDiTConfig(
    image_size=(64, 64),
    template_size=(64, 64),
    backbone=BackboneConfig(kind="conv", frozen=False),
    vae=MaskVAEConfig(channels=(8, 8, 16), latent_channels=4, blocks=1),
    denoiser=DenoiserConfig(width=32, depth=1, heads=4, max_objects=4, max_views=3),
    matching_prior=MatchingPriorConfig(metric_channels=8, hidden_channels=8),
)
VIT = dataclasses.replace(CONV, backbone=BackboneConfig(kind="vit", architecture=TINY_DINO), matching_prior=None)


def make(config=CONV, seed=0):
    torch.manual_seed(seed)
    return OCDiT(config).eval().requires_grad_(False)


def an_object(seed=0, name="mug"):
    rng = np.random.default_rng(seed)
    mask = np.zeros((3, 128, 128), bool)
    mask[:, 20:100, 30:90] = True
    return ObjectTemplates(
        name=name, rgb=rng.integers(0, 255, (3, 128, 128, 3), np.uint8) * mask[..., None], mask=mask,
        box=np.ones((3, 4), np.float32), K=np.tile(np.eye(3), (3, 1, 1)), pose=np.tile(np.eye(4), (3, 1, 1)),
        points=np.ones((4, 3), np.float32), diameter=0.1,
    )  # fmt: skip


def tensors(features):
    return [t for t in (features.features, *features.descriptors, features.global_features) if t is not None]


def equal(first, second):
    ours, theirs = tensors(first), tensors(second)
    # The order in memory counts too: sums over it round in their own way.
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


class Counting(ObjectEncoder):
    """An encoder that counts what it computes."""

    computed = 0

    def __init__(self, model, cache):
        super().__init__(Network(model, CPU, InferenceSettings()), cache)

    def _compute(self, chosen):
        self.computed += 1
        return super()._compute(chosen)


def files(folder):
    return sorted(path for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("config", [CONV, VIT], ids=["conv and prior", "vit"])
def test_features_from_disk_are_those_that_were_computed(tmp_path, config):
    plain = Counting(make(config), None)
    expected = plain.encode(an_object())
    first = Counting(make(config), tmp_path)
    assert equal(first.encode(an_object()), expected)
    assert first.encode(an_object()) is first.encode(an_object())
    assert first.computed == 1
    assert len(files(tmp_path)) == 1
    again = Counting(make(config), tmp_path)
    assert equal(again.encode(an_object()), expected)
    assert again.computed == 0


def test_what_features_depend_on_is_part_of_the_key(tmp_path):
    encoder = Counting(make(), tmp_path)
    plain = encoder.encode(an_object())
    encoder.encode(an_object(name="another name"))
    assert encoder.computed == 1
    # Other views of the same object: rendered anew, or fewer of them.
    encoder.encode(an_object(seed=1))
    encoder.encode(an_object(), views=2)
    turned = dataclasses.replace(an_object(), mask=an_object().mask[:, ::-1])
    encoder.encode(turned)
    assert encoder.computed == 4
    other = Counting(make(seed=1), tmp_path)
    assert not equal(other.encode(an_object()), plain)
    assert other.computed == 1
    assert len(files(tmp_path)) == 5


def test_weights_are_told_apart_by_what_the_features_use():
    model = make()
    digest = weights_digest(model, CPU)
    assert weights_digest(make(), CPU) == digest
    with torch.no_grad():
        next(model.denoiser.parameters()).add_(1)
        next(model.vae.parameters()).add_(1)
    assert weights_digest(model, CPU) == digest
    with torch.no_grad():
        model.prior.metric.bias[0] += 1
    changed = weights_digest(model, CPU)
    assert changed != digest
    with torch.no_grad():
        list(model.backbone.parameters())[-1][0] += 1e-6
    assert weights_digest(model, CPU) != changed
    others = {
        weights_digest(make(), torch.device("cuda")),
        weights_digest(make(dataclasses.replace(CONV, template_size=(32, 32))), CPU),
        weights_digest(make().to(torch.bfloat16), CPU),
        digest,
    }
    assert len(others) == 4


def test_damaged_files_are_computed_anew_and_written_again(tmp_path, caplog):
    expected = Counting(make(), tmp_path).encode(an_object())
    (path,) = files(tmp_path)
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-10] ^= 0x01
    for damaged in (b"", b"junk", sound[: len(sound) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        caplog.clear()
        encoder = Counting(make(), tmp_path)
        assert equal(encoder.encode(an_object()), expected)
        assert encoder.computed == 1
        assert len(caplog.messages) == 1
        assert "damaged template features" in caplog.messages[0]
        assert path.read_bytes() == sound
    assert files(tmp_path) == [path]


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    encoder = Counting(make(), tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "ocdit_core"):
        for seed in range(3):
            encoder.encode(an_object(seed))
    encoder.trim()
    assert encoder.computed == 3
    assert len([message for message in caplog.messages if "cannot be cached" in message]) == 1


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path):
    features = TemplateFeatures(features=torch.arange(1000.0))
    cache = FeatureCache(tmp_path, max_bytes=3 * 4400)
    long_ago = time.time() - 1000
    for number in range(5):
        cache.write(f"key{number}", features)
        os.utime(tmp_path / f"key{number}.safetensors", (long_ago + number, long_ago + number))
    (tmp_path / "other.txt").write_text("x" * 100_000)
    assert equal(cache.read("key0", CPU), features)
    cache.trim()
    assert [path.name for path in files(tmp_path)] == [
        "key0.safetensors", "key3.safetensors", "key4.safetensors", "other.txt",
    ]  # fmt: skip
    assert cache.read("key1", CPU) is None


def test_every_part_and_type_comes_back(tmp_path):
    shared = torch.randn(2, 6)
    features = TemplateFeatures(
        features=torch.randn(1, 1, 2, 3, 4, 4, dtype=torch.bfloat16),
        descriptors=(shared[0], shared.T, torch.arange(3)),
        global_features=torch.randn(1, 1, 2, 3),
    )
    cache = FeatureCache(tmp_path / "new")
    cache.write("key", features)
    assert equal(cache.read("key", CPU), features.map(torch.Tensor.contiguous))


def test_the_place_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("OCDIT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "features"
    monkeypatch.delenv("OCDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "ocdit" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "ocdit" / "features"


def test_views_are_told_apart():
    first = an_object()
    assert templates_digest(first) == templates_digest(dataclasses.replace(first, name="x", diameter=3.0))
    brighter = first.rgb.copy()
    brighter[1, 50, 50, 2] ^= 1
    assert templates_digest(first) != templates_digest(dataclasses.replace(first, rgb=brighter))


def test_a_segmenter_that_starts_again_reads_its_features(tmp_path, monkeypatch):
    library_folder = tmp_path / "lib"
    for seed in range(3):
        save_templates(library_folder, an_object(seed, f"object {seed}"))
    library = ObjectLibrary(library_folder)
    make().save_pretrained(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    anything = InferenceSettings(mask_threshold=0.01, score_threshold=0.0)

    def results(cache, computed):
        calls = []
        plain = OCDiT.encode_templates
        with monkeypatch.context() as patch:
            patch.setattr(OCDiT, "encode_templates", lambda self, *args: calls.append(1) or plain(self, *args))
            segmenter = Segmenter.from_pretrained(
                tmp_path / "model", device="cpu", settings=anything, feature_cache=cache
            )
            segmenter.set_objects(library)
        assert len(calls) == computed
        assert [len(run.templates.features[0]) for run in segmenter.objects.runs] == [3]
        found = segmenter.segment(image).instances
        assert found
        return [(one.object_id, one.score, one.mask.tobytes()) for one in found]

    computed = results(tmp_path / "cache", 3)
    assert results(tmp_path / "cache", 0) == computed
    assert results(None, 3) == computed
    # By default the cache is the user's, which the tests keep apart.
    assert results("auto", 3) == computed
    assert results("auto", 0) == computed
    assert files(default_cache())
