"""Curves as they are read back: in order of their rates, or refused in one line."""

import json

import pytest

from eval.result_files import read_curve
from hybridflow.errors import HybridFlowError

CURVE = {"name": "a", "description": "Kodak, 24 images; b", "results": {"bpp": [0.02, 0.01], "psnr-rgb": [24.0, 22.0]}}


def test_points_come_in_order_of_their_rates(tmp_path):
    path = tmp_path / "key.json"
    path.write_text(json.dumps(CURVE))
    curve = read_curve(path)
    assert curve.key == "key" and curve.data == "Kodak, 24 images"
    assert curve.results == {"bpp": [0.01, 0.02], "psnr-rgb": [22.0, 24.0]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"description": None},
        {"results": {"bpp": []}},
        {"results": {"bpp": ["low", 0.02]}},
        {"results": {"bpp": [None, 0.02]}},
        {"results": {"bpp": [0.01, 0.02], "psnr-rgb": [22.0]}},
        {"results": {"bpp": [0.01, 0.02], "psnr-rgb": 22.0}},
        {"results": {"psnr-rgb": [22.0]}},
    ],
)
def test_what_is_not_in_the_schema_is_refused(wrong, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(CURVE | wrong))
    with pytest.raises(HybridFlowError, match="other.json is no curve"):
        read_curve(path)
