import sys
from pathlib import Path

import numpy as np
import pytest

from ocdit_core import ObjectLibrary
from ocdit_core.cli import main
from ocdit_core.images import read_image, write_image

sys.path.append(str(Path(__file__).parent / "objects"))
from photographs import photo


@pytest.fixture
def album(tmp_path):
    for seed in range(3):
        image, truth = photo(seed)
        write_image(tmp_path / f"p{seed}.png", image)
        write_image(tmp_path / "masks" / f"m{seed}.png", truth)
    return tmp_path


def errors(capsys):
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err
    return [line for line in caught.err.splitlines() if "error" in line], caught.out


def test_photos_become_an_object_of_the_library(album, capsys):
    photos = [f"{album}/p{index}.png" for index in range(3)]
    command = ["capture", *photos, "--name", "toy", "--out", f"{album}/lib", "--sheet", f"{album}/cut.png"]
    status = main([*command, "--diameter", "0.21"])
    bad, out = errors(capsys)
    assert (status, bad) == (0, [])
    assert "toy captured, 3 views" in out
    library = ObjectLibrary(album / "lib")
    assert (library["toy"].origin, library["toy"].diameter) == ("photos", 0.21)
    assert library.manifest["toy"].id == 1
    assert (library.path / "manifest.json").is_file()
    assert read_image(album / "cut.png").shape[0] > 160
    assert main(["objects", str(library.path)]) == 0
    assert "toy" in capsys.readouterr().out


def test_masks_and_clicks(album, capsys):
    photos = [f"{album}/p{index}.png" for index in range(3)]
    masks = [f"{album}/masks/m{index}.png" for index in range(3)]
    assert main(["capture", *photos, "--name", "a", "--out", f"{album}/lib", "--masks", *masks]) == 0
    assert main(["capture", photos[0], "--name", "b", "--out", f"{album}/lib", "--click", "160,120"]) == 0
    a, b = ObjectLibrary(album / "lib").select(["a", "b"])
    assert (len(a), len(b)) == (3, 1)
    assert np.isnan(a.diameter)
    assert main(["objects", f"{album}/lib"]) == 0


def test_a_bad_photo_costs_a_line_and_the_status_2(album, capsys):
    status = main(["capture", f"{album}/p0.png", f"{album}/none.png", "--name", "toy", "--out", f"{album}/lib"])
    bad, out = errors(capsys)
    assert status == 2
    assert len(bad) == 1
    assert "none.png: no such file" in bad[0]
    assert "1 view\n" in out
    assert len(ObjectLibrary(album / "lib")["toy"]) == 1


def test_nothing_is_written_without_a_usable_photo(album, capsys):
    assert main(["capture", f"{album}/*.jpg", f"{album}", "--name", "toy", "--out", f"{album}/lib"]) == 2
    bad, _ = errors(capsys)
    assert len(bad) == 3
    assert "*.jpg: no such file" in bad[0]
    assert "is a folder" in bad[1]
    assert bad[2].endswith("toy: none of the 2 photos can be used")
    assert not (album / "lib").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", "a/b"], "object name 'a/b'"),
        (["--name", "toy", "--diameter", "nan"], "diameter: nan m"),
        (["--name", "toy", "--masks", "m0.png", "m1.png"], "2 masks were given for 1 photos"),
        (["--name", "toy", "--click", "400,10"], "click 400,10 is outside the image of 320 x 240 pixels"),
    ],
)
def test_wrong_arguments_cost_one_line(album, capsys, arguments, reason):
    assert main(["capture", f"{album}/p0.png", "--out", f"{album}/lib", *arguments]) == 2
    bad, _ = errors(capsys)
    assert reason in bad[0]
    assert not (album / "lib").exists()


@pytest.mark.parametrize("text", ["12", "a,b", "1,2,3", ""])
def test_points_that_are_none_are_refused_by_the_parser(album, capsys, text):
    with pytest.raises(SystemExit):
        main(["capture", f"{album}/p0.png", "--name", "toy", "--out", f"{album}/lib", "--click", text])
    assert "is not a point X,Y" in capsys.readouterr().err
