"""The command line: the whole way there and back, and one line of error with no output for all that can go wrong."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import hybridflow
from hybridflow.cli import TRAINING, _parser, main
from hybridflow.codec import Codec
from hybridflow.container import unpack
from hybridflow.errors import HybridFlowError
from hybridflow.image_io import read_image
from hybridflow.masking import SCHEDULES
from hybridflow.training.config import SETTINGS
from hybridflow.weights import weight_file

SIZE = (70, 45)


def picture(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture
def run(checkpoint_path):
    """Calls a command on the test's checkpoint and returns its exit code."""
    return lambda command, *args: main([command, "--checkpoint", str(checkpoint_path), *map(str, args)])


@pytest.fixture
def photo(tmp_path):
    picture().save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


@pytest.fixture
def encoded(run, photo):
    """photo.hf beside photo.jpg."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert run("encode", photo, "--schedule", "1_4") == 0
    return photo.with_suffix(".hf")


def the_error(capsys):
    """The one line on standard error, nothing being on standard output."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("hybridflow: error: "), (out, err)
    return err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def feed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


# --- there and back -------------------------------------------------------------------------------------------------


def test_photo_to_bytes_and_back(run, photo, capsys):
    assert run("encode", photo, "--quality", 20, "--schedule", "1_9") == 0
    file = photo.with_suffix(".hf")
    size = file.stat().st_size
    bpp = 8 * size / (SIZE[0] * SIZE[1])
    assert capsys.readouterr().out == f"{file}: {size} bytes, {bpp:.4f} bpp, quality 20, schedule 1_9\n"
    header, _ = unpack(file.read_bytes())
    assert (header.width, header.height, header.quality, header.schedule) == (*SIZE, 20, "1_9")

    assert run("decode", file) == 0
    assert capsys.readouterr().out == f"{photo.with_suffix('.png')}: 70 x 45\n"
    assert read_image(photo.with_suffix(".png")).size == SIZE
    assert names(photo.parent) == ["photo.hf", "photo.jpg", "photo.png"]


def test_standard_streams(run, photo, encoded, capsysbinary, monkeypatch):
    feed(monkeypatch, photo.read_bytes())
    assert run("encode", "-", "--schedule", "1_4") == 0
    data, told = capsysbinary.readouterr()
    assert data == encoded.read_bytes() and told.startswith(b"-: ")

    feed(monkeypatch, data)
    assert run("decode", "-") == 0
    decoded = read_image(capsysbinary.readouterr().out)
    assert run("decode", encoded, "-o", "-") == 0
    assert read_image(capsysbinary.readouterr().out) == decoded

    feed(monkeypatch, data)
    assert run("decode", "-", "-o", photo.parent / "from-stdin.png") == 0
    assert read_image(photo.parent / "from-stdin.png") == decoded


def test_a_rate_is_a_limit(run, photo, tmp_path):
    for i, (option, limit) in enumerate([("--bytes", 100000), ("--bpp", 200)]):
        assert run("encode", photo, option, limit, "-o", tmp_path / f"{i}.hf") == 0
    assert (tmp_path / "0.hf").read_bytes() == (tmp_path / "1.hf").read_bytes()


def test_a_rate_that_no_file_meets(run, photo, capsys):
    assert run("encode", photo, "--bytes", 3) == 1
    the_error(capsys)
    assert names(photo.parent) == ["photo.jpg"]


def test_a_folder_with_a_bad_file_in_it(run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(1).save(photos / "a.png")
    (photos / "b.jpg").write_text("not a photo")
    picture(2).save(photos / "c.webp")
    for name in ("notes.txt", "paper.pdf", "._a.png"):
        (photos / name).write_text("left alone")
    (photos / "folder.jpg").mkdir()

    assert run("encode", photos, "-o", tmp_path / "packed") == 1
    out, err = capsys.readouterr()
    assert names(tmp_path / "packed") == ["a.hf", "c.hf"] and out.count("\n") == 2
    assert f"hybridflow: error: {photos / 'b.jpg'}: " in err and "Traceback" not in err

    assert run("decode", tmp_path / "packed", "-o", f"{tmp_path}/unpacked/") == 0
    assert names(tmp_path / "unpacked") == ["a.png", "c.png"]
    assert run("decode", tmp_path / "packed") == 0
    assert names(tmp_path / "packed") == ["a.hf", "a.png", "c.hf", "c.png"]


def test_what_cannot_be_looked_at_is_told_and_the_others_go_on(run, photo, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "looped.png").symlink_to("looped.png")
    picture(1).save(photos / "seen.png")
    assert run("encode", photos, "x" * 300 + ".png", "-o", f"{tmp_path}/packed/") == 1
    assert names(tmp_path / "packed") == ["seen.hf"]
    err = capsys.readouterr().err
    assert err.count("check the path") == 2 and all(name in err for name in ("gone.png: ", "looped.png: ", "xxx.png: "))
    assert run("encode", photo, "-o", f"{photo}/out/") == 1
    assert "choose another folder" in the_error(capsys)


def test_output_formats_follow_the_name(run, encoded, tmp_path, capsys):
    assert run("decode", encoded, "-o", tmp_path / "photo.webp") == 0
    assert (tmp_path / "photo.webp").read_bytes()[8:12] == b"WEBP"
    (tmp_path / "sub").mkdir()
    assert run("decode", encoded, "-o", tmp_path / "sub") == 0
    assert names(tmp_path / "sub") == ["photo.png"]
    capsys.readouterr()
    assert run("decode", encoded, "-o", tmp_path / "photo.xyz") == 1
    assert ".png" in the_error(capsys)


def test_transparency_is_told(run, tmp_path, capsys):
    Image.new("RGBA", (16, 16), (255, 0, 0, 100)).save(tmp_path / "glass.png")
    assert run("encode", tmp_path / "glass.png") == 0
    err = capsys.readouterr().err
    assert err.startswith(f"hybridflow: warning: {tmp_path / 'glass.png'}: ") and "transparency" in err


def test_info(run, encoded, capsys, monkeypatch):
    assert run("info", "--json", encoded) == 0
    facts = json.loads(capsys.readouterr().out)
    feed(monkeypatch, encoded.read_bytes())
    assert run("info", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == facts | {"name": "-"}
    size = encoded.stat().st_size
    assert (facts["name"], facts["width"], facts["height"]) == (str(encoded), *SIZE)
    assert facts["bytes"] == size and facts["bpp"] == pytest.approx(8 * size / (70 * 45))
    assert facts["schedule"] == "1_4" and len(bytes.fromhex(facts["model_id"])) == 3
    assert {"header", "z", "y", "indices"} <= set(facts["sections"])
    assert sum(facts["sections"].values()) == pytest.approx(size, abs=1.01)

    assert run("info", encoded) == 0
    table = capsys.readouterr().out
    for word in ("70 x 45", "1_4", facts["model_id"], "indices", "100.0%"):
        assert word in table


def test_compare(run, photo, encoded, tmp_path, capsys):
    assert run("compare", photo, encoded, "-o", tmp_path / "side.png") == 0
    line = capsys.readouterr().out
    bpp, psnr, lpips = map(float, re.search(r", ([\d.]+) bpp, PSNR ([\d.]+) dB, LPIPS ([\d.]+)\n", line).groups())
    assert bpp == pytest.approx(8 * encoded.stat().st_size / (70 * 45), abs=1e-4) and psnr > 0 and lpips > 0
    side = read_image(tmp_path / "side.png")
    assert side.width > 2 * SIZE[0] and side.height > SIZE[1]
    assert side.crop((8, 8, 8 + SIZE[0], 8 + SIZE[1])) == read_image(photo)

    run("decode", encoded)
    capsys.readouterr()
    assert run("compare", photo, photo.with_suffix(".png")) == 0
    assert f"PSNR {psnr:.2f} dB, LPIPS {lpips:.4f}" in capsys.readouterr().out


def test_figures_of_a_sheet_that_cannot_be_written_are_told(run, photo, encoded, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hybridflow.cli.write_image", lambda *_, **__: 1 / 0)
    assert run("compare", photo, encoded, "-o", tmp_path / "side.png") == 1
    out, err = capsys.readouterr()
    assert "bpp, PSNR" in out and "ZeroDivisionError" in err


def test_compare_reads_by_either_decoder(run, photo, encoded, perceptual_checkpoint_path, capsys):
    for decoder in ("fidelity", "perceptual"):
        options = ["--checkpoint", str(perceptual_checkpoint_path), "--decoder", decoder]
        assert main(["compare", *options, str(photo), str(encoded)]) == 0
    fidelity, perceptual = capsys.readouterr().out.splitlines()
    assert "bpp" in fidelity and fidelity != perceptual.partition(", texture is invented")[0] != perceptual


def test_compare_refuses_an_empty_name(run, photo, encoded, capsys):
    with pytest.raises(SystemExit) as ended:
        run("compare", photo, encoded, "-o", "")
    assert ended.value.code == 2 and "-o has an empty name" in capsys.readouterr().err


def test_standard_input_serves_once(run, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run("compare", "-", "-")
    assert ended.value.code == 2 and "can be one of the two only" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)  # as it is where a shell has closed it
    assert run("encode", "-", "-o", tmp_path / "a.hf") == 1
    assert "there is no standard input: name a file" in the_error(capsys)


@pytest.mark.parametrize("arguments", [["split", "a", "--out", ""], ["freeze", "a", "--data", ""]])
def test_an_empty_name_is_not_the_current_folder(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "the name is empty: give a file or a folder" in capsys.readouterr().err


def test_options_reach_the_codec(run, photo, encoded, tmp_path, monkeypatch):
    asked = []
    encode, decode, load = Codec.encode, Codec.decode, hybridflow.load
    monkeypatch.setattr(Codec, "encode", lambda *args, **options: asked.append(options) or encode(args[0], args[1]))
    monkeypatch.setattr(Codec, "decode", lambda *args, **options: asked.append(options) or decode(*args))
    monkeypatch.setattr(hybridflow, "load", lambda *args, **options: asked.append(options) or load(*args))
    usual = {"quality": None, "bpp": None, "max_bytes": None, "schedule": None, "effort": 0}
    for options, expected in [
        (["encode", photo, "--bpp", "0.5", "--effort", "3"], {"bpp": 0.5, "effort": 3}),
        (["encode", photo, "--bytes", "99", "--schedule", "none"], {"max_bytes": 99, "schedule": "none"}),
        (["encode", photo, "--quality", "7", "--effort", "0"], {"quality": 7}),
        (["decode", encoded, "--preview"], {"preview": True, "salvage": False}),
        (["decode", encoded, "--salvage"], {"preview": False, "salvage": True}),
    ]:
        asked.clear()
        assert run(*options, "--force", "-o", tmp_path / ("out.hf" if options[0] == "encode" else "out.png")) == 0
        loaded, given = asked
        assert loaded == {"device": "cpu", "decoder": "fidelity"}
        assert given == ((usual | expected) if options[0] == "encode" else expected)


def test_the_limit_that_is_given_binds(run, photo, capsys):
    def size(*options):
        assert run("encode", photo, *options, "--force") == 0
        return int(re.search(r"(\d+) bytes", capsys.readouterr().out)[1])

    largest, smallest = (size("--quality", quality, "--schedule", "none") for quality in (63, 0))
    middle = (largest + smallest) // 2
    assert smallest < middle < largest == size("--bytes", largest)
    assert size("--bytes", middle) <= middle and size("--bpp", 8 * middle / (SIZE[0] * SIZE[1])) <= middle


def test_a_checkpoint_may_be_named_as_a_preset(photo, capsys):
    (photo.parent / "current").symlink_to(weight_file("tiny.safetensors"))  # a file whose name has no suffix
    made = []
    for option, name in (("--checkpoint", "tiny"), ("--preset", "tiny"), ("--checkpoint", photo.parent / "current")):
        assert main(["encode", str(photo), option, str(name), "--force"]) == 0
        made.append(photo.with_suffix(".hf").read_bytes())
    assert made[0] == made[1] == made[2]


def test_compare_refuses_another_size(run, photo, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    assert run("compare", photo, tmp_path / "small.png", "-o", tmp_path / "side.png") == 1
    assert "size" in the_error(capsys) and not (tmp_path / "side.png").exists()


def test_preview_and_salvage_take_what_is_left(run, encoded, tmp_path, capsys):
    cut = tmp_path / "cut.hf"
    cut.write_bytes(encoded.read_bytes()[:-2])
    assert run("decode", cut) == 1
    assert "--salvage" in the_error(capsys) and not (tmp_path / "cut.png").exists()
    for option in ("--preview", "--salvage"):
        assert run("decode", cut, option, "--force") == 0
        assert f"warning: {cut}: the file is cut or damaged" in capsys.readouterr().err
        assert read_image(tmp_path / "cut.png").size == SIZE


def test_the_perceptual_decoder(run, encoded, perceptual_checkpoint_path, capsys):
    target, before = encoded.with_suffix(".png"), names(encoded.parent)
    assert run("decode", encoded, "--decoder", "perceptual") == 1
    error = the_error(capsys)
    assert "small-0-perceptual.safetensors" in error and "hybridflow train perceptual" in error
    assert names(encoded.parent) == before
    decoded = []
    for options in ([], ["--decoder", "fidelity"], ["--decoder", "perceptual"]):
        checkpoint = ["--checkpoint", str(perceptual_checkpoint_path), "--force"]
        assert main(["decode", str(encoded), *checkpoint, *options]) == 0
        decoded.append(target.read_bytes())
    assert decoded[0] == decoded[1] != decoded[2]
    said = capsys.readouterr().out.splitlines()
    assert ["may be wrong" in line for line in said] == [False, False, True]


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"I am a text file.\n", b"", None])
@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_foreign_empty_and_missing_files(run, command, content, tmp_path, capsys):
    file = tmp_path / "file.txt"
    if content is not None:
        file.write_bytes(content)
    before = names(tmp_path)
    assert run(command, file) == 1
    assert str(file) in the_error(capsys)
    assert names(tmp_path) == before


@pytest.mark.parametrize("command", ["decode", "info"])
def test_cut_and_flipped_files(run, command, encoded, tmp_path, capsys):
    data = encoded.read_bytes()
    cuts = [data[:n] for n in (1, 2, 6, len(data) // 2, len(data) - 1)]
    places = (0, 1, 3, 5, 8, len(data) // 2, len(data) - 1)
    flips = [data[:n] + bytes([data[n] ^ 16]) + data[n + 1 :] for n in places]
    for damaged in cuts + flips:
        (tmp_path / "damaged.hf").write_bytes(damaged)
        assert run(command, tmp_path / "damaged.hf") == 1
        assert "damaged.hf: " in the_error(capsys)
    assert names(tmp_path) == ["damaged.hf", "photo.hf", "photo.jpg"]


@pytest.mark.parametrize("command", [("decode",), ("info",), ("compare", "photo.jpg")])
def test_damage_to_the_models_id_or_the_sides_is_told_as_damage(command, encoded, capsys, monkeypatch):
    monkeypatch.chdir(encoded.parent)
    data = encoded.read_bytes()
    for place in range(2, 8):  # model id, width, height
        (encoded.parent / "damaged.hf").write_bytes(data[:place] + bytes([data[place] ^ 129]) + data[place + 1 :])
        assert main([*command, "damaged.hf"]) == 1
        assert "cut or damaged" in the_error(capsys)


def test_another_checkpoint(encoded, other_checkpoint_path, capsys):
    before = names(encoded.parent)
    for command in ("decode", "info"):
        assert main([command, str(encoded), "--checkpoint", str(other_checkpoint_path)]) == 1
        the_error(capsys)
    assert names(encoded.parent) == before


def test_a_checkpoint_that_is_not_shipped_is_asked_for(encoded, monkeypatch, capsys):
    monkeypatch.setattr(hybridflow, "load", lambda *_, **__: pytest.fail("loads what cannot read it"))
    for command in ("decode", "info"):
        assert main([command, str(encoded)]) == 1
        assert "not shipped" in the_error(capsys)


def test_files_are_read_by_the_shipped_weights_that_made_them(photo, tmp_path, capsys):
    for preset in ("tiny", "base"):
        assert main(["encode", str(photo), "--preset", preset, "-o", f"{tmp_path}/{preset}/"]) == 0
    files = [str(tmp_path / preset / "photo.hf") for preset in ("tiny", "base")]
    capsys.readouterr()
    assert main(["info", *files]) == 0
    assert re.findall(r"\((\w+)\)", capsys.readouterr().out) == ["tiny", "base"]
    assert main(["decode", files[0]]) == 0 and main(["compare", str(photo), files[0]]) == 0
    assert main(["decode", files[0], "--preset", "base", "--force"]) == 1
    assert "choose preset tiny" in capsys.readouterr().err


def test_ctrl_c_while_commands_are_imported_is_no_traceback(monkeypatch):
    def interrupted(with_training):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybridflow.cli._parser", interrupted)
    assert main(["train", "joint"]) == 130


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"hybridflow {hybridflow.__version__}\n"


def test_a_warning_is_a_line_without_ours(run, encoded, monkeypatch):
    before, shown = warnings.formatwarning, []
    monkeypatch.setattr(Codec, "info", lambda *_: shown.append(warnings.formatwarning) or 1 / 0)
    assert run("info", encoded) == 1 and warnings.formatwarning is before
    assert shown[0]("no photo\nat all", UserWarning, "data.py", 7, "warn()") == "hybridflow: warning: no photo\n"


def test_a_closed_standard_output_is_one_error(run, encoded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert run("decode", encoded, "-o", "-") == 1
    assert "there is no standard output: name a file by -o" in capsys.readouterr().err


def test_an_output_that_takes_parts_gets_all_of_them(run, encoded, monkeypatch, capsys):
    taken = []

    class Short:
        """As an unbuffered file may."""

        def write(self, data):
            taken.append(bytes(data[:7]))
            return len(taken[-1])

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=Short(), flush=lambda: None))
    assert run("decode", encoded, "-o", "-") == 0
    assert Image.open(io.BytesIO(b"".join(taken))).size == SIZE


def test_a_reader_that_has_enough_is_no_error(encoded, checkpoint_path):
    """Whether each line is written at once, as PYTHONUNBUFFERED has it, or all of them at the end."""
    info = ["info", "--checkpoint", str(checkpoint_path), *[str(encoded)] * 2]
    for arguments, unbuffered in ((info, "1"), (info, ""), (["--version"], "")):
        command = [sys.executable, "-m", "hybridflow", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert process.stderr.read() == b"" and process.wait() == 1, arguments


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_standard_output_is_one_error(encoded, checkpoint_path):
    model = ["--checkpoint", str(checkpoint_path)]
    info, decode = ["info", *model, str(encoded)], ["decode", *model, str(encoded), "-o", "-"]
    for arguments, unbuffered in ((info, ""), (info, "1"), (decode, ""), (decode, "1"), (["--version"], "")):
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "hybridflow", *arguments]
            environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
            done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1 and b"cannot write standard output (No space left on device): choose" in line


def test_a_name_that_is_no_text_is_printed_as_it_is(encoded, checkpoint_path, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.hf"
    os.rename(encoded, name)
    command = [sys.executable, "-m", "hybridflow", "decode", "--checkpoint", str(checkpoint_path), name]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    assert b"caf\xe9.png: 70 x 45" in done.stdout and os.path.exists(name[:-3] + b".png")


def test_a_name_that_the_terminal_cannot_show_is_printed_escaped(encoded, checkpoint_path, tmp_path):
    encoded.rename(tmp_path / "\u65e5\u672c.hf")
    command = [sys.executable, "-m", "hybridflow", "decode", "--checkpoint", str(checkpoint_path), str(tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    assert rb"\u65e5\u672c.png: 70 x 45" in done.stdout


def test_what_cannot_be_written_is_refused_before_work(run, photo, encoded, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Codec, "decode", lambda *_, **__: pytest.fail("it was decoded"))
        for name in ("photo.pdfx", "photo.xbm", "photo.wmf", "photo.pgm", "photo"):
            assert run("decode", encoded, "-o", tmp_path / name) == 1
            assert ".png" in the_error(capsys)
        assert run("compare", photo, encoded, "-o", tmp_path / "side.xbm") == 1
        assert ".png" in the_error(capsys)
    assert run("encode", photo, "-o", tmp_path / "nowhere" / "photo.hf") == 1
    assert "no such folder" in the_error(capsys)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert run("encode", photo, "-o", tmp_path / "other.hf") == 1
    assert "read-only" in the_error(capsys)
    assert names(tmp_path) == ["photo.hf", "photo.jpg"]


def test_no_checkpoint(photo, tmp_path, capsys):
    (tmp_path / "text.safetensors").write_text("no weights")
    text = str(tmp_path / "text.safetensors")
    wrong = [("--preset", "enormous"), ("--preset", "")]
    wrong += [("--checkpoint", "missing"), ("--checkpoint", ""), ("--checkpoint", text)]
    for options in wrong:
        assert main(["encode", str(photo), *options]) == 1
        the_error(capsys)
    assert not photo.with_suffix(".hf").exists()


def test_nothing_is_overwritten(run, photo, encoded, tmp_path, capsys):
    before = encoded.read_bytes()
    picture_file = tmp_path / "photo.png"
    picture_file.write_bytes(b"precious")
    for arguments in (["encode", photo], ["decode", encoded], ["compare", photo, encoded, "-o", picture_file]):
        assert run(*arguments) == 1
        assert "--force" in the_error(capsys)
    assert encoded.read_bytes() == before and picture_file.read_bytes() == b"precious"
    assert run("encode", photo, "--force") == 0 and run("decode", encoded, "--force") == 0
    assert read_image(picture_file).size == SIZE


def test_nothing_takes_the_place_of_what_it_is_made_of(run, photo, encoded, tmp_path, capsys):
    (tmp_path / "link.jpg").symlink_to(photo)
    renamed, before = tmp_path / "renamed.png", photo.read_bytes()
    renamed.write_bytes(encoded.read_bytes())
    encodings = [["encode", photo, "-o", target] for target in (photo, tmp_path / "link.jpg")]
    comparisons = [["compare", photo, encoded, "-o", target] for target in (photo, encoded)]
    for arguments in (*encodings, *comparisons, ["decode", renamed]):
        assert run(*arguments, "--force") == 1
        assert "take its place" in the_error(capsys)
    assert photo.read_bytes() == before and renamed.read_bytes() == encoded.read_bytes()
    picture().save(tmp_path / "other.png")
    before = (tmp_path / "other.png").read_bytes()
    assert run("encode", photo, "-o", tmp_path / "other.png", "--force") == 1
    assert "other.png is the name of a picture" in the_error(capsys)
    assert (tmp_path / "other.png").read_bytes() == before
    assert run("decode", tmp_path / "other.png") == 1
    assert "not an .hf file" in the_error(capsys)


def test_two_inputs_of_one_output(run, tmp_path, capsys):
    for name in ("photo.png", "photo.webp"):
        picture().save(tmp_path / name)
    assert run("encode", tmp_path) == 1
    assert "photo.hf" in the_error(capsys) and names(tmp_path) == ["photo.png", "photo.webp"]
    (tmp_path / "folder").mkdir()
    twins = tmp_path / "photo.png", tmp_path / "folder" / ".." / "photo.webp"
    assert run("encode", *twins, "-o", tmp_path / "new" / "folder") == 1
    assert "photo.hf" in the_error(capsys) and not (tmp_path / "new").exists()
    assert run("encode", *twins) == 1
    assert "photo.hf" in the_error(capsys) and names(tmp_path) == ["folder", "photo.png", "photo.webp"]


def test_an_empty_folder(run, tmp_path, capsys):
    assert run("encode", tmp_path) == 1
    assert str(tmp_path) in the_error(capsys)


@pytest.mark.parametrize(
    "options",
    [
        ["--quality", "64"],
        ["--quality", "-1"],
        ["--quality", "good"],
        ["--bpp", "0"],
        ["--bpp", "nan"],
        ["--bytes", "1.5"],
        ["--schedule", "half"],
        ["--bpp", "0.1", "--quality", "3"],
        ["--bpp", "0.1", "--bytes", "300"],
        ["--preset", "tiny", "--checkpoint", "file"],
        ["--device", "abacus"],
        ["--decoder", "perceptual"],
        [""],
        ["-o", ""],
        ["other.jpg", "-o", "-"],
        ["other.jpg", "-o", "both.hf"],
        ["other.jpg", "-o", "both.png"],
        ["-"],
    ],
)
def test_wrong_usage(photo, options, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["encode", str(photo), *options])
    assert leaving.value.code == 2 and "error: " in capsys.readouterr().err
    assert names(photo.parent) == ["photo.jpg"]


def test_debugging_shows_the_traceback(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDFLOW_DEBUG", "1")
    with pytest.raises(HybridFlowError):
        run("encode", tmp_path / "missing.png")


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["encode", "decode", "info", "compare"])
def test_help_teaches_by_examples(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert leaving.value.code == 0 and f"examples:\n  hybridflow {command} " in text
    if command == "encode":
        assert all(name in text for name in SCHEDULES)


def test_every_argument_of_every_command_is_explained():
    (commands,) = (action for action in _parser(with_training=True)._actions if action.dest == "command")
    assert {"encode", "decode", "info", "compare", *TRAINING} == set(commands.choices)
    for name, parser in commands.choices.items():
        assert f"  hybridflow {name} " in parser.epilog and "example" in parser.epilog
        assert max(map(len, (parser.description + "\n" + parser.epilog).splitlines())) <= 120, name
        assert [action.dest for action in parser._actions if not action.help] == [], name
    assert all(key in commands.choices["train"].epilog for key in SETTINGS)


def test_help_and_foreign_files_need_no_torch(tmp_path):
    (tmp_path / "text.hf").write_text("some text")
    script = (
        "import sys; from hybridflow.cli import main; code = main(['info', sys.argv[1]]);"
        "sys.exit(code if 'torch' not in sys.modules else 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "text.hf"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"hybridflow: error: .*text\.hf: this is not an \.hf file: [^\n]*\n", done.stderr)
