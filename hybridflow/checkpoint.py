"""Weights on disk: safetensors only, keyed by part ("pixel_decoder.head.1.weight")."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridflow.entropy import PRECISION
from hybridflow.errors import CheckpointError
from hybridflow.model import HybridFlow, Preset
from hybridflow.saving import refuse_overwrite, replace_atomically, require_writable
from hybridflow.weights import ablation_file, perceptual_file

TRAINING_ONLY = ("codebook.average_", "codebook.started")
DEPTHS, SIZES = range(65), range(1, 4097)
"""What the sizes that a release says of itself may be."""
CONSTANTS = ("bound",)
"""Endings of buffers that CompressAI makes of numbers in the code, never loaded: 1e-9 is zero in half precision."""
DETERMINES_BITS = (
    "codebook.",
    "index_prior.exact.",
    "continuous.exact.",
    "continuous.log_inverse_gain.",
    "continuous.scale_counts",
)
FROZEN_FROM = ("continuous.hyper_prior.", "continuous.hyper_synthesis.", "continuous.context.", "index_prior.")
"""Floats that training alone reads once they are frozen to integers."""
LARGEST_PART = 16 * 2**20
"""Bytes that a part's file may take."""
PERCEPTUAL = "perceptual."
"""Start of the second decoder's names, which is released in a file of its own."""
INTEGERS = "exact."
"""Start, inside a part, of the integers frozen from it; a part that is not frozen may lack them."""


def _lasting(key: str) -> bool:
    return not key.startswith(TRAINING_ONLY) and not key.endswith(CONSTANTS)


def _frozen_from(key: str) -> bool:
    return key.startswith(FROZEN_FROM) and not key.startswith(DETERMINES_BITS)


def determines_bits(key: str) -> bool:
    """Whether the tensor of this name, frozen, decides which bits a file has: what the model id is of."""
    return key.startswith(DETERMINES_BITS) and not key.startswith(TRAINING_ONLY)


def makes_bits(key: str) -> bool:
    """Whether the tensor of this name decides which bits a symbol gets, or which y^_c and codewords they are read as:
    frozen, or what that was frozen from."""
    return key.startswith(DETERMINES_BITS + FROZEN_FROM)


def released(key: str) -> bool:
    """Whether encoding or decoding with the fidelity decoder needs the tensor of this name."""
    return _lasting(key) and not _frozen_from(key) and not key.startswith(PERCEPTUAL)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata alone of a safetensors file; raises as `read_weights` does."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = "it is a folder" if Path(path).is_dir() else error
        raise CheckpointError(f"{path}: cannot be read as safetensors ({reason}): name a checkpoint file") from None


def load_parts(path: str | Path, *owners: nn.Module) -> set[str]:
    """Load whichever parts of the owners are there, each part whole.

    Args:
        path: a safetensors file, or a folder of them (see `split_parts`). Of a release, what lies in the files beside
            it is loaded with it.

    Returns:
        The names of the parts that were loaded.

    Raises:
        CheckpointError: a part's weights do not fit or are not finite, or none of the parts is there; or as
            `held_parts`.
    """
    path = Path(path)
    weights, holders = {}, _holders(path)
    for file in dict.fromkeys(holders.values()):
        tensors, _ = read_weights(file)
        _refuse_not_finite(file, tensors)
        weights |= {key: value for key, value in tensors.items() if not key.endswith(CONSTANTS)}
    loaded = set()
    for owner in owners:
        for name, part in owner.named_children():
            prefix = name + "."
            found = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
            if not found:
                continue
            loaded.add(name)
            own = part.state_dict()
            kept = {k: v for k, v in own.items() if not _lasting(prefix + k) or k.startswith(INTEGERS)}
            given = kept | found
            missing = [prefix + key for key in own if key not in given]
            if missing and all(map(_frozen_from, missing)):
                reason = f"part {name} lacks the floats that its integers were frozen from"
                raise CheckpointError(f"{path}: {reason}: put NAME-ablation.safetensors beside NAME.safetensors")
            try:
                part.load_state_dict(given)
            except RuntimeError as error:
                raise _misfit(path, name, shorten(str(error), 200)) from None
    if not loaded:
        raise CheckpointError(f"{path}: holds no part of this model: name a run's weights.safetensors")
    return loaded


def held_parts(path: str | Path) -> set[str]:
    """The names of the parts that `load_parts` would find, by the files' headers.

    Raises:
        CheckpointError: a file cannot be read, two hold the same, or they are not of one model.
    """
    return {key.partition(".")[0] for key in _holders(Path(path))}


def refuse_other_sizes(path: str | Path, *owners: nn.Module) -> None:
    """CheckpointError if, by the files' headers, a part would not fit its owner by `load_parts`; else raises as
    `held_parts` does. Owners on PyTorch's meta device take no memory."""
    expected = {key: tuple(value.shape) for owner in owners for key, value in owner.state_dict().items()}
    for holder in dict.fromkeys(_holders(Path(path)).values()):
        with _opened(holder) as file:
            for key in filter(expected.__contains__, file.keys()):
                if (found := tuple(file.get_slice(key).get_shape())) != expected[key]:
                    reason = f"{key} has shape {found} instead of {expected[key]}"
                    raise _misfit(path, key.partition(".")[0], reason)


def _misfit(path: str | Path, part: str, reason: str) -> CheckpointError:
    mend = "choose the one that they were made with"
    return CheckpointError(f"{path}: part {part} does not fit this preset ({reason}): {mend}")


def _holders(path: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    files = [path, *filter(Path.is_file, (ablation_file(path), perceptual_file(path)))]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
    holders: dict[str, Path] = {}
    models: set[str | None] = {None}  # what a run left says of none
    for holder in files:
        with _opened(holder) as file:
            models.add((file.metadata() or {}).get("model_id"))
            if len(models) > 2:
                mend = "name one that was exported as a whole"
                raise CheckpointError(f"{path}: releases of several models lie there: {mend}")
            for key in file.keys():
                if key in holders:
                    both = f"{holders[key].name} and {holder.name} both hold {key}"
                    raise CheckpointError(f"{path}: {both}: name one of them, or take the other away")
                holders[key] = holder
    return holders


def _refuse_not_finite(path: str | Path, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not value.isfinite().all():
            mend = "get the file again, or name one of before the training went astray"
            raise CheckpointError(f"{path}: {key} is not finite: {mend}")


def parts_of(names: Iterable[str], *owners: nn.Module) -> dict[str, Tensor]:
    """The tensors of the named parts of the owners, keyed as `load_parts` reads them."""
    names = set(names)
    tensors = {key: value for owner in owners for key, value in owner.state_dict().items()}
    return {key: value for key, value in tensors.items() if key.partition(".")[0] in names}


def save_parts(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the tensors of some parts as they are to one safetensors file, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    replace_atomically(path, lambda partial: save_file(contiguous, partial))


def split_parts(weights: str | Path, out: Path, names: Iterable[str], force: bool = False) -> list[Path]:
    """Write the named parts of a run's weights to `out`, a half-precision file each, and return their paths. Of a part
    larger than `LARGEST_PART` each of its own parts and tensors gets a file.

    Raises:
        CheckpointError: a part is not there.
        HybridFlowError: a file exists and force is not set, or the folder cannot be written.
    """
    require_writable(out)
    tensors, _ = read_weights(weights)
    contents = {}
    for name in names:
        part = {key: value for key, value in tensors.items() if key.startswith(name + ".")}
        if not part:
            there = ", ".join(sorted({key.partition(".")[0] for key in tensors}))
            raise CheckpointError(f"{weights}: holds no part {name}: choose of {there}")
        files = [name]
        if _half_bytes(part.values()) > LARGEST_PART:
            files = sorted({".".join(key.split(".")[:2]) for key in part})
        for file in files:
            path = out / f"{file}.safetensors"
            refuse_overwrite(path, force=force)
            contents[path] = {key: value for key, value in part.items() if f"{key}.".startswith(f"{file}.")}
    out.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        save_half(path, content)
    return list(contents)


def _half_bytes(weights: Iterable[Tensor]) -> int:
    """What tensors take in half precision, integers as they are."""
    return sum(value.numel() * (2 if value.is_floating_point() else value.element_size()) for value in weights)


def save_half(path: str | Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, floats in half precision, integers and what only training reads as they are (the
    codebook's sums can be larger than half precision holds), without `CONSTANTS`; equal ones make equal files."""
    half = {
        key: (value.half() if value.is_floating_point() and not key.startswith(TRAINING_ONLY) else value).contiguous()
        for key, value in weights.items()
        if not key.endswith(CONSTANTS)
    }

    def save(partial: Path) -> None:
        save_file(half, partial, metadata)
        _sort_metadata(partial)

    replace_atomically(Path(path), save)


def _sort_metadata(path: Path) -> None:
    """Put in order what safetensors writes in any: the metadata in the header, a size in 8 bytes and JSON."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def save_release(path: str | Path, model: HybridFlow, metadata: dict[str, str]) -> None:
    """Write what encoding and decoding need: floats in half precision, the frozen networks and tables as integers.

    Args:
        metadata: shown to users and read by `Codec`; sizes of the preset are added.
    """
    weights = {key: value for key, value in model.state_dict().items() if released(key)}
    save_half(path, weights, metadata | {"preset": json.dumps(asdict(model.preset))})


def save_ablation(path: str | Path, model: HybridFlow, ablations: nn.Module, names: Iterable[str]) -> None:
    """Write, in half precision, what only comparisons and training need: the baselines, and the floats that the
    release's integers were frozen from.

    Args:
        names: of the ablations' parts to be written; the others were never trained.
    """
    floats = {key: value for key, value in model.state_dict().items() if _frozen_from(key)}
    baselines = {key: value for key, value in parts_of(names, ablations).items() if f".{INTEGERS}" not in key}
    save_half(path, floats | baselines, {"model_id": model_id(model).hex()})


def released_bytes(model: HybridFlow) -> int:
    """Bytes of the tensors that `save_release` would write."""
    return _half_bytes(value for key, value in model.state_dict().items() if released(key))


def save_perceptual(path: str | Path, model: HybridFlow) -> None:
    """Write the perceptual decoder of a model, rounded to half precision as its release is, and whose bits it reads."""
    weights = {key: value for key, value in model.state_dict().items() if key.startswith(PERCEPTUAL)}
    save_half(path, weights, {"model_id": model_id(model).hex()})


def refuse_other_model(path: str | Path, model: HybridFlow) -> None:
    """CheckpointError if a file that `export` wrote beside a release was not written beside this model's.

    What a run left says of no model, and passes.
    """
    own = model_id(model).hex()
    read = read_metadata(path).get("model_id", own)
    if read != own:
        raise CheckpointError(f"{path}: is for model {read}, not {own}: export it and the checkpoint from one run")


def load_perceptual(path: Path, model: HybridFlow) -> None:
    """Give a model the perceptual decoder of a file that `save_perceptual` wrote.

    Raises:
        CheckpointError: there is no such file, or it is of another model.
    """
    if not path.is_file():
        mend = "choose the fidelity decoder, or export a run of `hybridflow train perceptual` there"
        raise CheckpointError(f"{path}: there is no perceptual decoder: {mend}")
    refuse_other_model(path, model)
    model.add_perceptual()
    load_parts(path, model)


def load_release(path: str | Path) -> tuple[HybridFlow, dict[str, str]]:
    """The model of a file that `save_release` wrote, in float32, and its metadata.

    What its integers were frozen from is not in there, and left as it was made.

    Raises:
        CheckpointError: the file cannot be read, is no release of this model, or makes other bits than it says.
    """
    weights, metadata = read_weights(path)
    try:
        preset = _preset(json.loads(metadata["preset"]))
        _refuse_other_shapes(preset, weights)
        model = HybridFlow(preset).float()  # whatever PyTorch's default is
        own = {key: value for key, value in model.state_dict().items() if not released(key)}
        model.load_state_dict(own | weights)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = shorten(str(error), 200)
        raise CheckpointError(f"{path}: not a HybridFlow release ({reason}): name one that export wrote") from None
    _refuse_not_finite(path, weights)
    counts, exponential = model.continuous.scale_counts, model.index_prior.exact.exponential
    sound = counts.min() >= 1 and (counts.sum(-1) == 2**PRECISION).all()
    sound = sound and exponential.min() >= 0 and exponential[0] > 0
    if not (sound and model.continuous.exact.frozen and model.index_prior.exact.frozen):
        raise CheckpointError(f"{path}: holds no frozen networks or no tables of the coder: name one that export wrote")
    if metadata.get("model_id") not in (None, model_id(model).hex()):
        raise CheckpointError(f"{path}: is damaged, and would make files that nothing else reads: get it again")
    return model, metadata


def _preset(sizes: dict) -> Preset:
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
    for name, value in sizes.items():
        allowed = DEPTHS if "depth" in name else SIZES
        if not all(size in allowed for size in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} is {value}, not {allowed.start} to {allowed.stop - 1}")
    return Preset(**sizes)


def _refuse_other_shapes(preset: Preset, weights: dict[str, Tensor]) -> None:
    """ValueError if these are not the tensors of a model of those sizes, before it takes memory."""
    with torch.device("meta"):
        tensors = {key: value for key, value in HybridFlow(preset).state_dict().items() if released(key)}
    for key in sorted(tensors.keys() | weights.keys()):
        expected, found = (tuple(owner[key].shape) if key in owner else None for owner in (tensors, weights))
        if expected != found:
            raise ValueError(f"{key} has shape {found} instead of {expected}")


def model_id(model: HybridFlow) -> bytes:
    """Three bytes of a hash over all that determines bits: integer networks, tables, gains and codebook.

    Better pixel decoders keep it, so old files stay readable.
    """
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if determines_bits(key):
            value = value.float() if value.is_floating_point() else value
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()[:3]
