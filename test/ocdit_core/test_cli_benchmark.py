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
    assert header.startswith("model ocdit-small, precision float32, device ")
    assert titles.split()[:3] == ["objects", "ensemble", "size"]
    assert [row.split()[:3] for row in rows] == [[objects, ensemble, "64x96"] for ensemble in "12" for objects in "12"]
    found = json.loads(figures.read_text())
    assert found["machine"]["evaluations"] == 3
    for case in found["cases"]:
        assert {"backbone", "sampling", "decoding", "instances", "total"} <= set(case["stages"])
        assert sum(case["stages"].values()) <= 2.01 * case["stages"]["total"]
        assert case["encoding"] > 0


def test_sizes_that_are_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--image-sizes", "100x100"])
    assert "100x100 is not HEIGHTxWIDTH, both multiples of 16" in capsys.readouterr().err
