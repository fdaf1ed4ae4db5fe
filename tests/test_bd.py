"""Bjontegaard deltas of curves whose distance is known."""

import json
import math
from pathlib import Path

import pytest

from eval.bd import delta, delta_rows, find_curve, increasing, main, overlap
from eval.result_files import CurveResult
from hybridflow.errors import HybridFlowError

RATES = [0.01, 0.02, 0.04, 0.08]


def curve(rates, psnr=None, lpips=None, name="a") -> CurveResult:
    results = {"bpp": rates}
    results |= {"psnr-rgb": [psnr(rate) for rate in rates]} if psnr else {}
    results |= {"lpips-alex": [lpips(rate) for rate in rates]} if lpips else {}
    return CurveResult(name, name, "", results)


def test_half_the_rate_at_equal_quality():
    anchor = curve(RATES, lambda rate: 30 + 3 * math.log2(rate), lambda rate: -0.1 * math.log2(rate))
    test = curve(RATES, lambda rate: 33 + 3 * math.log2(rate), lambda rate: -0.1 - 0.1 * math.log2(rate))
    psnr, lpips = delta(anchor, test, "psnr-rgb"), delta(anchor, test, "lpips-alex")
    assert psnr.rate == pytest.approx(-50, abs=0.1) and psnr.metric == pytest.approx(3)
    assert lpips.rate == pytest.approx(-50, abs=0.1) and lpips.metric == pytest.approx(-0.1)
    assert psnr.metric_overlap == 1 and psnr.rate_overlap == pytest.approx(0.5)


def test_only_the_common_range_counts():
    anchor, test = curve(RATES[1:], math.log2), curve(RATES[:-1], lambda rate: math.log2(rate) + 1)
    assert delta(anchor, test, "psnr-rgb").metric == pytest.approx(1)
    assert delta(anchor, test, "psnr-rgb").metric_overlap == pytest.approx(1 / 3)


def test_nothing_in_common_is_no_number():
    found = delta(curve([0.1, 0.2], lambda rate: rate), curve([0.01, 0.02], lambda rate: rate + 50), "psnr-rgb")
    assert found == (None, 0, None, 0)


def test_overlap_is_of_both_ranges():
    assert overlap([0, 2], [1, 4]) == 0.25 and overlap([0, 1], [2, 3]) == 0 and overlap([1, 1], [1, 1]) == 0


def test_points_that_do_not_rise_are_left_out():
    found = CurveResult("a", "a", "", {"bpp": [1, 2, 2, 3], "lpips-alex": [0.5, 0.6, 0.4, 0.3]})
    assert increasing(found, "lpips-alex") == ([1, 2, 3], [-0.5, -0.4, -0.3])
    found.results["lpips-alex"][1] = 0.45
    assert increasing(found, "lpips-alex") == ([1, 2, 3], [-0.5, -0.45, -0.3])


def test_the_command_says_the_overlap(tmp_path, capsys):
    for name, offset in (("anchor", 0), ("test", 1)):
        results = curve(RATES, lambda rate: 30 + offset + 3 * math.log2(rate)).results
        content = {"name": name, "description": "", "results": results}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / f"{name}.json") for name in ("anchor", "test")]
    assert main(paths) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split() == ["test", "psnr-rgb", "-20.6", "%", "80%", "+1.0000", "100%"]
    assert main([*paths, "--metrics", "dists"]) == 2
    assert "dists is not in both" in capsys.readouterr().err
    (tmp_path / "test.json").write_text(json.dumps(content | {"description": "photos, 3 images"}))
    assert main(paths) == 2
    assert "a folder of their own" in capsys.readouterr().err


def test_a_curve_of_one_point_says_so_and_stops_no_other():
    anchor, point = curve(RATES, math.log2), curve(RATES[:1], math.log2, name="point")
    rows = delta_rows(anchor, [point, curve(RATES, math.log2)])
    assert [row[2] for row in rows] == ["too few points", "+0.0 %"]
    with pytest.raises(HybridFlowError, match="no two points"):
        delta(anchor, point, "psnr-rgb")


def test_a_published_codec_is_an_anchor(tmp_path, capsys):
    path = str(tmp_path / "test.json")

    def write(description):
        results = curve([0.0165, 0.0245, 0.0355], lpips=lambda rate: 0.2 - rate).results
        Path(path).write_text(json.dumps({"name": "test", "description": description, "results": results}))

    write("Kodak, 24 images, SHA-256 checked; model")
    assert main(["OneDC", path]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Against OneDC:") and "lpips-alex" in printed and "psnr-rgb" not in printed
    write("Kodak-dark, 24 images; model")
    assert main(["OneDC", path]) == 2
    assert "test is of Kodak-dark, 24 images: compare published" in capsys.readouterr().err
    assert main([path, path]) == 0
    with pytest.raises(HybridFlowError, match="TwoDC is neither .* OneDC"):
        find_curve("TwoDC")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"results": {"bpp": []}}', '{"name": "a", "description": "", "results": 1}']
)
def test_another_json_is_one_line_of_error(content, tmp_path, capsys):
    (tmp_path / "other.json").write_text(content)
    assert main([str(tmp_path / "other.json")] * 2) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "other.json is no curve" in error and error.count("\n") == 1
