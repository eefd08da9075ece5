"""Grids of settings through the evaluation."""

import json
from pathlib import Path

import pytest
import yaml
from small_sets import write_library, write_set
from stand_in_methods import ByColour
from test_report import Strict

from ocdit_core.cli import main
from ocdit_core.config import build
from ocdit_core.errors import ConfigError
from ocdit_core.evaluation.ablate import Grid, overrides_of, read_ablation, read_grid
from ocdit_core.evaluation.methods import method_spec

READY = sorted((Path(__file__).parents[3] / "config" / "evaluate").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    write_set(folder / "set", 4)
    write_library(folder / "library")
    grid = {
        "title": "Masks",
        "settings": {"sampler.rho": 8.0},
        "grids": [{"ensemble": [4, 1], "sampler.steps": [1, 3]}, {"image_size": [[96, 128], [192, 256]]}],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    return folder


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    """Replace the network by a method that finds colours and cuts `ensemble` columns off each mask."""
    monkeypatch.setattr(
        "ocdit_core.evaluation.methods.Segmenter.from_pretrained",
        lambda weights, device, settings: ByColour(tmp_path / "log", -1, 0.0, cut=settings.ensemble),
    )


def ablate(place, out, *more, config="grid.yaml"):
    dataset = ["--dataset", f"{place}/set", "--split", "test", "--objects", f"{place}/library"]
    return main(["ablate", "--config", f"{place}/{config}", *dataset, "--out", str(out), "--resamples", "20", *more])


def test_a_grid_from_settings_to_curves(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert ablate(place, out, "--shard", "0/2") == 0
    assert "0 combinations, 6 not finished" in capsys.readouterr().out
    assert ablate(place, out) == 0
    printed = capsys.readouterr().out
    assert "6 combinations;" in printed
    cells = read_ablation(out).cells
    assert [cell for cell, _ in cells][:3] == [
        {"ensemble": 4, "sampler.steps": 1},
        {"ensemble": 4, "sampler.steps": 3},
        {"ensemble": 1, "sampler.steps": 1},
    ]
    for cell, run in cells:
        settings = run.plan["settings"]
        assert settings["sampler"]["rho"] == 8
        flat = settings | {f"sampler.{key}": value for key, value in settings["sampler"].items()}
        assert {key: flat[key] for key in cell} == cell
        assert f"{run.name} " in printed
    assert {run.path.name for _, run in cells} >= {"ensemble=4,sampler.steps=1", "image_size=[192,256]"}

    # Finished cells are not evaluated again.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/parts/*")}
    assert ablate(place, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/parts/*")} == before

    page = tmp_path / "page.html"
    assert main(["report", str(out), "--resamples", "20", "--out", str(page)]) == 0
    parsed = Strict(page.read_text())
    words = [word.strip() for word in parsed.words]
    for title in ("AP in percent", "seconds per image"):
        for key in ("ensemble", "sampler.steps", "image_size"):
            assert f"{title} against {key}" in words
    values = {round(100 * run.metrics["ap"], 1) for _, run in cells}
    assert len(values) > 1
    rows = {row[0]: row for row in parsed.rows}
    for _, run in cells:
        assert rows[run.name][1].startswith(f"{100 * run.metrics['ap']:.1f} [")


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_ready_grids_fit_the_settings(path):
    grid = read_grid(path)
    assert grid.title
    assert len(grid.cells) > 1
    made = [
        method_spec("ocdit", preset=grid.preset, overrides=overrides_of({**grid.settings, **cell})).settings
        for cell in grid.cells
    ]
    assert len(set(map(repr, made))) == len(made), "each cell is another setting"


def test_there_are_ready_grids():
    assert {path.stem for path in READY} == {"steps", "ensemble", "resolution", "refine", "paper_figure6c"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"grids": [{"ensemble": 4}]}, r"grids\.0\.ensemble: 4 must be a list"),
        ({"grids": []}, "no values to try"),
        ({"title": "x"}, "grids: missing"),
        ({"grid": [{}]}, "grid: unknown setting; did you mean 'grids'"),
    ],
)
def test_invalid_grids_are_refused(content, reason):
    with pytest.raises(ConfigError, match=reason):
        build(Grid, content)


def test_an_invalid_cell_is_refused_before_anything_is_evaluated(place, tmp_path, capsys):
    grid = {"grids": [{"ensemble": [1]}, {"ensembel": [2]}]}
    (place / "invalid.yaml").write_text(json.dumps(grid))
    assert ablate(place, tmp_path / "out", config="invalid.yaml") == 2
    assert "ensembel: unknown setting; did you mean 'ensemble'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
