import json

import pytest
import torch

from ocdit_core import cli
from ocdit_core.inference.benchmark import flop_counter
from ocdit_core.inference.network import PackedLinear, can_pack


def test_benchmark_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    arguments = ["--objects", "1", "2", "--ensembles", "1", "2", "--image-sizes", "64x96", "--repeats", "1"]
    # How much there is to refine depends on what is found, not on the case alone.
    settings = ["--set", "sampler.steps=2", "--set", "refine.enabled=false"]
    assert cli.main(["benchmark", *arguments, "--json", str(figures), "--plot", str(chart), *settings]) == 0
    header, titles, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("model ocdit-small, precision float32, device ")
    assert titles.split()[:3] == ["objects", "ensemble", "size"]
    assert [row.split()[:3] for row in rows] == [[objects, ensemble, "64x96"] for ensemble in "12" for objects in "12"]
    found = json.loads(figures.read_text())
    assert found["machine"]["evaluations"] == 3
    one, two, _, ensemble = found["cases"]
    for case in found["cases"]:
        assert {"backbone", "sampling", "decoding", "instances", "total"} <= set(case["stages"])
        assert sum(case["stages"].values()) <= 2.01 * case["stages"]["total"]
        assert case["encoding"] > 0
        assert 0 < case["floor"] < case["stages"]["total"]
    # Every object and every member adds its own arithmetic.
    assert one["tflop"] < two["tflop"] < ensemble["tflop"] < 2 * two["tflop"] + 1
    assert chart.stat().st_size > 5000


def test_a_given_peak_rate_is_used(capsys):
    arguments = ["--objects", "1", "--ensembles", "1", "--image-sizes", "64x96", "--repeats", "1"]
    assert cli.main(["benchmark", *arguments, "--peak-tflops", "2"]) == 0
    header, _, _ = capsys.readouterr().out.splitlines()
    assert "peak_tflops 2.0" in header


def test_all_arithmetic_is_counted():
    q, weight = torch.randn(1, 4, 100, 32), torch.randn(8, 32)
    with torch.inference_mode(), flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        torch.nn.functional.linear(q, weight)
    assert counter.get_total_flops() == 4 * 4 * 100 * 100 * 32 + 2 * 400 * 32 * 8


@pytest.mark.skipif(not can_pack(), reason="this processor or this torch has no packed layers of oneDNN")
def test_packed_layers_count_as_any_others():
    layer = PackedLinear(torch.nn.Linear(32, 48))
    with torch.inference_mode(), flop_counter() as counter:
        layer(torch.rand(2, 5, 32))
        layer.rows(torch.rand(5, 32), 0, 16)
    assert counter.get_total_flops() == 2 * 10 * 32 * 48 + 2 * 5 * 32 * 16


def test_sizes_that_are_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--image-sizes", "100x100"])
    assert "100x100 is not HEIGHTxWIDTH, both multiples of 16" in capsys.readouterr().err
