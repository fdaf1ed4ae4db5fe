"""Make the golden files: a small checkpoint, files that it wrote, and digests of what they hold.

    python tests/golden/make.py

Run it only when the format changes on purpose: a file that no longer decodes to its digests is a broken promise.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from PIL import Image

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parent.parent)]

from conftest import frozen_on_noise, spread_out  # noqa: E402

from hybridflow.codec import STRIDE, Codec  # noqa: E402
from hybridflow.checkpoint import load_release, save_release  # noqa: E402
from hybridflow.container import unpack  # noqa: E402
from hybridflow.model import Coded, HybridFlow, Preset  # noqa: E402

CHECKPOINT, DIGESTS = FOLDER / "golden.safetensors", FOLDER / "digests.json"
PRESET = Preset(
    encoder_widths=(8, 8, 16),
    encoder_depths=(1, 1, 1),
    decoder_widths=(8, 8, 16),
    decoder_depths=(1, 1, 1),
    half_channels=4,
    code_dim=8,
    latent_channels=12,
    z_channels=6,
    context_width=20,
    prior_width=16,
    prior_embedding=6,
    predictor_dim=16,
    predictor_depth=1,
    predictor_heads=2,
    num_codes=100,
)
FILES = [
    ("low", (0, 0, 70, 45), 0, "none"),
    ("quarter", (100, 60, 280, 200), 31, "1_4"),
    ("ninth", (200, 100, 457, 199), 45, "1_9"),
    ("full", (300, 150, 412, 262), 63, "full"),
    ("dynamic", (0, 100, 320, 290), 20, "dynamic"),
]
"""Name, crop of the first photo under tests/photos, quality, schedule."""


def read_golden(codec: Codec, name: str) -> Coded:
    """What a golden file holds."""
    header, stream = unpack((FOLDER / f"{name}.hf").read_bytes())
    assert header.model_id.hex() == codec.model_id
    h, w = -(-header.height // STRIDE), -(-header.width // STRIDE)
    return codec.model.read(stream, h, w, header.quality, header.schedule, header.pack(), codec.probability)


def digests(coded: Coded) -> dict[str, str]:
    """SHA-256 of each field as little-endian 32-bit integers, shape included."""
    fields = coded._asdict().items()
    return {name: hashlib.sha256(str(a.shape).encode() + a.astype("<i4").tobytes()).hexdigest() for name, a in fields}


def main() -> None:
    torch.manual_seed(0)
    save_release(CHECKPOINT, frozen_on_noise(spread_out(HybridFlow(PRESET))), {"about": "random weights, for tests"})
    codec = Codec(load_release(CHECKPOINT)[0], "golden")
    photo, expected = Image.open(FOLDER.parent / "photos" / "kodim07.png"), {}
    for name, crop, quality, schedule in FILES:
        (FOLDER / f"{name}.hf").write_bytes(codec.encode(photo.crop(crop), quality=quality, schedule=schedule))
        expected[name] = digests(read_golden(codec, name))
    DIGESTS.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
