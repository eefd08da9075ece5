import json

import pytest

from ocdit_core import cli


def test_benchmark_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    arguments = ["--objects", "1", "2", "--ensembles", "1", "2", "--image-sizes", "64x96", "--repeats", "1"]
    # How much there is to refine depends on what is found, not on the case alone.
    settings = ["--set", "sampler.steps=2", "--set", "refine.enabled=false"]
    assert cli.main(["benchmark", *arguments, "--json", str(figures), *settings]) == 0
    header, titles, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("model ocdit-small, engine torch, precision float32, device ")
    assert titles.split()[:3] == ["objects", "ensemble", "size"]
    assert [row.split()[:3] for row in rows] == [[objects, ensemble, "64x96"] for ensemble in "12" for objects in "12"]
    found = json.loads(figures.read_text())
    assert found["machine"]["evaluations"] == 3
    for case in found["cases"]:
        assert {"backbone", "sampling", "decoding", "instances", "total"} <= set(case["stages"])
        assert sum(case["stages"].values()) <= 2.01 * case["stages"]["total"]
        assert case["encoding"] > 0


def test_settings_are_compared_side_by_side(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    sizes = ["--objects", "1", "2", "--image-sizes", "64x96", "--repeats", "1", "--json", str(figures)]
    variants = ["precision=float32", "sampler.steps=9,fine_image_size=[64,96]"]
    assert cli.main(["benchmark", *sizes, "--set", "refine.enabled=false", "--compare", *variants]) == 0
    titles, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (titles[0], titles[-3:]) == ("settings", ["times", "faster", "memory"])
    assert [row[:2] for row in rows] == [[name, objects] for objects in "12" for name in variants]
    found = json.loads(figures.read_text())
    assert [found[name]["machine"]["evaluations"] for name in variants] == [1, 17]
    assert all(2e8 < one["peak_memory"] < 8e9 for one in found.values())
    totals = [[case["stages"]["total"] for case in found[name]["cases"]] for name in variants]
    assert [row[-2] for row in rows[1::2]] == [f"{a / b:.2f}" for a, b in zip(*totals, strict=True)]


def test_a_setting_that_there_is_none_of_is_one_line(capsys):
    assert cli.main(["benchmark", "--compare", "engine=onnx"]) == 2
    assert capsys.readouterr().err.startswith("ocdit: error: engine: ")


def test_sizes_that_are_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--image-sizes", "100x100"])
    assert "100x100 is not HEIGHTxWIDTH, both multiples of 16" in capsys.readouterr().err
