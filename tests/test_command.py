"""What all commands share: errors in a line, the device, the count of skipped images."""

import pytest
import torch

from eval import baselines, run
from eval.command import add_device, exit_code, file_to_write, one_line_errors, parser
from hybridflow.errors import HybridFlowError


def test_an_error_is_one_line_and_the_code_2(capsys):
    @one_line_errors
    def command(error: Exception | None = None) -> int:
        if error:
            raise error
        return 0

    assert [command(), command(HybridFlowError("mend it")), command(OSError("full"))] == [0, 2, 2]
    assert capsys.readouterr().err == "error: mend it\nerror: full\n"


@pytest.mark.parametrize("command", [run.main, baselines.main])
@pytest.mark.parametrize("folders", [["--data", "", "-o", "out"], ["--data", "in", "-o", ""]])
def test_an_empty_name_is_not_the_current_folder(command, folders, capsys):
    with pytest.raises(SystemExit):
        command(folders)
    assert "the name is empty: give a file or a folder" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    commands = parser("command", "A command.")
    add_device(commands)
    assert commands.parse_args([]).device == "cpu"
    for device in ("cuda", "tpu"):
        with pytest.raises(SystemExit):
            commands.parse_args(["--device", device])
    errors = capsys.readouterr().err
    assert "no GPU here" in errors and "'tpu': choose cpu or cuda" in errors


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, capsys):
    commands = parser("command", "A command.")
    commands.add_argument("-o", type=file_to_write)
    assert commands.parse_args(["-o", str(tmp_path / "file")]).o == tmp_path / "file"
    with pytest.raises(SystemExit):
        commands.parse_args(["-o", str(tmp_path)])
    assert "is a folder: name a file in it" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        commands.parse_args(["-o", str(tmp_path / "file" / "in.json")])
    assert "cannot write" in capsys.readouterr().err


def test_skipped_images_are_counted_in_the_code(capsys):
    assert [exit_code(3, 3), exit_code(3, 1)] == [0, 1]
    assert capsys.readouterr().err == "skipped 2 of 3 images: they could not be read\n"
