"""What is measured anew of a checkpoint, and at which points: those that are committed."""

import json
from types import SimpleNamespace

import pytest

from eval import anew
from hybridflow.errors import HybridFlowError

CURVES = {
    "kodak": {
        "tiny": ["0:none", "63:1_4"],
        "tiny-effort-30": ["20:none"],
        "tiny-perceptual": ["0:none"],
        "tiny-continuous-only": ["0:none"],
        "base": ["5:none"],
        "jpeg": ["1"],
    },
    "cid22val": {"tiny": ["9:none"], "base-continuous-mse": ["1:none"]},
}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    for folder, curves in CURVES.items():
        (tmp_path / folder).mkdir()
        for key, points in curves.items():
            numbers = list(map(float, range(len(points))))
            curve = {"name": key, "description": "Kodak", "results": {"point": points, "bpp": numbers}}
            (tmp_path / folder / f"{key}.json").write_text(json.dumps(curve))
    monkeypatch.setattr(anew, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def done(monkeypatch):
    """What was called, with which arguments, as a dictionary of options each."""
    calls = []
    monkeypatch.setattr(anew.datasets, "check", lambda *checked: calls.append(("check", *map(str, checked))))
    for name in ("run", "parts", "freezing", "readme"):

        def call(arguments, name=name):
            calls.append((name, *arguments))
            return 0

        module = SimpleNamespace(main=call, ABLATIONS=anew.run.ABLATIONS, __name__=f"eval.{name}")
        monkeypatch.setattr(anew, name, module)
    return calls


def test_every_committed_curve_is_measured_at_its_points_then_the_studies(done, results):
    command = ["tiny", "--kodak", "k", "--cid22val", "c", "--workers", "2", "--mse", "m"]
    assert anew.main(command) == 0
    kodak = ["run", "--data", "k", "--checkpoint", "tiny", "-o", str(results / "kodak"), "--workers", "2"]
    cid22 = ["run", "--data", "c", "--checkpoint", "tiny", "-o", str(results / "cid22val"), "--workers", "2"]
    study = ["--data", "k", "--checkpoint", "tiny", "-o"]
    assert [list(call) for call in done] == [
        ["check", "kodak", "k"],
        ["check", "cid22val", "c"],
        [*kodak, "--mse", "m", "--points", "0:none", "63:1_4"],
        [*kodak, "--effort", "30", "--points", "20:none"],
        [*kodak, "--decoder", "perceptual", "--points", "0:none"],
        [*cid22, "--no-ablations", "--points", "9:none"],
        ["parts", *study, str(results / "parts" / "tiny.json")],
        ["freezing", *study, str(results / "freezing" / "tiny.json")],
        ["readme"],
    ]


def test_a_measurement_that_failed_ends_it(done, monkeypatch):
    monkeypatch.setattr(anew.run, "main", lambda arguments: 1)
    assert anew.main(["tiny", "--kodak", "k", "--cid22val", "c"]) == 1
    assert [call[0] for call in done] == ["check", "check"]


def test_another_data_set_is_refused_before_the_work(done, monkeypatch, capsys):
    def refuse(key, folder):
        raise HybridFlowError(f"{folder} is not {key}")

    monkeypatch.setattr(anew.datasets, "check", refuse)
    assert anew.main(["tiny", "--kodak", "k", "--cid22val", "c"]) == 2
    assert "k is not kodak" in capsys.readouterr().err and not done
