"""The report: values as in metrics.json, images that can be decoded, failures by kind."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from small_sets import block, frame, truth, write_library, write_set

from ocdit_core.cli import main
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.writers import write_scene
from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import ResultRow
from ocdit_core.evaluation.charts import line_chart
from ocdit_core.evaluation.comparison import Estimate
from ocdit_core.evaluation.failures import draw_failure, find_failures
from ocdit_core.evaluation.report import PUBLISHED, PUBLISHED_METHODS, write_report
from ocdit_core.evaluation.run import read_run
from ocdit_core.masks import decode_mask, encode_mask

VOID = {"meta", "img", "br"}


class Strict(HTMLParser):
    """Checks that elements are closed in order; keeps tables' cells, addresses and texts."""

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.rows, self.ids, self.links, self.words = [], [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [value for key, value in attrs if key in ("src", "srcset", "data")]
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        assert tag not in ("script", "link", "iframe", "object")
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID, tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_set(folder / "ycbv", 6)
    write_library(folder / "library", ("red", "green", "blue"))
    (folder / "ycbv" / "objects.json").write_text(json.dumps({"objects": {1: "red", 2: "green", 3: "blue"}}))
    dataset = ["--dataset", f"{folder}/ycbv", "--split", "test"]
    method = ["--objects", f"{folder}/library", "--method", "colour"]
    assert main(["evaluate", *dataset, *method, "--out", f"{folder}/good"]) == 0
    # A second run: every mask without its left third.
    rows = json.loads((folder / "good" / "results.json").read_text())
    for row in rows:
        mask = decode_mask(row["segmentation"])
        x, _, width, _ = row["bbox"]
        mask[:, : round(x + width / 3)] = False
        row["segmentation"] = encode_mask(mask)
    (folder / "cut.json").write_text(json.dumps(rows))
    results = ["--results", f"{folder}/cut.json", "--threshold", "0.3"]
    assert main(["evaluate", *dataset, *results, "--out", f"{folder}/cut"]) == 0
    return folder


@pytest.fixture(scope="module")
def html_page(place):
    runs = [str(place / "good"), str(place / "cut")]
    more = [
        "--dataset",
        f"{place}/ycbv",
        "--split",
        "test",
        "--objects",
        f"{place}/library",
        "--images",
        "2",
        "--title",
        "a <b> & c",
    ]
    out = place / "report.html"
    assert main(["report", *runs, *more, "--resamples", "40", "--out", str(out)]) == 0
    return out.read_text()


def test_the_page_is_well_formed_and_loads_nothing(html_page):
    parsed = Strict(html_page)
    assert parsed.addresses
    charts = [address for address in parsed.addresses if address.startswith("data:image/svg+xml;base64,")]
    images = [address for address in parsed.addresses if address.startswith("data:image/webp;base64,")]
    assert len(charts) == 1, "the reliability diagram"
    assert len(charts) + len(images) == len(parsed.addresses)
    assert all(link[1:] in parsed.ids for link in parsed.links)
    assert not re.search(r"https?:|url\(|@import", html_page)
    for address in images:
        image = Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))
        image.load()
        assert image.mode == "RGB"
    assert parsed.words.count("a <b> & c") == 2, "the title, escaped"


def test_values_are_those_of_metrics_json(place, html_page):
    rows = Strict(html_page).rows
    metrics = [json.loads((place / name / "metrics.json").read_text()) for name in ("good", "cut")]
    assert metrics[0]["ap"] != metrics[1]["ap"]
    for title, key in (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AR", "ar")):
        assert [title, *(f"{100 * one[key]:.1f}" for one in metrics)] in rows
    for title, key in (("mean IoU", "mean_iou"), ("F1", "f1"), ("precision", "precision")):
        assert [title, *(f"{100 * one['at_threshold'][key]:.1f}" for one in metrics)] in rows
    by_object = [one["by_object"]["2"] for one in metrics]
    cells = [[f"{100 * one['ap']:.1f}", f"{100 * one['mean_iou']:.1f}", str(one["false_masks"])] for one in by_object]
    assert ["2 green", str(by_object[0]["instances"]), *cells[0], *cells[1]] in rows
    assert ["median", *(f"{one['time']['median']:.3g}" for one in metrics)] in rows
    parts = [one["by_visibility"]["above_90%"] for one in metrics]
    assert ["above 90%", str(parts[0]["instances"]), *(f"{100 * one['ap']:.1f}" for one in parts)] in rows
    assert ["score_threshold", "0.6", "0.3"] in rows
    headline = next(row for row in rows if row[0] == "good" and len(row) > 4)
    assert headline[1].startswith(f"{100 * metrics[0]['ap']:.1f} [")
    for name, value in zip(PUBLISHED_METHODS, PUBLISHED["ycbv"], strict=True):
        assert [f"{name} (published)", f"{value:.1f}"] in [row[:2] for row in rows], "the set is called ycbv"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_reliability_diagram_as_a_file(place, tmp_path, suffix):
    plot, report = tmp_path / f"reliability.{suffix}", str(tmp_path / "report.html")
    assert main(["report", str(place / "good"), "--resamples", "2", "--out", report, "--plot", str(plot)]) == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert plot.read_bytes().startswith(start)
    if suffix == "png":
        image = Image.open(plot)
        assert min(image.size) > 300


def test_a_plot_of_an_unknown_type_is_refused_first(place, tmp_path, capsys):
    more = ["--out", str(tmp_path / "report.html"), "--plot", str(tmp_path / "plot.gif")]
    assert main(["report", str(place / "good"), *more]) == 2
    assert "plot.gif must end in .png, .svg or .pdf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def row_of(image, number, score, mask):
    return ResultRow(
        scene_id=0, image_id=image, category_id=number, score=score, box=None, segmentation=encode_mask(mask), time=-1
    )


def test_each_failure_has_its_kind(tmp_path):
    masks = {1: block(2, 2, 20, 20), 2: block(40, 2, 20, 20), 3: block(2, 35, 20, 20)}
    image = frame(*(truth(number, mask) for number, mask in masks.items()))
    write_scene(tmp_path / "set", "test", 0, [image, image, frame(truth(1, masks[1]))])
    rows = {
        (0, 0): [row_of(0, 1, 0.9, masks[1]), row_of(0, 1, 0.8, block(2, 2, 20, 18)), row_of(0, 3, 0.7, masks[2])],
        (0, 1): [
            row_of(1, 1, 0.9, block(2, 2, 8, 20)), row_of(1, 2, 0.6, block(62, 30, 15, 15)), row_of(1, 3, 0.1, masks[1])
        ],
        (0, 2): [row_of(2, 1, 0.9, masks[1]), row_of(2, 2, 0.95, block(50, 30, 15, 15))],
    }  # fmt: skip
    asked = {(0, 0): {1, 2, 3}, (0, 1): {1, 2}, (0, 2): {1, 2}}
    failures = find_failures(BopFolder(tmp_path / "set", "test"), asked, rows, 0.5)
    found = [(one.kind, one.image[1], one.object_id, one.lies_on) for one in failures]
    assert sorted(found, key=str) == sorted(
        [
            ("duplicate", 0, 1, None),
            ("wrong object", 0, 3, 2),
            ("missed", 0, 2, None),
            ("missed", 0, 3, None),
            ("poor mask", 1, 1, None),
            ("background", 1, 2, None),
            ("missed", 1, 2, None),
            ("false mask", 2, 2, None),
        ],
        key=str,
    )
    scores = [one.score for one in failures if one.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert [one.iou for one in failures if one.kind == "poor mask"] == pytest.approx([0.4])
    poor = next(one for one in failures if one.kind == "poor mask")
    drawn = draw_failure(np.full((64, 96, 3), 90, np.uint8), poor, side=128)
    assert drawn.shape == (128, 128, 3)
    for colour in ((60, 220, 90), (255, 70, 60)):  # ground truth, prediction
        assert (np.abs(drawn.astype(int) - colour).sum(axis=2) < 30).sum() > 40


def test_invalid_reports_are_refused(place, tmp_path, capsys):
    run = read_run(place / "good")
    other = BopFolder(write_set(tmp_path / "other", 6), "test")
    with pytest.raises(DataError, match="is an evaluation of ycbv, not of other"):
        write_report(tmp_path / "page.html", [run], dataset=other, resamples=2)
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "file").write_text("")
    assert main(["report", f"{place}/good", "--resamples", "2", "--out", f"{tmp_path}/file/report.html"]) == 2
    assert "report.html: cannot be written" in capsys.readouterr().err


def test_a_chart_holds_its_lines_and_labels():
    lines = {
        "a & b": [Estimate(value=10.0, low=5.0, high=15.0), None, Estimate(value=40.0, low=35.0, high=45.0)],
        "c": [None, None, None],
    }
    chart = line_chart(["3", "9", "<18"], lines, x_label="steps", y_label="AP")
    texts = {element.text for element in ElementTree.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {"3", "9", "<18", "steps", "AP", "a & b", "c"}
    assert chart == line_chart(["3", "9", "<18"], lines, x_label="steps", y_label="AP"), "equal data, equal files"
