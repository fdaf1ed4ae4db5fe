"""A campaign goes through its plan, in one call or many, and leaves the parts of every stage."""

import itertools
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file

from hybridflow.cli import main
from hybridflow.errors import TrainingError
from hybridflow.training import campaign, loop
from hybridflow.training.campaign import SEEDS_A_STAGE, Campaign
from hybridflow.training.config import load_config, load_plan
from hybridflow.training.data import Augmentation, decode_photo
from hybridflow.training.loop import Run
from hybridflow.training.stages import STAGES

QUICK = ["batch=2", "crop=64", "validation_crops=1", "quantise_from=0", "warmup_steps=1", "relaxed_rate=1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The plan of `tiny`, a smaller model, little to measure activations on."""
    monkeypatch.setattr("hybridflow.model.PRESETS", {"tiny": SMALL})
    monkeypatch.setattr("hybridflow.training.freeze.COUNT", 1)


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_a_plan_shares_all_its_minutes_among_stages_in_their_order(preset):
    minutes, shares = load_plan(preset)
    assert minutes > 0 and sum(shares.values()) == pytest.approx(1)
    assert list(shares) == [stage for stage in STAGES if stage in shares]


def test_calls_and_machines_share_a_campaign(two_splits, tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=itertools.count(0, 0.5).__next__)  # by which a step takes two seconds
    monkeypatch.setattr(campaign, "time", clock)
    monkeypatch.setattr(loop, "time", clock)
    first = Campaign("tiny", tmp_path / "one", None, 4)
    first.train(two_splits, 0.25, "cpu", QUICK)
    parts = tmp_path / "one" / "parts"
    begun = json.loads((parts / "campaign.json").read_text())["stages"]
    assert first.next_stage == "tokenizer" and list(begun) == ["tokenizer"]
    assert not begun["tokenizer"]["finished"] and begun["tokenizer"]["steps"] > 0
    (tmp_path / "one" / "new").mkdir()
    (tmp_path / "one" / "new" / ".codebook.safetensors.1.partial").touch()  # as a kill leaves it
    first.train(two_splits, 0.1, "cpu", QUICK)
    assert not (tmp_path / "one" / "new").exists()
    assert first.ledger["stages"]["tokenizer"]["steps"] > begun["tokenizer"]["steps"]
    begun = first.ledger["stages"]
    assert begun["tokenizer"]["config"]["seed"] == 0

    minutes, (_, shares) = 0.12, load_plan("tiny")
    second = Campaign("tiny", tmp_path / "two", parts, minutes)
    second.train(two_splits, 5, "cpu", QUICK)
    assert second.next_stage is None
    parts = tmp_path / "two" / "parts"
    entries = json.loads((parts / "campaign.json").read_text())["stages"]
    assert list(entries) == list(shares)
    for stage, entry in entries.items():
        assert entry["finished"] and entry["steps"] > 0
        assert entry["minutes"] >= minutes * shares[stage] and entry["config"]["batch"] == 2
    assert entries["tokenizer"]["steps"] >= begun["tokenizer"]["steps"]
    seeds = {stage: entry["config"]["seed"] for stage, entry in entries.items()}
    assert seeds.pop("tokenizer") == begun["tokenizer"]["steps"]
    assert list(seeds.values()) == [SEEDS_A_STAGE * place for place in range(1, len(shares))]  # crops of its own each
    assert {"loss", "bpp", "psnr", "lpips"} <= set(entries["refit"]["validation"])

    made = {path.stem for path in parts.glob("*.safetensors")}
    assert made == {part for stage in shares for part in (*STAGES[stage].trained, *STAGES[stage].kept)}
    assert load_file(parts / "continuous.safetensors")["continuous.exact.out.multiplier"].any()
    assert load_file(parts / "correction.safetensors")["correction.trunk.entries.0.weight"].dtype == torch.float16


@pytest.fixture
def one_step_a_call(monkeypatch):
    """A signal in the first step of a call ends it."""
    step = Run._step

    def signalled(run):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    monkeypatch.setattr(Run, "_step", signalled)


def test_a_call_goes_on_by_what_the_last_one_was_told(two_splits, tmp_path, one_step_a_call):
    Campaign("tiny", tmp_path, None, 4).train(two_splits, 5, "cpu", [*QUICK, "seed=3"])
    again = Campaign("tiny", tmp_path, None, None)
    assert again.budgets == Campaign("tiny", tmp_path / "other", None, 4).budgets
    again.train(two_splits, 5, "cpu", ["jitter=0.1"])
    config = again.ledger["stages"]["tokenizer"]["config"]
    assert [config[key] for key in ("batch", "crop", "jitter", "seed")] == [2, 64, 0.1, 3]
    told = json.loads((tmp_path / "parts" / "campaign.json").read_text())["settings"]
    assert told == [*QUICK, "seed=3", "jitter=0.1"]
    assert Campaign("tiny", tmp_path, None, 8).ledger["total_minutes"] == 8


def test_what_a_call_was_told_outlasts_its_failure(two_splits, tmp_path, monkeypatch):
    def fails(run):
        raise TrainingError("out of memory")

    monkeypatch.setattr(Run, "_step", fails)
    with pytest.raises(TrainingError, match="out of memory"):
        Campaign("tiny", tmp_path, None, 4).train(two_splits, 5, "cpu", QUICK)
    ledger = Campaign("tiny", tmp_path, None, None).ledger
    assert ledger == {"preset": "tiny", "stages": {}, "total_minutes": 4, "settings": QUICK}


@pytest.mark.parametrize("settings, told", [(["batch=3", "accumulate=2"], "cannot be split"), (["x=1"], "unknown")])
def test_what_cannot_start_is_told_before_photos_are_read(settings, told, two_splits, tmp_path, monkeypatch):
    for name in ("open_photos", "held_out_photos"):
        monkeypatch.setattr(campaign, name, lambda *_: pytest.fail("photos were read"))
    with pytest.raises(TrainingError, match=told):
        Campaign("tiny", tmp_path / "out", None, 4).train(two_splits, 5, "cpu", settings)
    assert not (tmp_path / "out").exists()


def test_a_campaign_that_could_not_be_frozen_is_not_begun(two_splits, tmp_path):
    (tmp_path / "51.png").write_bytes((two_splits / "51.png").read_bytes())
    with pytest.raises(TrainingError, match="no validation photo"):
        Campaign("tiny", tmp_path / "out", None, 4).train(tmp_path, 5, "cpu", QUICK)
    assert not (tmp_path / "out").exists()


def test_a_signal_in_the_last_step_of_a_stage_ends_the_call(two_splits, tmp_path, one_step_a_call):
    whole = Campaign("tiny", tmp_path, None, 1e-4)
    whole.train(two_splits, 5, "cpu", QUICK)
    assert list(whole.ledger["stages"]) == ["tokenizer"] and whole.next_stage == "continuous"


@pytest.mark.parametrize("counted, at_first, steps", [(0, 7, 10), (100, 0, 103)])
def test_every_step_is_counted_once(counted, at_first, steps, tmp_path, monkeypatch):
    """Of a run whose last call was killed before it was counted, and of one whose state is lost."""
    machine = SimpleNamespace(is_main_process=True, device=None, wait_for_everyone=int, free_memory=int)
    run, kept = SimpleNamespace(step=at_first, over=True, ended=True), []

    def train(minutes):
        run.step += 3

    def begun(*arguments):
        assert arguments[-1] == 1.5  # minutes that the stage has had
        return run

    run.train = train
    for name, stub in (("start_processes", lambda device: machine), ("Run", begun)):
        monkeypatch.setattr(campaign, name, stub)
    for name in ("open_photos", "validation_crops", "held_out_photos", "check_start"):
        monkeypatch.setattr(campaign, name, lambda *_: None)
    monkeypatch.setattr(Campaign, "_keep", lambda self, stage, run, steps: kept.append(steps))
    whole = Campaign("tiny", tmp_path, None, None)
    whole.ledger["stages"]["tokenizer"] = {"finished": False, "minutes": 1.5, "steps": counted}
    whole.train(tmp_path, 1, "cpu", [])
    assert kept == [steps]


def test_a_call_without_a_step_keeps_what_was_measured_before(tmp_path):
    whole = Campaign("tiny", tmp_path, None, None)
    machine = SimpleNamespace(is_main_process=False, wait_for_everyone=int)
    run = SimpleNamespace(over=False, minutes=1.0, config=load_config("tokenizer", "tiny", []), accelerator=machine)
    for run.measured in ({"loss": 2.0}, {"loss": 1.0}, {}):
        whole._keep("tokenizer", run, 3)
    assert whole.ledger["stages"]["tokenizer"]["validation"] == {"loss": 1.0}


def test_photos_are_decoded_again_only_for_other_settings(two_splits, tmp_path, monkeypatch):
    decoded, sizes = [], {}

    def count(named):
        decoded.append(named[0])
        return decode_photo(named)

    def finish(self, stage, run, steps):
        self.ledger["stages"][stage] = {"finished": True, "minutes": 0.0, "steps": 0}

    def ended(stage, preset, config, photos, out, init, resume, accelerator, validation, minutes):
        sizes[stage] = len(validation), validation.shape[-1]
        assert photos.augmentation == Augmentation(config.transpose, config.downscale, config.jitter)
        return SimpleNamespace(train=lambda minutes: None, over=True, ended=False, step=0)

    monkeypatch.setattr("hybridflow.training.data.decode_photo", count)
    monkeypatch.setattr(campaign, "Run", ended)
    monkeypatch.setattr(campaign, "check_start", lambda *_: None)
    monkeypatch.setattr(Campaign, "_keep", finish)
    monkeypatch.setattr(Campaign, "_freeze", lambda self, data: None)
    whole = Campaign("tiny", tmp_path, None, None)
    whole.train(two_splits, 1, "cpu", ["validation_crops=1"])
    assert whole.next_stage is None
    crops = {stage: load_config(stage, "tiny", []).crop for stage in sizes}
    assert sizes == {stage: (1, crop) for stage, crop in crops.items()}
    seen = 2 * len(set(crops.values()))  # a photo of each split
    assert len(decoded) == seen + 1 < 2 * len(crops)  # and one, at the start, that freezing will want

    def jittered(stage, *rest):
        return replace(load_config(stage, *rest), jitter=0.1 * (stage == "predictor"))

    def opened(data, config, device):
        return SimpleNamespace(augmentation=Augmentation(config.transpose, config.downscale, config.jitter))

    for name, stub in (("load_config", jittered), ("open_photos", opened)):
        monkeypatch.setattr(campaign, name, stub)
    monkeypatch.setattr(campaign, "validation_crops", lambda *_: torch.zeros(1, 3, 64, 64))
    Campaign("tiny", tmp_path / "jittered", None, None).train(two_splits, 1, "cpu", ["validation_crops=1"])


def test_a_preset_or_folder_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="campaign.json"):
        Campaign("tiny", tmp_path / "out", tmp_path / "empty", None)
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / "campaign.json").write_text(json.dumps({"preset": "base", "stages": {}}))
    with pytest.raises(TrainingError, match="base"):
        Campaign("tiny", tmp_path / "out", None, None)
    for damage in ("{", "[]", "3"):
        (tmp_path / "out" / "parts" / "campaign.json").write_text(damage)
        with pytest.raises(TrainingError, match="campaign.json is damaged"):
            Campaign("tiny", tmp_path / "out", None, None)


@pytest.mark.parametrize("setting", ["max_minutes=5", "max_steps=null"])
def test_a_clock_that_it_would_not_heed_is_refused(two_splits, tmp_path, setting):
    with pytest.raises(TrainingError, match="--total-minutes"):
        Campaign("tiny", tmp_path / "out", None, None).train(two_splits, 1, "cpu", [*QUICK, setting])


def test_parts_that_were_copied_halfway_are_copied_again(two_splits, tmp_path, monkeypatch):
    out, parts = tmp_path / "out", tmp_path / "parts"
    parts.mkdir()
    (parts / "campaign.json").write_text(json.dumps({"preset": "tiny", "stages": {"tokenizer": {"finished": True}}}))
    (parts / "codebook.safetensors").write_bytes(b"weights")

    def killed(source, target, **_):
        target.mkdir(parents=True)
        (target / "codebook.safetensors").write_bytes(b"wei")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(campaign.shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            Campaign("tiny", out, parts, None).train(two_splits, 0, "cpu", [])
    again = Campaign("tiny", out, parts, None)
    assert again.next_stage == "continuous"
    for _ in range(2):
        again.train(two_splits, 0, "cpu", [])
    assert (out / "parts" / "codebook.safetensors").read_bytes() == b"weights"
    assert Campaign("tiny", out, None, None).next_stage == "continuous"
    stages = {"tokenizer": {"finished": True}, "continuous": {"finished": True}}
    (out / "parts" / "campaign.json").write_text(json.dumps({"preset": "tiny", "stages": stages}))
    later = Campaign("tiny", out, parts, None)  # whose own parts are newer
    later.train(two_splits, 0, "cpu", [])
    assert Campaign("tiny", out, None, None).next_stage == later.next_stage == "predictor"


def test_the_command_says_what_comes_next(two_splits, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(campaign.Campaign, "train", lambda self, *arguments: told.append((self, arguments)))
    command = ["campaign", "--data", str(two_splits), "--out", str(tmp_path / "out"), "--minutes", "1.5"]
    assert main(command) == 0
    assert "0 steps: reading took the clock, give it more --minutes, tokenizer comes next" in capsys.readouterr().out
    (tmp_path / "campaign.json").write_text(json.dumps({"preset": "tiny", "stages": {}}))
    assert main([*command, "--init", str(tmp_path), "--total-minutes", "7", "--set", "seed=3", "batch=4"]) == 0
    (_, plain), (begun, given) = told
    assert plain == (two_splits, 1.5, "cpu", []) and given == (two_splits, 1.5, "cpu", ["seed=3", "batch=4"])
    assert begun.init == tmp_path and begun.ledger["total_minutes"] == 7
