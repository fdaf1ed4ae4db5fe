"""The claims, on curves whose differences are known."""

import json

import pytest

from eval.claims import claim_rows, main
from eval.equal_rates import at_rate, common_rates
from eval.result_files import CurveResult, read_curves
from hybridflow.errors import HybridFlowError


def curve(key, rates, psnr, lpips):
    return CurveResult(key, key, "", {"bpp": rates, "psnr-rgb": psnr, "lpips-alex": lpips})


WHOLE = curve("tiny", [0.01, 0.04], [22, 24], [0.4, 0.2])


def test_between_points_figures_are_linear_in_log_bpp():
    assert at_rate(0.02, *WHOLE.points("psnr-rgb")) == pytest.approx(23)
    assert at_rate(0.02, *WHOLE.points("lpips-alex")) == pytest.approx(0.3)


def test_rates_are_those_of_both():
    assert common_rates([0.01, 0.04], [0.0025, 0.02], 3) == pytest.approx([0.01, 0.02**0.5 / 10, 0.02])
    assert common_rates([0.01, 0.04], [0.1, 0.2], 3) == []


@pytest.mark.parametrize(
    "ending, psnr, lpips, holds",
    [
        ("-codebook-only", 3.5, 1.0, True),
        ("-codebook-only", 3.5, 1.01, False),
        ("-codebook-only", 3.4, 0.5, False),
        ("-continuous-mse", -2.0, 0.44, True),
        ("-continuous-mse", 2.0, 0.45, False),
        ("-continuous-only", -0.09, 0.89, True),
        ("-continuous-only", -0.11, 0.89, False),
        ("-continuous-only", 0.0, 0.91, False),
    ],
)
def test_a_claim_holds_or_not(ending, psnr, lpips, holds):
    figures = WHOLE.results
    baseline = curve(
        f"tiny{ending}",
        figures["bpp"],
        [figure - psnr for figure in figures["psnr-rgb"]],
        [figure / lpips for figure in figures["lpips-alex"]],
    )
    rows = claim_rows([WHOLE, baseline])
    assert len(rows) == 3 and {row[-1] for row in rows} == {"yes" if holds else "no"}
    assert {row[5] for row in rows} == {f"{psnr:+.2f}"} and {row[8] for row in rows} == {f"{lpips - 1:+.1%}"}
    assert rows[0][2:5] == ["0.0100", "22.00", f"{22 - psnr:.2f}"]
    assert rows[0][6:8] == ["0.400", f"{0.4 / lpips:.3f}"]


def test_a_curve_without_a_metric_is_one_error():
    baseline = CurveResult("tiny-codebook-only", "", "", {"bpp": [0.01, 0.04], "lpips-alex": [0.5, 0.3]})
    with pytest.raises(HybridFlowError, match="tiny-codebook-only has no psnr-rgb"):
        claim_rows([WHOLE, baseline])


def test_a_baseline_of_other_weights_or_rates_is_one_error():
    baseline = curve("tiny-codebook-only", [0.01, 0.04], [20, 22], [0.5, 0.3])
    whole = WHOLE._replace(made_by="a1 b2 cpu")
    assert len(claim_rows([whole, baseline._replace(made_by="a1 b2 cpu c3")])) == 3
    with pytest.raises(HybridFlowError, match="tiny-codebook-only was measured beside other weights of tiny: measure"):
        claim_rows([whole, baseline._replace(made_by="a1 d4 cpu c3")])
    with pytest.raises(HybridFlowError, match="tiny and tiny-codebook-only have no rates in common"):
        claim_rows([whole, curve("tiny-codebook-only", [0.2, 0.4], [20, 22], [0.5, 0.3])])


def test_curves_know_what_measured_them(tmp_path):
    for key in ("tiny", "vvc"):
        (tmp_path / f"{key}.json").write_text(json.dumps({"name": key, "description": "", "results": WHOLE.results}))
    (tmp_path / "tiny.csv").write_text("curve,made_by\ntiny,a1 b2 cpu\n")
    (tmp_path / "notes.csv").write_text("mine\n1\n")
    assert {curve.key: curve.made_by for curve in read_curves(tmp_path)} == {"tiny": "a1 b2 cpu", "vvc": ""}


def test_without_a_baseline_nothing_can_be_claimed(tmp_path, capsys):
    assert claim_rows([WHOLE, curve("vvc", [0.01, 0.02], [1, 2], [1, 2])]) == []
    (tmp_path / "tiny.json").write_text(json.dumps({"name": "tiny", "description": "", "results": WHOLE.results}))
    assert main([str(tmp_path)]) == 2
    assert "eval.run measures them" in capsys.readouterr().err
