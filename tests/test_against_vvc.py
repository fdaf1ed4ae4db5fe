"""The picture against VVC: the search for its rate, and a real stream where ffmpeg is installed."""

import pytest
from PIL import Image

import hybridflow
from eval.against_vvc import SHOWN, main, part, smallest_from


@pytest.mark.parametrize(("size", "found"), [(1, 1), (30, 30), (31, 32), (64, 64), (65, 64)])
def test_vvc_is_never_smaller_than_ours_if_it_can_be(size, found):
    lengths = [length + length % 2 if length > 30 else length for length in range(64, 0, -1)]
    assert len(smallest_from(lambda qp: bytes(lengths[qp]), size)) == found


def test_what_is_shown_lies_inside():
    image = Image.new("RGB", (768, 600))
    assert part(image, None).size == part(image, 700).size == SHOWN
    assert part(Image.new("RGB", (100, 50)), None).size == (100, 50)


def test_the_command_draws_the_picture(codec, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: codec)
    photo, output = tmp_path / "crop.png", tmp_path / "docs" / "picture.png"
    Image.open(photos[0]).crop((100, 100, 196, 164)).save(photo)
    assert main([str(photo), "--bpp", "2", "-o", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["crop", "VVC", "HybridFlow"]
    assert Image.open(output).width > 3 * 96
