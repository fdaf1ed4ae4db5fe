"""Photo to bytes and back: what the command line and Python users call."""

import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import IO

import torch.nn.functional as F
from PIL import Image

from hybridflow.checkpoint import load_perceptual, load_release, model_id, read_metadata
from hybridflow.container import QUALITIES, Header, pack, require_quality, unpack
from hybridflow.errors import CheckpointError, FormatError, HybridFlowError, ModelMismatchError
from hybridflow.image_io import image_to_tensor, read_file, read_image, tensor_to_image
from hybridflow.masking import SCHEDULES, require_schedule
from hybridflow.model import Analysed, HybridFlow
from hybridflow.precision import require_device
from hybridflow.tiling import STRIDE
from hybridflow.weights import DECODERS, DEFAULT, available, checkpoint_file, perceptual_file, weight_file

SMALLEST_AMONG = 4
"""Of so many points of the lowest rates any can have the smallest file of a small or plain picture."""


def shipped_id(name: str) -> str | None:
    """Hex digits of the model id of a shipped preset, by its metadata, which `export` writes."""
    return read_metadata(weight_file(f"{name}.safetensors")).get("model_id")


def maker(header: Header) -> str | None:
    """The shipped preset that a file was made by, if it was one."""
    return next((name for name in available() if shipped_id(name) == header.model_id.hex()), None)


def load(name: str | Path = DEFAULT, device: str = "cpu", decoder: str = "fidelity") -> "Codec":
    """A codec with trained weights.

    Args:
        name: a shipped preset, or the path of a .safetensors checkpoint.
        device: where the networks run; every device reads the same from a file.
        decoder: what turns files into pixels. "fidelity" stays near the original; "perceptual", trained for textures
            that look alike, invents them: it looks sharper, but text and faces may be wrong. Files do not depend on it:
            each decodes every file of the checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be read, or it has no perceptual decoder.
        HybridFlowError: there is no such decoder, or no such device.
    """
    require_device(device)
    if decoder not in DECODERS:
        raise HybridFlowError(f"there is no decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
    path = checkpoint_file(name)
    model, metadata = load_release(path)
    if decoder == "perceptual":
        load_perceptual(perceptual_file(path), model)
    return Codec(model.to(device), path.stem, _operating_points(path, metadata), decoder)


def _operating_points(path: Path, metadata: dict[str, str]) -> list[tuple[int, str]] | None:
    """Those that `export` wrote to a release's metadata, None if it has none; CheckpointError if they are none."""
    try:
        points = json.loads(metadata.get("operating_points", "null"))
        if points is None or points and all(q in range(QUALITIES) and s in SCHEDULES for q, s in points):
            return points
    except (TypeError, ValueError):
        pass
    raise CheckpointError(f"{path}: its operating points are no pairs of quality and schedule: export it anew")


class Codec:
    """Encodes images to `.hf` files and decodes them.

    Args:
        model: trained, its tables baked.
        name: shown to users.
        operating_points: (quality, schedule) pairs from the lowest rate up, among which `bpp` and `max_bytes` choose;
            every quality with no index sent if None.
        decoder: "fidelity", or "perceptual" if the model has it.

    Attributes:
        model_id: hex digits that say which bits this codec makes and reads.
        probability: what feeds the entropy coder.
    """

    def __init__(
        self,
        model: HybridFlow,
        name: str,
        operating_points: list[tuple[int, str]] | None = None,
        decoder: str = "fidelity",
    ) -> None:
        self.model = model.eval()
        self.name = name
        self.decoder = decoder
        self.operating_points = operating_points or [(quality, "none") for quality in range(QUALITIES)]
        self.probability = model.probability()
        self._id = model_id(model)

    def __repr__(self) -> str:
        return f"Codec({self.name}, model {self.model_id}, {self.decoder})"

    @property
    def model_id(self) -> str:
        return self._id.hex()

    def encode(
        self,
        image,
        *,
        quality: int | None = None,
        schedule: str | None = None,
        bpp: float | None = None,
        max_bytes: int | None = None,
        effort: int = 0,
    ) -> bytes:
        """Encode one image.

        Args:
            image: whatever `hybridflow.image_io.read_image` takes: a path, PIL image, numpy array, tensor, bytes.
            quality: 0 (smallest file) to 63; 31 if neither `bpp` nor `max_bytes` is given.
            schedule: which codebook indices are sent; by default that of the operating point nearest in quality.
            bpp: the best operating point whose file has at most so many bits per pixel.
            max_bytes: likewise in bytes.
            effort: steps in which y_c is refined by gradient descent (`hybridflow.refinement`), each about two
                decodings long: of 30 LPIPS is a tenth (`base`) to a seventh (`tiny`) lower at about as many bytes. None
                is made where a side has 48 pixels or less.

        Returns:
            The whole `.hf` file.

        Raises:
            ImageError: the image cannot be read.
            HybridFlowError: arguments out of range or at odds, or no operating point is small enough.
        """
        if sum(argument is not None for argument in (quality, bpp, max_bytes)) > 1:
            raise HybridFlowError("give only one of quality, bpp and max_bytes")
        for name, number in {"max_bytes": max_bytes, "effort": effort}.items():
            if not isinstance(number, Integral) and (number is not None or name == "effort"):
                raise HybridFlowError(f"{name} must be a whole number, not {number!r}")
        quality = None if quality is None else require_quality(quality)
        if bpp is not None and not (isinstance(bpp, Real) and 0 < bpp < math.inf):
            raise HybridFlowError(f"bpp must be a finite number above 0, not {bpp!r}")
        if effort < 0:
            raise HybridFlowError(f"effort must be at least 0, not {effort}")
        if schedule is not None:
            require_schedule(schedule)
        picture = read_image(image)
        analysed = self.analyse(picture)

        def attempt(point: tuple[int, str], effort: int = 0) -> bytes:
            return self._write(analysed, picture.size, *point, effort)

        pixels = picture.width * picture.height
        if bpp is not None:
            bits = min(float(bpp) * pixels, sys.maxsize)
            max_bytes = int(bits / 8 + 1e-6)  # what a file has is not over its own rate, whatever floats make of it
        if max_bytes is None:
            quality = 31 if quality is None else quality
            return attempt((quality, schedule or self._usual_schedule(quality)), effort)
        points = self.operating_points
        if schedule is not None:
            points = [(q, schedule) for q in range(QUALITIES)]
        mend = "allow more" if schedule is None else "allow more, or leave the schedule to the model"

        def refusal(smallest: int) -> str:
            rate = f"{smallest} bytes, {8 * smallest / pixels:.4g} bpp"
            allowed = f"{max_bytes} bytes" if bpp is None else f"{float(bpp):g} bpp"
            return f"the smallest file has {rate}, over the {allowed} allowed: {mend}"

        number, data = _largest_within(points, attempt, max_bytes, refusal)
        if effort:
            refined = (attempt(point, effort) for point in reversed(points[: number + 1]))
            data = next((better for better in refined if len(better) <= max_bytes), data)
        return data

    def decode(
        self, data: bytes | str | os.PathLike | IO[bytes], *, preview: bool = False, salvage: bool = False
    ) -> Image.Image:
        """Decode one file to an RGB image of the original's size.

        Args:
            data: the file's bytes, its path, or a binary file object.
            preview: leave the sent indices out and predict them all: quicker, and all that a cut file may allow.
            salvage: accept a cut or damaged file whose continuous stream is whole, and use the indices that are there.
                Both warn if the file is one.

        Raises:
            FormatError: the file is not an `.hf` file, or is damaged.
            ModelMismatchError: another checkpoint made it.
            HybridFlowError: it cannot be read.
        """
        data = _file_bytes(data)
        try:
            header, stream = self._open(data)
            salvage = False  # it is whole
        except FormatError:
            if not (preview or salvage):
                raise
            header, stream = self._open(data, check=False)
            warnings.warn("the file is cut or damaged: its picture is not all that was encoded", stacklevel=2)
        h, w = -(-header.height // STRIDE), -(-header.width // STRIDE)
        schedule = "none" if preview else header.schedule
        coded = self.model.read(
            stream, h, w, header.quality, schedule, header.pack(), self.probability, salvage=salvage
        )
        pixels = self.model.synthesise(coded, header.quality, decoder=self.decoder)
        return tensor_to_image(pixels[..., : header.height, : header.width])

    def info(self, data: bytes | str | os.PathLike | IO[bytes]) -> dict:
        """What a file, as `decode` takes it, says of itself.

        Returns:
            "width" and "height" in pixels, "quality" 0 to 63, "schedule", "model_id" in hex digits, "bytes" of the
            whole file, "bpp", and "sections": name -> bytes, fractions where sections share the coder's stream.

        Raises:
            FormatError, ModelMismatchError, HybridFlowError: as `decode`.
        """
        data = _file_bytes(data)
        header, stream = self._open(data)
        h, w = -(-header.height // STRIDE), -(-header.width // STRIDE)
        bits: dict[str, float] = {}
        self.model.read(
            stream, h, w, header.quality, header.schedule, header.pack(), self.probability, sections=bits
        )
        sections = {"header": len(header.pack())} | {name: b / 8 for name, b in bits.items()} | {"crc": 4}
        return {
            "width": header.width,
            "height": header.height,
            "quality": header.quality,
            "schedule": header.schedule,
            "model_id": header.model_id.hex(),
            "bytes": len(data),
            "bpp": 8 * len(data) / (header.width * header.height),
            "sections": sections,
        }

    def _open(self, data: bytes, check: bool = True) -> tuple[Header, bytes]:
        header, stream = unpack(data, check=check)
        if header.model_id != self._id:
            preset, ours = maker(header), f"{self.name} ({self.model_id})"
            mend = f"choose preset {preset}" if preset else "load the checkpoint that made it (--checkpoint)"
            raise ModelMismatchError(f"the file was made by model {header.model_id.hex()}, this is {ours}: {mend}")
        return header, stream

    def analyse(self, picture: Image.Image) -> Analysed:
        """What can be coded of an RGB image, whatever the quality and the schedule; its sides padded to the stride."""
        x = image_to_tensor(picture)
        x = F.pad(x, (0, -x.shape[-1] % STRIDE, 0, -x.shape[-2] % STRIDE), mode="replicate")
        return self.model.analyse(x.to(self.model.codebook.codewords.device))

    def _write(
        self, analysed: Analysed, size: tuple[int, int], quality: int, schedule: str, effort: int
    ) -> bytes:
        header = Header(*size, quality, schedule, self._id)
        stream, _ = self.model.write(analysed, quality, schedule, header.pack(), self.probability, effort)
        return pack(header, stream)

    def _usual_schedule(self, quality: int) -> str:
        return min(self.operating_points, key=lambda point: abs(point[0] - quality))[1]


def _file_bytes(source: bytes | str | os.PathLike | IO[bytes]) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        return read_file(source)
    data = source.read() if hasattr(source, "read") else source
    if not isinstance(data, (bytes, bytearray, memoryview)):
        kind = type(data).__name__
        raise HybridFlowError(f"a file cannot be a {kind}: give its bytes, its path or a binary file object")
    return bytes(data)


def _largest_within(
    points: list, attempt: Callable[[tuple[int, str]], bytes], limit: int, refusal: Callable[[int], str]
) -> tuple[int, bytes]:
    """The number of the last point within the limit, and its file, found by bisection: sizes grow along the points,
    nearly."""
    sizes = []
    for low, point in enumerate(points[:SMALLEST_AMONG]):
        best = attempt(point)
        sizes.append(len(best))
        if sizes[-1] <= limit:
            break
    else:
        raise HybridFlowError(refusal(min(sizes)))
    high = len(points) - 1
    while low < high:
        middle = (low + high + 1) // 2
        data = attempt(points[middle])
        if len(data) <= limit:
            best, low = data, middle
        else:
            high = middle - 1
    return low, best
