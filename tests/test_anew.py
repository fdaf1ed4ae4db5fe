"""What is measured anew of a checkpoint: what is committed of it, where its baselines are shipped."""

import pytest
import torch

from eval import anew
from eval.result_files import RESULTS, read_curves
from hybridflow.errors import HybridFlowError
from hybridflow.weights import available


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("folder", ["kodak", "cid22val"])
def test_curves_are_those_that_are_committed(name, folder, capsys):
    there = {curve.key: curve.results["point"] for curve in read_curves(RESULTS / folder)}
    there = {key: points for key, points in there.items() if key == name or key.startswith(f"{name}-")}
    found = {curve.name: list(curve.points) for curve in anew.committed(name, folder)}
    told = capsys.readouterr().err
    assert name in found and found == {key: points for key, points in there.items() if key in found}
    for key in there.keys() - found.keys():
        assert "-continuous-" in key and f"{folder}/{key} is left as it is: its baseline is not shipped" in told


@pytest.fixture
def done(monkeypatch, tmp_path):
    """What was called, with which arguments."""
    calls = []
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "tiny.json").write_text('{"tables": {"curves": [{"quality": 63}, {"quality": 0}]}}')
    monkeypatch.setattr(anew, "RESULTS", tmp_path)
    monkeypatch.setattr(anew, "committed", lambda *args: [args])
    monkeypatch.setattr(anew.datasets, "check", lambda *args: calls.append(("check", *args)))
    monkeypatch.setattr(anew, "run", lambda *args: torch.set_num_threads(1) or calls.append(("run", *args)))
    for module in (anew.parts, anew.freezing, anew.readme):
        told = (module.__name__, torch.get_num_threads)
        monkeypatch.setattr(module, "main", lambda args, told=told: calls.append((told[0], told[1](), *args)) or 0)
    return calls


def test_studies_follow_with_as_many_threads_as_before_and_as_they_are_committed(done, tmp_path):
    torch.set_num_threads(3)
    kodak, cid22 = tmp_path / "k", tmp_path / "c"
    assert anew.main(["tiny", "--kodak", str(kodak), "--cid22val", str(cid22), "--workers", "2"]) == 0
    study = ["--data", str(kodak), "--checkpoint", "tiny", "-o"]
    assert done == [
        ("check", "kodak", kodak),
        ("check", "cid22val", cid22),
        ("run", [("tiny", "kodak", None)], kodak, tmp_path / "kodak", "tiny.csv", 2),
        ("run", [("tiny", "cid22val", None)], cid22, tmp_path / "cid22val", "tiny.csv", 2),
        ("eval.parts", 3, *study, str(tmp_path / "parts" / "tiny.json"), "--qualities", "0", "63"),
        ("eval.freezing", 3, *study, str(tmp_path / "freezing" / "tiny.json")),
        ("eval.readme", 3),
    ]


def test_another_data_set_is_refused_before_the_work(done, monkeypatch, capsys):
    def refuse(key, folder):
        raise HybridFlowError(f"{folder} is not {key}")

    monkeypatch.setattr(anew.datasets, "check", refuse)
    assert anew.main(["tiny", "--kodak", "k", "--cid22val", "c"]) == 2
    assert "k is not kodak" in capsys.readouterr().err and not done
