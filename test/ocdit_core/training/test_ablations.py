"""The ablations' scripts: one cell from data to figures, and the tables of such results."""

import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from builders import set_options

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "benchmarks" / "ablations"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the interpreter does, but in this process, which has imported PyTorch already."""
    command = [str(SCRIPTS / name), *map(str, arguments)]
    out, error = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", command)
        patch.syspath_prepend(SCRIPTS)
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(command[0], run_name="__main__")
    return subprocess.CompletedProcess(command, ended.value.code, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def results(lab, tmp_path_factory):
    """Two cells of the grid, trained for three steps."""
    folder = tmp_path_factory.mktemp("ablations")
    data = lab.overrides("unused")[:2]
    arguments = ["--out", folder, "--cells", "base", "four_positions", "--seeds", "5", "--groups", "1"]
    done = script("run.py", *arguments, *set_options(["loop.steps=3", *data]))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, (*arguments, *set_options(["loop.steps=3", *data])), done.stdout


def test_a_cell_is_trained_and_measured(results):
    folder, _, said = results
    assert [line.split(":")[0] for line in said.splitlines() if "IoU" in line] == ["base_5", "four_positions_5"]
    record = json.loads((folder / "base_5.json").read_text())
    assert record["settings"]["loop"]["steps"] == 3
    assert (record["cell"], record["seed"]) == ("base", 5)
    averaged, raw = record["figures"]["averaged"], record["figures"]["raw"]
    # lambda(sigma) brings the error of a network that says nothing to about 1 at most.
    assert len(averaged["error"]) == len(record["levels"]) == 7
    assert all(0 < error < 1.5 for error in averaged["error"])
    assert averaged["error"] != raw["error"]
    for task in ("4 targets, interpolate", "8 targets, interpolate"):
        for sampler in ("posterior mean", "Heun"):
            assert 0 <= averaged[task][sampler]["iou"] <= 1
    other = json.loads((folder / "four_positions_5.json").read_text())
    assert other["settings"]["model"]["denoiser"]["max_objects"] == 4
    figures = other["figures"]["averaged"]
    assert figures["8 targets, sequential"] != figures["8 targets, interpolate"]


def test_what_is_done_is_skipped_and_other_settings_are_refused(results):
    folder, arguments, _ = results
    before = (folder / "base_5.json").stat().st_mtime_ns
    again = script("run.py", *arguments)
    assert again.returncode == 0
    assert "IoU" not in again.stdout
    assert (folder / "base_5.json").stat().st_mtime_ns == before
    refused = script("run.py", *arguments, "--set", "loop.learning_rate=0.1")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].endswith("or choose another folder")


def made_up(cell, seed, iou, error):
    figures = {"posterior mean": {"iou": iou, "false_masks": 0.1}, "Heun": {"iou": iou / 2, "false_masks": 0.2}}
    tasks = ("4 targets, interpolate", "8 targets, interpolate", "8 targets, sequential")
    return {
        "cell": cell,
        "seed": seed,
        "groups": 4,
        "levels": [0.1, 10.0],
        "figures": {"averaged": {"error": [error, error], **dict.fromkeys(tasks, figures)}},
        "settings": {"loop": {"steps": 7}, "data": {"sample": {"crops": 2}}},
    }


@pytest.fixture
def written(tmp_path):
    """A base and a cell that is better by about the same in every seed, and one that is not."""
    cells = {"base": (0, 0, 0), "projection": (0.1, 0.11, 0.12), "no_uncertainty": (0.1, -0.1, 0.02)}
    for cell, gains in cells.items():
        for seed, gain in enumerate(gains):
            record = made_up(cell, seed, 0.3 + 0.1 * seed + gain, 0.5 - gain)
            (tmp_path / f"{cell}_{seed}.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- tables -->\nold\n<!-- end of tables -->\n\nThe end.\n")
    return tmp_path


def test_the_tables_pair_runs_of_one_seed(written):
    page = written / "page.md"
    for _ in range(2):
        done = script("table.py", "--results", written, "--page", page, "--chart", "")
        assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- tables -->\n")
    assert text.endswith("<!-- end of tables -->\n\nThe end.\n")
    assert "old" not in text
    assert "9 runs of 7 steps, each measured on 8 images of unseen objects." in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()[::-1]}
    # The spread over the seeds is that of the data, the spread of the differences is not.
    assert rows["base"][3] == "0.400 ± 0.100"
    assert rows["+ projection"][3:5] == ["0.510 ± 0.110", "**+0.110 ± 0.010**"]
    assert rows["no uncertainty weighting (u = 0)"][4] == "+0.007 ± 0.101"
    assert rows["log-normal noise"][1:5] == ["-", "-", "-", "-"]


def test_tables_need_a_base_and_a_page_with_marks(written):
    page = written / "page.md"
    page.write_text("no marks")
    assert "holds no lines '<!-- tables -->'" in script("table.py", "--results", written, "--page", page).stderr
    for path in written.glob("base_*.json"):
        path.unlink()
    done = script("table.py", "--results", written, "--page", page)
    assert done.returncode == 2
    assert "holds no result of the cell base" in done.stderr


def test_the_chart(written):
    pytest.importorskip("matplotlib")
    import cv2

    chart = written / "chart.png"
    done = script("table.py", "--results", written, "--page", written / "page.md", "--chart", chart)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(chart)).std() > 10
