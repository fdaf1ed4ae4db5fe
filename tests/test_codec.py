"""The codec as users meet it: every size, every kind of input, rate targets, damaged files, and whose bits they are."""

import io
import shutil
from contextlib import ExitStack
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image
from safetensors.torch import save_file

import hybridflow
from hybridflow import refinement, tiling
from hybridflow.checkpoint import load_release, model_id, read_weights
from hybridflow.codec import Codec, available, shipped_id
from hybridflow.container import pack, unpack
from hybridflow.errors import CheckpointError, FormatError, HybridFlowError, ModelMismatchError
from hybridflow.image_io import tensor_to_image
from hybridflow.masking import SCHEDULES
from hybridflow.weights import DECODERS, perceptual_file

POINTS = [(0, "none"), (20, "none"), (40, "none"), (40, "1_4"), (63, "1_9"), (63, "full")]


@pytest.fixture(scope="module")
def picture(photos):
    return Image.open(photos[0]).convert("RGB").crop((300, 150, 300 + 127, 150 + 95))


@pytest.fixture(scope="module")
def pointed(checkpoint_path):
    """A codec with few operating points."""
    return Codec(load_release(checkpoint_path)[0], "small", POINTS)


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("width, height", [(1, 1), (15, 17), (64, 64), (511, 97)])
@pytest.mark.parametrize("schedule", ["none", "dynamic"])
def test_output_has_the_inputs_size(codec, photos, width, height, schedule):
    image = Image.open(photos[1]).crop((0, 100, width, 100 + height))
    decoded = codec.decode(codec.encode(image, quality=40, schedule=schedule))
    assert decoded.size == (width, height) and decoded.mode == "RGB"


def test_a_picture_unlike_any_photo_comes_back():
    """Thousands of its symbols are of the rarest."""
    blocks = np.random.default_rng(0).choice([0, 255], (64, 64, 3)).astype(np.uint8)
    tiny = hybridflow.load("tiny")
    data = tiny.encode(blocks.repeat(16, 0).repeat(16, 1), quality=63, schedule="full")
    assert tiny.info(data)["bytes"] == len(data)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_decoder_sees_what_the_encoder_saw(codec, picture, schedule):
    data = codec.encode(picture, quality=31, schedule=schedule)
    assert data == codec.encode(picture, quality=31, schedule=schedule)
    _, seen = codec.model.write(codec.analyse(picture), 31, schedule)
    shown = codec.model.synthesise(seen, 31)[..., : picture.height, : picture.width]
    assert codec.decode(data) == tensor_to_image(shown)
    info = codec.info(data)
    assert (info["width"], info["height"]) == picture.size
    assert (info["quality"], info["schedule"], info["model_id"]) == (31, schedule, codec.model_id)


@pytest.mark.parametrize("quality", [0, 31, 63])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sections_add_up_to_the_file(codec, picture, quality, schedule):
    data = codec.encode(picture, quality=quality, schedule=schedule)
    info = codec.info(data)
    assert info["bytes"] == len(data) and info["bpp"] == 8 * len(data) / (picture.width * picture.height)
    assert set(info["sections"]) == {"header", "z", "y", "check", "regions", "indices", "crc"}
    assert abs(sum(info["sections"].values()) - len(data)) < 2
    overhead = len(data) - sum(info["sections"][name] for name in ("z", "y", "regions", "indices"))
    assert overhead <= 17


def test_every_kind_of_input_gives_the_same_bytes(codec, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    inputs = [path, str(path), path.read_bytes(), array, array / 255, tensor, tensor[None], tensor.float() / 255]
    reference = codec.encode(picture)
    assert all(codec.encode(source) == reference for source in inputs)


def test_neither_quality_nor_target_means_quality_31(codec, picture):
    assert codec.encode(picture) == codec.encode(picture, quality=31)
    assert codec.encode(picture, quality=True) == codec.encode(picture, quality=1)
    assert codec.info(codec.encode(picture))["quality"] == 31


def test_the_schedule_comes_from_the_nearest_operating_point(pointed, picture):
    for quality, schedule in [(5, "none"), (60, "1_9"), (63, "1_9")]:
        assert pointed.info(pointed.encode(picture, quality=quality))["schedule"] == schedule
    assert pointed.info(pointed.encode(picture, quality=60, schedule="1_4"))["schedule"] == "1_4"


def test_targets_are_kept_and_met_as_closely_as_points_allow(pointed, picture):
    files = [pointed.encode(picture, quality=q, schedule=s) for q, s in POINTS]
    sizes = [len(data) for data in files]
    assert sizes == sorted(set(sizes))
    for number, size in enumerate(sizes):
        assert pointed.encode(picture, max_bytes=size) == files[number]
        assert pointed.encode(picture, max_bytes=size + 1) == files[number]
        bpp = 8 * size / (picture.width * picture.height)
        assert pointed.encode(picture, bpp=bpp) == files[number]
        if number:
            assert pointed.encode(picture, max_bytes=size - 1) == files[number - 1]
            assert pointed.encode(picture, bpp=bpp * 0.9999) == files[number - 1]


def test_a_rate_that_allows_anything(pointed, picture):
    assert pointed.encode(picture, bpp=1e308) == pointed.encode(picture, bpp=24)


def test_targets_with_a_schedule_of_the_users_choice(codec, picture):
    limit = len(codec.encode(picture, quality=30, schedule="1_4"))
    data = codec.encode(picture, max_bytes=limit, schedule="1_4")
    assert len(data) <= limit and codec.info(data)["schedule"] == "1_4" and codec.info(data)["quality"] >= 30


@pytest.mark.parametrize("width, height", [(111, 77), (93, 59), (70, 45)])
def test_the_rate_of_a_file_allows_it(pointed, photos, width, height):
    with Image.open(photos[0]) as image:
        crop = image.crop((0, 0, width, height))
    data = pointed.encode(crop, quality=POINTS[1][0], schedule=POINTS[1][1])
    assert len(pointed.encode(crop, bpp=8 * len(data) / (width * height))) >= len(data)


def test_a_plain_picture_whose_first_point_is_not_its_smallest(codec, monkeypatch):
    white = Image.new("RGB", (64, 64), "white")
    sizes = {q: len(codec.encode(white, quality=q, schedule="none")) for q in (0, 20, 40, 63)}
    order = sorted(sizes, key=sizes.get, reverse=True)
    monkeypatch.setattr(codec, "operating_points", [(q, "none") for q in order])
    assert sizes[order[0]] > sizes[order[-1]]
    assert len(codec.encode(white, max_bytes=sizes[order[-1]])) == sizes[order[-1]]


def test_a_target_below_the_smallest_file(codec, picture):
    for target in ({"max_bytes": 10}, {"bpp": 1e-4}, {"bpp": 1e-4, "schedule": "1_4"}):
        name, allowed = next(iter(target.items()))
        unit = name.removeprefix("max_")
        with pytest.raises(HybridFlowError, match=f"[0-9]+ bytes, 0.* bpp, over the {allowed} {unit} allowed: allow"):
            codec.encode(picture, **target)


@pytest.mark.parametrize(
    "arguments",
    [
        {"quality": 3, "bpp": 0.1},
        {"quality": 3, "max_bytes": 1000},
        {"bpp": 0.1, "max_bytes": 1000},
        {"quality": 64},
        {"quality": -1},
        {"schedule": "1_16"},
        {"bpp": float("inf")},
        {"bpp": float("nan")},
        {"bpp": -1},
        {"bpp": "0.03"},
        {"quality": 10.5},
        {"max_bytes": 1e3},
        {"effort": "30"},
        {"effort": None},
    ],
)
def test_arguments_at_odds_or_out_of_range(codec, picture, arguments):
    with pytest.raises(HybridFlowError) as error:
        codec.encode(picture, **arguments)
    assert "\n" not in str(error.value)


def test_a_rate_may_be_any_real_number(codec, picture):
    assert codec.encode(picture, bpp=Fraction(3, 2)) == codec.encode(picture, bpp=1.5)
    with pytest.raises(HybridFlowError, match="over the 0.001 bpp allowed"):
        codec.encode(picture, bpp=Fraction(1, 1000))


def test_the_default_type_of_tensors_changes_nothing(codec, checkpoint_path, picture):
    refinement._distortion.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        other = hybridflow.load(checkpoint_path)
        refined, data = (other.encode(picture, schedule="1_4", effort=effort) for effort in (1, 0))
        decoded = other.decode(data)
    finally:
        torch.set_default_dtype(torch.float32)
    kept = refinement._distortion(torch.device("cpu")).state_dict()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert other.model_id == codec.model_id and refined != data == codec.encode(picture, schedule="1_4")
    assert (pixels(decoded) == pixels(codec.decode(data))).all()


def test_a_file_of_another_checkpoint(codec, other_checkpoint_path, picture):
    other = Codec(load_release(other_checkpoint_path)[0], "other")
    data = other.encode(picture)
    assert other.model_id != codec.model_id
    for read in (codec.decode, codec.info):
        with pytest.raises(ModelMismatchError, match=f"{other.model_id}.*--checkpoint"):
            read(data)


def test_a_file_of_another_shipped_preset_names_it(codec, picture, monkeypatch):
    monkeypatch.setattr(codec, "_id", bytes.fromhex(shipped_id("tiny")))
    data = codec.encode(picture)
    monkeypatch.undo()
    with pytest.raises(ModelMismatchError, match="choose preset tiny$"):
        codec.decode(data)


def test_large_pictures_are_worked_on_by_tiles(codec, photos, monkeypatch):
    """Which bounds the memory that they take, and makes no other picture."""
    with Image.open(photos[0]) as image:
        picture = image.crop((64, 200, 704, 328)).convert("RGB")
    whole = codec.encode(picture, quality=40, schedule="1_4")
    expected, sizes = pixels(codec.decode(whole)), []
    monkeypatch.setattr(tiling, "TILE", 8)
    with ExitStack() as hooks:
        for part, stride in ((codec.model.pixel_decoder, 16), (codec.model.continuous.analysis, 1)):

            def note(module, arguments, stride=stride):
                sizes.append(stride * max(arguments[0].shape[-2:]))

            hooks.callback(part.register_forward_pre_hook(note).remove)
        data = codec.encode(picture, quality=40, schedule="1_4")
        decoded = pixels(codec.decode(whole))
    assert len(sizes) == 2 * 5 and max(sizes) <= 16 * (8 + 2 * tiling.HALO) < picture.width
    assert len(data) == pytest.approx(len(whole), rel=0.01)
    assert abs(decoded - expected).max() <= 1 and (decoded != expected).mean() <= 1e-4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", available())
def test_shipped_decoders_leave_no_mark_in_a_corner(name, decoder, picture):
    """Fine detail in each corner, over all mirror images of a picture, so that its own is the same in all four."""
    codec = hybridflow.load(name, decoder=decoder)
    mirrored = [picture.crop((0, 0, 96, 80))]
    mirrored += [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in mirrored]
    mirrored += [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for image in mirrored]
    decoded = np.mean([pixels(codec.decode(codec.encode(image, quality=10))) for image in mirrored], -1)
    detail = abs(np.diff(np.diff(decoded, axis=1), axis=2)).mean(0)
    corners = [corner.mean() for half in np.array_split(detail, 2) for corner in np.array_split(half, 2, axis=1)]
    assert max(corners) < 1.4 * np.mean(corners)


@pytest.mark.parametrize("name", available())
def test_shipped_weights_are_those_that_their_metadata_names(name):
    assert hybridflow.load(name).model_id == shipped_id(name)


def test_the_model_id_covers_what_makes_bits_and_nothing_else(checkpoint_path):
    model, _ = load_release(checkpoint_path)
    before = model_id(model)
    for part in ("pixel_decoder", "correction", "predictor", "codebook_encoder", "continuous.analysis", "index_prior"):
        with torch.no_grad():
            next(model.get_submodule(part).parameters()).add_(0.1)
    model.codebook.average_count.add_(1)
    assert model_id(model) == before
    seen = {before}
    for name in (
        "index_prior.exact.step",
        "codebook.codewords",
        "continuous.exact.out.bias",
        "continuous.exact.inward.weight",
        "continuous.log_inverse_gain.anchors",
        "continuous.exact.hyper_prior.known.weight",
        "continuous.scale_counts",
    ):
        with torch.no_grad():
            model.state_dict()[name].flatten()[0] += 1
        seen.add(model_id(model))
    assert len(seen) == 8 and all(len(digest) == 3 for digest in seen)


def test_a_better_pixel_decoder_reads_old_files(codec, checkpoint_path, picture):
    data = codec.encode(picture)
    model, _ = load_release(checkpoint_path)
    with torch.no_grad():
        model.pixel_decoder.head[-1].bias.add_(0.1)
    better = Codec(model, "better")
    assert better.encode(picture) == data
    assert (pixels(better.decode(data)) != pixels(codec.decode(data))).any()


def test_damage_and_cuts_are_errors_of_one_line(codec, picture):
    data = codec.encode(picture, schedule="1_4")
    broken = [data[:cut] for cut in range(0, len(data), 7)]
    for position in range(0, len(data), 11):
        flipped = bytearray(data)
        flipped[position] ^= 1
        broken.append(bytes(flipped))
    for damaged in broken:
        for read in (codec.decode, codec.info):
            with pytest.raises((FormatError, ModelMismatchError)) as error:
                read(damaged)
            assert "\n" not in str(error.value)


def test_a_file_without_the_indices_that_it_promises_is_damaged(codec, picture):
    """Its checks are right, so that only the stream's end can tell."""
    data = codec.encode(picture, schedule="full")
    header, stream = unpack(data)
    sections = codec.info(data)["sections"]
    kept = int(sections["z"] + sections["y"] + sections["check"]) + 6
    assert len(stream) - kept > 20
    short = pack(header, stream[:kept])
    for read in (codec.decode, codec.info):
        with pytest.raises(FormatError, match="ends before its indices"):
            read(short)
    assert codec.decode(short, preview=True).size == codec.decode(short[:-4], salvage=True).size == picture.size


def test_preview_needs_only_the_continuous_stream(codec, picture):
    data = codec.encode(picture, schedule="full")
    sections = codec.info(data)["sections"]
    behind_y = int(sections["header"] + sections["z"] + sections["y"] + sections["check"]) + 6
    assert behind_y < len(data) - 20
    preview = codec.decode(data, preview=True)
    assert preview.size == picture.size and (pixels(preview) != pixels(codec.decode(data))).any()
    with pytest.warns(UserWarning, match="the file is cut or damaged"):
        assert (pixels(codec.decode(data[:behind_y], preview=True)) == pixels(preview)).all()
    with pytest.raises(FormatError):
        codec.decode(data[: int(sections["header"] + sections["z"])], preview=True)


def test_salvage_of_whole_and_cut_files(codec, picture):
    data = codec.encode(picture, schedule="full")
    whole, preview = pixels(codec.decode(data)), pixels(codec.decode(data, preview=True))
    assert (pixels(codec.decode(data, salvage=True)) == whole).all()
    errors = []
    sections = codec.info(data)["sections"]
    for share in (0.1, 0.5, 0.9):
        cut = int(sum(sections.values()) - sections["crc"] - (1 - share) * sections["indices"])
        with pytest.warns(UserWarning, match="the file is cut or damaged"):
            salvaged = pixels(codec.decode(data[:cut], salvage=True))
        errors.append(np.abs(salvaged - whole).mean())
    assert errors[0] <= np.abs(preview - whole).mean() and errors == sorted(errors, reverse=True) and errors[-1] > 0
    assert errors[-1] < errors[0]


def test_load_takes_paths_and_names_what_is_there(checkpoint_path, picture, tmp_path):
    codec = hybridflow.load(checkpoint_path)
    assert codec.name == checkpoint_path.stem and codec.model.preset == SMALL
    assert codec.decode(codec.encode(picture)).size == picture.size
    with pytest.raises(CheckpointError, match="no preset 'absent' is shipped: choose base or tiny"):
        hybridflow.load("absent")
    bare = tmp_path / "bare"
    bare.symlink_to(checkpoint_path)
    assert hybridflow.load(str(bare)).model_id == codec.model_id
    assert not {name for name in hybridflow.available() if name.endswith(("ablation", "perceptual", "features"))}


@pytest.mark.parametrize(
    "metadata, zeroed, words",
    [
        ({"operating_points": "nonsense"}, None, "operating points"),
        ({"operating_points": "7"}, None, "operating points"),
        ({"operating_points": "[]"}, None, "operating points"),
        ({"operating_points": '[[64, "none"]]'}, None, "operating points"),
        ({"operating_points": '[[5, "most"]]'}, None, "operating points"),
        ({"preset": "[]"}, None, "not a HybridFlow release"),
        ({}, "continuous.scale_counts", "no tables"),
        ({}, "index_prior.exact.out.multiplier", "no frozen networks"),
    ],
)
def test_a_release_that_is_wrong_inside_is_refused_when_it_is_loaded(
    checkpoint_path, tmp_path, metadata, zeroed, words
):
    weights, own = read_weights(checkpoint_path)
    if zeroed:
        weights[zeroed] = torch.zeros_like(weights[zeroed])
    save_file(weights, tmp_path / "wrong.safetensors", own | metadata)
    with pytest.raises(CheckpointError, match=words) as error:
        hybridflow.load(tmp_path / "wrong.safetensors")
    assert "\n" not in str(error.value)


def test_files_are_read_by_path_too(codec, picture, tmp_path):
    data, path = codec.encode(picture), tmp_path / "photo.hf"
    path.write_bytes(data)
    for source in (path, str(path), bytearray(data), memoryview(data)):
        assert codec.decode(source) == codec.decode(data) and codec.info(source) == codec.info(data)
    assert codec.decode(io.BytesIO(data)) == codec.decode(data)
    for source in (None, 5, io.StringIO("text")):
        with pytest.raises(HybridFlowError, match="binary file object"):
            codec.decode(source)
    for name in ("missing.hf", "mis\0sing.hf"):
        with pytest.raises(HybridFlowError, match="sing.hf.*check the path"):
            codec.decode(tmp_path / name)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "abacus", "cpu:foo", "mps", None):
        with pytest.raises(HybridFlowError, match="choose"):
            hybridflow.load(device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(HybridFlowError, match="one of 2 GPUs"):
        hybridflow.load(device="cuda:2")


def test_the_package_names_what_it_offers():
    assert {"Codec", "HybridFlowError", "available", "load"} <= set(dir(hybridflow))


def test_every_file_decodes_with_both_decoders(perceptual_checkpoint_path, picture):
    fidelity = hybridflow.load(perceptual_checkpoint_path)
    perceptual = hybridflow.load(perceptual_checkpoint_path, decoder="perceptual")
    assert perceptual.model_id == fidelity.model_id
    for schedule in ("none", "1_4", "dynamic"):
        data = fidelity.encode(picture, schedule=schedule)
        assert perceptual.encode(picture, schedule=schedule) == data
        plain, textured = fidelity.decode(data), perceptual.decode(data)
        assert textured.size == plain.size == picture.size and (pixels(textured) != pixels(plain)).any()
    preview = perceptual.decode(data, preview=True)
    assert (pixels(preview) != pixels(fidelity.decode(data, preview=True))).any()


def test_a_perceptual_decoder_that_is_not_there_or_of_another_model(
    checkpoint_path, other_checkpoint_path, perceptual_checkpoint_path, tmp_path
):
    foreign = tmp_path / other_checkpoint_path.name
    shutil.copy(other_checkpoint_path, foreign)
    shutil.copy(perceptual_file(perceptual_checkpoint_path), perceptual_file(foreign))
    for path, words in ((checkpoint_path, "train perceptual"), (foreign, "is for model")):
        with pytest.raises(CheckpointError, match=words) as error:
            hybridflow.load(path, decoder="perceptual")
        assert "\n" not in str(error.value) and str(perceptual_file(path)) in str(error.value)
    with pytest.raises(HybridFlowError, match="fidelity, perceptual"):
        hybridflow.load(checkpoint_path, decoder="sharp")
