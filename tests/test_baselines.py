"""Classical codecs on a small picture: every one decodes, finer takes more bytes, settings are recorded."""

import json

import pytest
from PIL import Image

from eval import ffmpeg
from eval.baselines import CODECS, Baseline, main
from eval.cost import cost_of
from hybridflow.errors import HybridFlowError
from hybridflow.metrics import psnr


@pytest.fixture
def crop(photos, tmp_path):
    """With odd sides."""
    path = tmp_path / "crop.png"
    with Image.open(photos[0]) as image:
        image.crop((300, 200, 395, 263)).save(path)
    return path


FINER = {"jpeg": 5, "webp": 1, "avif": 22, "jxl": 6, "hevc": 42, "vvc": 43}


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_decodes_and_finer_takes_more(name, crop):
    baseline, original = Baseline(name, (CODECS[name].qualities[0], FINER[name])), Image.open(crop)
    coarse, fine = (baseline.code(crop, point) for point in baseline.points)
    assert coarse.bytes < fine.bytes
    assert coarse.decoded.size == fine.decoded.size == original.size
    assert psnr(original, coarse.decoded) < psnr(original, fine.decoded)
    assert psnr(original, fine.decoded) > 22
    told = cost_of(int)[1].mib is not None
    assert ("encoding_mib" in fine.costs) == (told and name not in ("hevc", "vvc"))


def test_versions_are_known_and_settings_recorded():
    assert all(version[0].isdigit() or version[0] == "n" for version in ffmpeg.versions().values())
    assert "qp=q" in Baseline("hevc", (51,)).description
    assert "quality=q, method=6" in Baseline("webp", (0,)).description


@pytest.mark.parametrize(("codec", "wrong"), [("jpeg", -5), ("webp", 101), ("avif", 200), ("hevc", 52), ("vvc", 64)])
def test_a_quality_that_a_codec_does_not_take_is_refused_before_work(codec, wrong, crop, tmp_path, capsys):
    command = ["--data", str(crop.parent), "--codecs", codec, "--qualities", "40", str(wrong)]
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert f"error: {codec} takes qualities of 0 to " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_stream_is_an_error():
    with pytest.raises(HybridFlowError, match="ffmpeg failed"):
        ffmpeg.decode_vvc(b"no stream", (64, 64))


def test_the_command_writes_a_curve_a_codec(crop, tmp_path):
    command = ["--data", str(crop.parent), "--codecs", "jpeg", "webp", "--qualities", "20", "5"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    for name in ("jpeg", "webp"):
        result = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert result["results"]["point"] == ["5", "20"] and "Pillow" in result["description"]
