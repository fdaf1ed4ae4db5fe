"""Files are written whole or not at all, and replaced only if that is wanted."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors.torch import save_file

from eval.curves import COLUMNS, Rows
from hybridflow.checkpoint import save_release
from hybridflow.errors import HybridFlowError
from hybridflow.model import HybridFlow
from hybridflow.saving import replace_atomically, require_writable, write_atomic
from hybridflow.training.campaign import Campaign
from hybridflow.training.journal import Journal


def test_nothing_is_replaced_without_force(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"first")
    with pytest.raises(HybridFlowError, match="--force"):
        write_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    write_atomic(path, b"second", force=True)
    assert path.read_bytes() == b"second"


def log_anew(path):
    Journal(path.parent, 0, None, 1)


def rows_anew(path):
    Rows(path).tidy([])


def release_anew(path):
    save_release(path, HybridFlow(SMALL), {})


def ledger_anew(path):
    Campaign("tiny", path.parent.parent, None, 4)._write_ledger()


@pytest.mark.parametrize(
    "name, write, before",
    [
        ("log.jsonl", log_anew, '{"step": 0}\n{"step": 1}\n'),
        ("rows.csv", rows_anew, ",".join(COLUMNS) + "\n"),
        ("small.safetensors", release_anew, "the last release"),
        ("parts/campaign.json", ledger_anew, '{"preset": "tiny", "stages": {}}'),
    ],
)
def test_what_is_written_anew_stays_old_until_it_is_whole(name, write, before, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(before)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_text() == before and [*path.parent.iterdir()] == [path]


def test_links_are_kept_and_not_replaced_without_force(tmp_path):
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    link.symlink_to(target)
    with pytest.raises(HybridFlowError, match="--force"):
        write_atomic(link, b"data")
    write_atomic(link, b"data", force=True)
    assert link.is_symlink() and target.read_bytes() == b"data"


def test_a_name_may_be_as_long_as_names_may_be(tmp_path):
    write_atomic(tmp_path / (85 * "\u6f22"), b"data")
    assert len(os.listdir(tmp_path)) == 1


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(HybridFlowError, match="No space left"):
        write_atomic(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def test_places_that_hold_no_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (
        tmp_path / "no" / "folder", tmp_path, tmp_path / "pipe", tmp_path / "file" / "inside", tmp_path / ("z" * 300)
    ):
        with pytest.raises(HybridFlowError, match="choose another"):
            write_atomic(path, b"data", force=True)


def test_folders_that_cannot_be_written_are_told_before_work(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(tmp_path / "nowhere")
    require_writable(tmp_path / "new" / "deep")
    require_writable(tmp_path)
    assert {*os.listdir(tmp_path)} == {"file", "link"}
    for path in (file, file / "inside", link, Path("/proc/nothing"), tmp_path / ("z" * 300)):
        with pytest.raises(HybridFlowError, match="cannot write .*choose another place"):
            require_writable(path)


def test_the_umask_says_who_may_read(tmp_path):
    path, before = tmp_path / "weights.safetensors", os.umask(0o027)
    try:
        replace_atomically(path, lambda partial: save_file({"a": torch.zeros(1)}, partial))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_where_modes_cannot_be_changed_files_are_written(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    write_atomic(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_what_is_written_is_on_the_disk_before_it_replaces_anything(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    write_atomic(tmp_path / "file", b"data")
    assert calls == ["fsync", "replace", "fsync"]  # the file, then its folder


def test_those_that_write_at_once_do_not_share_their_halves(tmp_path):
    paths = [tmp_path / f"{'holiday' * 6}_{number}.png" for number in range(8)]
    with ThreadPoolExecutor(len(paths)) as threads:
        for turn in range(5):
            list(threads.map(lambda path: write_atomic(path, f"{turn} {path}".encode(), force=True), paths))
            assert [path.read_text() for path in paths] == [f"{turn} {path}" for path in paths]
    assert sorted(tmp_path.iterdir()) == paths


def test_a_folder_that_is_not_to_be_listed_takes_files(tmp_path, monkeypatch):
    open_ = os.open

    def closed(path, *rest):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return open_(path, *rest)

    monkeypatch.setattr(os, "open", closed)
    write_atomic(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"
