"""`ocdit segment` from files to files, with an untrained network: what it finds is noise, how it is stored is not."""

import json

import numpy as np
import pytest
import trimesh
from builders import make_untrained_model

from ocdit_core.cli import main
from ocdit_core.images import read_image, write_image
from ocdit_core.masks import decode_mask


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A library of two objects, an untrained model, two images and a broken one."""
    folder = tmp_path_factory.mktemp("segment")
    for name, side in (("cube", 0.1), ("slab", 0.02)):
        trimesh.creation.box((0.1, 0.1, side)).export(folder / f"{name}.ply")
    assert main(["render", f"{folder}/cube.ply", f"{folder}/slab.ply", "--out", f"{folder}/lib"]) == 0
    make_untrained_model(folder / "model", image_size=(64, 80), template_size=(32, 32))
    rng = np.random.default_rng(0)
    for name, shape in (("a", (90, 120, 3)), ("b", (60, 200, 3))):
        write_image(folder / f"{name}.png", rng.integers(0, 255, shape, np.uint8))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def segment(place, images, *more):
    paths = [f"{place}/{name}.png" for name in images]
    return main(["segment", *paths, "--objects", f"{place}/lib", "--weights", f"{place}/model", *more])


def test_images_become_masks_json_and_overlays(place, tmp_path, capsys):
    status = segment(place, ["a", "broken", "b"], "--out", str(tmp_path), "--device", "cpu", "--threshold", "0")
    caught = capsys.readouterr()
    assert status == 2, "one image is broken"
    assert [line for line in caught.err.splitlines() if "error" in line] == [
        line for line in caught.err.splitlines() if line.startswith("ocdit: error: ") and "broken.png" in line
    ]
    for name, (height, width) in (("a", (90, 120)), ("b", (60, 200))):
        data = json.loads((tmp_path / f"{name}.json").read_text())
        assert (data["height"], data["width"], data["model"]) == (height, width, "model")
        assert data["targets"] == ["cube", "slab"]
        assert read_image(tmp_path / f"{name}_overlay.png").shape == (height, width, 3)
        masks = sorted((tmp_path / name).glob("*.png")) if (tmp_path / name).exists() else []
        assert len(masks) == len(data["instances"])
        for one in data["instances"]:
            stored = read_image(tmp_path / name / f"mask_{one['number']}_{one['object_id']}.png")[..., 0]
            np.testing.assert_array_equal(stored > 0, decode_mask(one["segmentation"]))
            assert f"{name}.png" in caught.out
    assert not list(tmp_path.glob("broken*"))


def test_the_threshold_and_the_targets_reach_the_model(place, tmp_path, capsys):
    assert segment(place, ["a"], "--out", str(tmp_path), "--targets", "slab", "--threshold", "1") == 0
    data = json.loads((tmp_path / "a.json").read_text())
    assert (data["targets"], data["instances"]) == (["slab"], [])
    assert "not found" in capsys.readouterr().out


def test_settings_reach_the_model_and_its_doubts_are_drawn(place, tmp_path):
    more = ["--uncertainty", "--preset", "fast", "--set", "mask_threshold=1.0"]
    assert segment(place, ["a"], "--out", str(tmp_path), *more) == 0
    assert json.loads((tmp_path / "a.json").read_text())["instances"] == []
    doubts = read_image(tmp_path / "a_uncertainty.png")
    assert doubts.shape == read_image(tmp_path / "a_overlay.png").shape
    assert doubts.max() > doubts.min()


def test_the_steps_of_the_sampler_are_drawn(place, tmp_path):
    more = ["--steps", "--set", "sampler.steps=3", "--set", "ensemble=2", "--set", "crops=1"]
    assert segment(place, ["a"], "--out", str(tmp_path), *more) == 0
    drawn = read_image(tmp_path / "a_steps.png")
    # The crop and 3 noise levels of 192 pixels; 2 crops of 2 members under the title.
    height = 192 * 64 // 80
    assert drawn.shape[:2] == (22 + 4 * (height + 1), 4 * 192)


def test_prompts_name_the_targets_and_bound_the_masks(place, tmp_path):
    (tmp_path / "prompts.json").write_text('[{"object_id": "cube", "box": [60, 10, 50, 70]}]')
    more = ["--prompt", "cube@box:5,10,50,70", "--prompts", f"{tmp_path}/prompts.json", "--threshold", "0"]
    assert main(["segment", f"{place}/a.png", "--objects", f"{place}/lib", "--out", str(tmp_path), *more]) == 0
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["targets"] == ["cube"]
    for one in data["instances"]:
        x, y, width, height = one["box"]
        assert y >= 10
        assert y + height <= 80
        assert (x >= 5 and x + width <= 55) or (x >= 60 and x + width <= 110)


def test_prompts_are_for_one_image_and_inside_it(place, tmp_path, capsys):
    assert segment(place, ["a", "b"], "--out", str(tmp_path / "out"), "--prompt", "cube@1,2") == 2
    assert "prompts are pixels of one image: give one IMAGE" in capsys.readouterr().err
    command = ["segment", f"{place}/a.png", "--objects", f"{place}/lib", "--out", str(tmp_path / "out")]
    assert main([*command, "--prompt", "cube@120,2"]) == 2
    assert "prompt for cube: point (120, 2) is outside the image of 120 x 90 pixels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--prompt", "cube"], "prompt 'cube' is not OBJECT@X,Y or OBJECT@box:X,Y,WIDTH,HEIGHT"),
        (["--prompt", "sphere@1,2"], "unknown object 'sphere': the library holds cube, slab"),
        (["--prompt", "cube@1,2"], "prompts need a refine model, and model has none"),
        (["--prompts", "no.json"], "no.json: cannot be read"),
        (["--preset", "quick"], "preset: 'quick' is not one of fast, paper"),
        (["--set", "ensembel=3"], "ensembel: unknown setting; did you mean 'ensemble'?"),
        (["--targets", "cube", "sphere"], "unknown object 'sphere': the library holds cube, slab"),
        (["--weights", "no-such-model"], "no-such-model"),
        (["--device", "mars"], "mars"),
    ],
)
def test_bad_wishes_are_one_line_and_status_2(place, tmp_path, capsys, more, reason):
    assert segment(place, ["a"], "--out", str(tmp_path / "out"), *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("ocdit: error: ")]) == 1
    assert reason in lines[-1]
    assert not (tmp_path / "out").exists()
