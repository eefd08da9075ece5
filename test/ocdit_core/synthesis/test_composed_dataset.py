import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import trimesh
from torch.utils.data import DataLoader

from ocdit_core.data.sampling import SampleSettings
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.files import write_text
from ocdit_core.synthesis import composed_dataset
from ocdit_core.synthesis.bank import BankSettings, ObjectBank, build_bank, main
from ocdit_core.synthesis.composed import SceneSettings
from ocdit_core.synthesis.composed_dataset import ComposedDataSettings, ComposedScenes, ConsecutiveBatches
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, find_meshes, painted_mesh

SCENE = SceneSettings(image_size=(144, 192))
SETTINGS = BankSettings(objects=10, template_size=32, sprites=4, sprite_size=48)


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "bank"
    build_bank(folder, SETTINGS, progress=False)
    return folder


def test_a_bank_holds_every_object(bank_folder):
    bank = ObjectBank.open(bank_folder)
    assert len(bank) == 10
    assert bank.templates.shape == (10, 12, 32, 32, 4)
    assert bank.sprites.shape == (10, 4, 48, 48, 4)
    for pictures in (bank.templates, bank.sprites):
        coverage = (pictures[..., 3] > 127).mean(axis=(2, 3))
        assert coverage.min() > 0.01
        assert (pictures[..., :3] <= pictures[..., 3:]).all()
    assert not bank.sprites.flags.writeable


def test_workers_draw_the_same_and_an_interrupted_bank_is_continued(bank_folder, tmp_path):
    """Half of a bank from before, its objects marked as done, is kept as it is; the rest is drawn."""
    partial = tmp_path / "bank.partial"
    shutil.copytree(bank_folder, partial)
    (partial / "bank.json").unlink()
    settings = json.loads((bank_folder / "bank.json").read_text())
    write_text(partial / "plan.json", json.dumps(settings))
    done = np.zeros(10, bool)
    done[:4] = True
    np.save(partial / "done.npy", done)
    sprites = np.load(partial / "sprites.npy", mmap_mode="r+")
    sprites[0] = 77  # shows that a finished object is not drawn again
    sprites[4:] = 0
    sprites.flush()
    bank = build_bank(tmp_path / "bank", SETTINGS, jobs=2, progress=False)
    assert (bank.sprites[0] == 77).all()
    np.testing.assert_array_equal(bank.sprites[1:], ObjectBank.open(bank_folder).sprites[1:])
    assert sorted(p.name for p in (tmp_path / "bank").iterdir()) == ["bank.json", "sprites.npy", "templates.npy"]


def test_a_finished_bank_is_kept_and_never_overwritten(bank_folder):
    before = (bank_folder / "sprites.npy").stat().st_mtime_ns
    build_bank(bank_folder, SETTINGS, progress=False)
    assert (bank_folder / "sprites.npy").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other settings"):
        build_bank(bank_folder, BankSettings(objects=3), progress=False)


def test_other_files_in_the_folder_of_an_unfinished_bank_are_left_alone(tmp_path):
    foreign = tmp_path / "bank.partial" / "thesis.txt"
    foreign.parent.mkdir()
    foreign.write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis\.txt but no plan\.json"):
        build_bank(tmp_path / "bank", SETTINGS, progress=False)
    assert foreign.read_text() == "years of work"


def test_damaged_banks_are_refused(bank_folder, tmp_path):
    with pytest.raises(DataError, match=r"bank\.json is missing"):
        ObjectBank.open(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(bank_folder, broken)
    with (broken / "sprites.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"sprites\.npy.*truncated"):
        ObjectBank.open(broken)
    (broken / "bank.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        ObjectBank.open(broken)


def test_training_and_held_out_seeds_do_not_mix():
    with pytest.raises(DataError, match="held out"):
        BankSettings(objects=10, first_seed=HELD_OUT_SEED - 5)
    assert BankSettings(objects=10, first_seed=HELD_OUT_SEED).first_seed == HELD_OUT_SEED


def test_mesh_files_join_the_bank_and_grey_shapes_are_painted(tmp_path, caplog):
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    red = trimesh.creation.box((0.1, 0.1, 0.2))
    red.visual.vertex_colors = (220, 20, 20, 255)
    red.export(meshes / "red.ply")
    trimesh.creation.capsule(0.1, 0.05).export(meshes / "grey.stl")
    (meshes / "broken.glb").write_bytes(b"glTF")
    found = find_meshes(meshes)
    assert [path.rsplit("/", 1)[1] for path in found] == ["grey.stl", "red.ply"]
    assert "broken.glb" in caplog.text
    settings = BankSettings(objects=1, meshes=tuple(found), template_size=32, sprites=2, sprite_size=32)
    bank = build_bank(tmp_path / "bank", settings, progress=False)
    assert len(bank) == 3
    assert ObjectBank.open(tmp_path / "bank").settings == settings
    covered = bank.templates[2][bank.templates[2][..., 3] == 255].astype(int)
    assert (covered[:, 0] > 3 * covered[:, 1]).all()
    rng = np.random.default_rng(0)
    textured = [painted_mesh(found[0], rng).visual.kind for _ in range(3)]
    assert textured == ["texture"] * 3
    with pytest.raises(DataError, match="no such folder"):
        find_meshes(tmp_path / "nowhere")


def test_the_command_line_reports_errors_in_one_line(bank_folder, capsys):
    assert main(["--out", str(bank_folder), "--objects", "3"]) == 2
    assert capsys.readouterr().err.startswith("bank: error: ")


def settings_for(folder, *, scene=SCENE, distractors=(0, 3), seed=0, **sample):
    defaults = {"image_size": (144, 192), "template_size": 32, "views": 4, "crops": 2, "absent_probability": 0.25}
    return ComposedDataSettings(
        bank=str(folder),
        scene=scene,
        sample=SampleSettings(**{**defaults, **sample}),
        distractors=distractors,
        seed=seed,
    )


def test_samples_have_the_promised_shapes_and_agree(bank_folder):
    dataset = ComposedScenes(settings_for(bank_folder))
    absent = present = 0
    for k in range(12):
        sample = dataset[k]
        assert sample["images"].shape == (2, 3, 144, 192)
        assert sample["templates"].shape == (4, 4, 3, 32, 32)
        assert sample["template_masks"].shape == (4, 4, 32, 32)
        assert sample["masks"].shape == (2, 4, 144, 192)
        for name in ("images", "templates", "template_masks", "masks"):
            assert sample[name].dtype == torch.uint8
        assert set(sample["template_masks"].unique().tolist()) == {0, 255}
        pixels = sample["masks"].sum(dim=(2, 3))
        assert torch.equal(pixels > 0, sample["present"])
        assert pixels[sample["present"]].min() >= 12
        assert sample["masks"].sum(dim=1).max() <= 1
        present += int(sample["present"].sum())
        absent += int((~sample["present"]).sum())
    assert 0.1 < absent / (absent + present) < 0.45


def test_sample_k_depends_on_the_seed_and_k_alone(bank_folder):
    first, second = (ComposedScenes(settings_for(bank_folder)) for _ in range(2))
    second[3]
    for name, value in first[8].items():
        assert torch.equal(value, second[8][name])
    other = ComposedScenes(settings_for(bank_folder, seed=1))[8]
    assert not torch.equal(first[8]["images"], other["images"])


def test_workers_keep_the_order_and_any_batch_can_be_the_first(bank_folder):
    dataset = ComposedScenes(settings_for(bank_folder, crops=1))
    stream = iter(DataLoader(dataset, batch_sampler=ConsecutiveBatches(2, start=3), num_workers=2))
    for batch in range(3, 6):
        images = next(stream)["images"]
        for i in range(2):
            assert torch.equal(images[i], dataset[2 * batch + i]["images"])


def test_processes_take_turns():
    orders = [itertools.islice(ConsecutiveBatches(2, rank=rank, world=2, start=1), 2) for rank in range(2)]
    assert [list(order) for order in orders] == [[[4, 5], [8, 9]], [[6, 7], [10, 11]]]


def refine_settings(folder, **changes):
    options = {"mode": "refine", "objects": 1, "image_size": (48, 64), "negative_probability": 0.4}
    return settings_for(folder, **{"distractors": (1, 3), **options, **changes})


def test_refine_samples_show_one_object_close_up_or_another_one(bank_folder):
    dataset = ComposedScenes(refine_settings(bank_folder))
    present, areas = [], []
    for k in range(40):
        sample = dataset[k]
        assert sample["images"].shape == (2, 3, 48, 64)
        assert sample["templates"].shape[:2] == (1, 4)
        assert sample["masks"].shape == (2, 1, 48, 64)
        pixels = sample["masks"].sum(dim=(2, 3))
        assert torch.equal(pixels > 0, sample["present"])
        present += sample["present"].flatten().tolist()
        areas += (pixels[sample["present"]] / (48 * 64)).tolist()
    assert 0.4 < np.mean(present) < 0.8
    # Close up: of a picture that a whole scene fills, an object covers a few hundredths.
    assert np.mean(areas) > 0.12
    for name, value in dataset[7].items():
        assert torch.equal(value, ComposedScenes(refine_settings(bank_folder))[7][name])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_negatives_is_what_is_asked_for(bank_folder, share):
    dataset = ComposedScenes(refine_settings(bank_folder, negative_probability=share))
    present = torch.cat([dataset[k]["present"].flatten() for k in range(10)])
    assert present.float().mean() == 1 - share


def test_refine_settings_that_make_no_sense_are_refused(bank_folder):
    with pytest.raises(ConfigError, match="1 object, not 2"):
        refine_settings(bank_folder, objects=2)
    with pytest.raises(ConfigError, match="no other object"):
        refine_settings(bank_folder, distractors=(0, 0))
    tiny = SceneSettings(image_size=(144, 192), object_size=(0.01, 0.02))
    with pytest.raises(DataError, match="in 100 scenes no object shows"):
        ComposedScenes(refine_settings(bank_folder, scene=tiny))[0]


def test_all_are_present_with_an_absent_probability_of_0(bank_folder):
    dataset = ComposedScenes(settings_for(bank_folder, absent_probability=0.0, distractors=(0, 0)))
    shares = [dataset[k]["present"].float().mean().item() for k in range(8)]
    assert np.mean(shares) > 0.97


def test_colours_of_templates_are_found_in_the_scene(bank_folder, monkeypatch):
    """A target's mean colour in the picture is nearer to its own templates than to those of the others."""
    monkeypatch.setattr(composed_dataset, "RECOLOUR_PROBABILITY", 1.0)
    dataset = ComposedScenes(settings_for(bank_folder))
    right = total = 0
    for k in range(15):
        sample = dataset[k]
        covered = sample["template_masks"].bool()
        colours = torch.stack(
            [sample["templates"][o].permute(0, 2, 3, 1)[covered[o]].float().mean(dim=0) for o in range(4)]
        )
        for s, o in sample["present"].nonzero().tolist():
            seen = sample["images"][s].permute(1, 2, 0)[sample["masks"][s, o].bool()].float().mean(dim=0)
            distance = torch.linalg.norm(colours / colours.norm(dim=1, keepdim=True) - seen / seen.norm(), dim=1)
            right += int(distance.argmin() == o)
            total += 1
    assert right / total > 0.5  # chance is one quarter


def test_settings_that_the_bank_cannot_serve_are_refused(bank_folder):
    with pytest.raises(ConfigError, match="holds 10"):
        ComposedScenes(settings_for(bank_folder, objects=9, distractors=(0, 3)))
    with pytest.raises(ConfigError, match="views"):
        ComposedScenes(settings_for(bank_folder, views=13))
    with pytest.raises(ConfigError, match="template_size: 64 wanted"):
        ComposedScenes(settings_for(bank_folder, template_size=64))
