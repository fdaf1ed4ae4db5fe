"""One image under measurement: what its files hold, what every part makes of them, each asked once."""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import load_parts, refuse_other_model
from hybridflow.codec import Codec
from hybridflow.container import Header, pack, unpack
from hybridflow.continuous import Latent
from hybridflow.image_io import read_image, tensor_to_image
from hybridflow.losses import bits, masked_cross_entropy
from hybridflow.masking import coding_steps, schedule_mask
from hybridflow.metrics import lpips, psnr
from hybridflow.model import Coded, HybridFlow

CHECKS = 6
"""Bytes of the two checks of a file: one inside the stream, one behind it."""


def read_ablations(codec: Codec, weights: Path) -> Ablations:
    """The baselines beside a codec that a file holds; those that it lacks are None.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    refuse_other_model(weights, codec.model)
    ablations = Ablations(codec.model.preset)
    held = load_parts(weights, ablations)
    for name, _ in list(ablations.named_children()):
        if name not in held:
            setattr(ablations, name, None)
    return ablations.to(codec.model.codebook.codewords.device).eval()


class Photo:
    """One image: analysed once, and written, read and compared once at every point, however often that is asked for.

    Attributes:
        indices: the whole index map (1,h,w) int64.
        file: (quality, schedule) -> the whole `.hf` file, and what it holds.
        reading: (quality, schedule) -> whether the file gives back what it holds; bits of each section of its stream.
        latent: model, quality -> the continuous stream as training sees it.
        figures: (quality, schedule) -> the decoded image's `compare`.
        continuous_alone: quality -> estimated bytes of the continuous codec that was trained without the codebook
            stream, and what its decoder makes of them.

    Args:
        ablations: None if neither stream is asked for alone.
    """

    def __init__(self, codec: Codec, ablations: Ablations | None, path: Path) -> None:
        self.codec, self.model, self.ablations = codec, codec.model, ablations
        self.path, self.original = path, read_image(path)
        self.analysed = codec.analyse(self.original)
        self.device = self.analysed.latent.device
        self.indices = torch.from_numpy(self.analysed.indices)[None].to(self.device)
        self.file = functools.cache(self._file)
        self.reading = functools.cache(self._reading)
        self.latent = functools.cache(self._latent)
        self.figures = functools.cache(self._figures)
        self.continuous_alone = functools.cache(self._continuous_alone)

    def y_hat(self, quality: int) -> Tensor:
        """y^_c (1,M,h,w) of a file of this quality."""
        return self.model.y_hat(self.file(quality, "none")[1].y, self._tensor(quality))

    def read(self, quality: int, schedule: str, sections: dict[str, float] | None = None) -> Coded:
        """What a file holds, read anew; `sections` are filled with the bits of each section of its stream."""
        header, stream = unpack(self.file(quality, schedule)[0])
        shape = self.analysed.indices.shape
        return self.model.read(
            stream, *shape, quality, schedule, header.pack(), self.codec.probability, sections=sections
        )

    def picture(self, pixels: Tensor) -> Image.Image:
        """A decoder's output (1,3,16h,16w) as an image of the original's size."""
        return tensor_to_image(pixels.float().clamp(0, 1)[..., : self.original.height, : self.original.width])

    def compare(self, pixels: Tensor) -> dict[str, float]:
        """LPIPS and PSNR of a decoder's output (1,3,16h,16w)."""
        decoded = self.picture(pixels)
        return {"lpips": lpips(self.original, decoded), "psnr": psnr(self.original, decoded)}

    def whole(self, quality: int, schedule: str) -> tuple[int, Tensor]:
        """Bytes of a file, and what it decodes to."""
        data, coded = self.file(quality, schedule)
        return len(data), self.model.synthesise(coded, quality)

    def uncorrected(self, quality: int, schedule: str) -> tuple[int, Tensor]:
        """Bytes of a file, and what it decodes to without D_corr's features."""
        data, coded = self.file(quality, schedule)
        return len(data), self.model.synthesise(coded, quality, corrected=False)

    @torch.inference_mode()
    def codebook_alone(self, schedule: str) -> tuple[float, Tensor]:
        """Estimated bytes of the indices that a uniform schedule sends, and all of them decoded by the D_vq of that
        stream alone.

        The predictor that does not see y^_c gives the probabilities of the sent ones, in the four steps that a file
        codes them in, and fills in the others. Header and checks are included.
        """
        h, w = self.indices.shape[1:]
        sent, steps = schedule_mask(schedule, h, w, self.device)[None], coding_steps(h, w, self.device)[None]
        known, nats = torch.zeros_like(sent), 0.0
        for step in steps[sent].unique():
            coded = sent & (steps == step)
            logits = self.ablations.blind_predictor(self.indices, known)
            nats += float(coded.sum()) * float(masked_cross_entropy(logits, self.indices, ~coded))
            known = known | coded
        logits = self.ablations.blind_predictor(self.indices, sent)
        codes = self.model.fill_in(self.indices, sent, logits)
        return self._alone(nats / math.log(2)), self.ablations.codebook_decoder(codes)

    @torch.inference_mode()
    def estimated_bytes(self, quality: int, schedule: str, model: HybridFlow | None = None) -> float:
        """What a file takes by training's likelihoods, header and checks included.

        Args:
            model: whose likelihoods, if not the codec's: one with the same codebook.
        """
        model = model or self.model
        header, sent = self._header(quality, schedule), torch.from_numpy(self.file(quality, schedule)[1].sent)[None]
        latent = self.latent(model, quality)
        likelihoods = model.index_likelihoods(
            self.indices, sent.to(self.device), latent.y_gained, self._tensor(quality)
        )
        total = sum(float(bits(p)) for p in (*latent.likelihoods.values(), likelihoods))
        return (total + self.reading(quality, schedule)[1]["regions"]) / 8 + len(header.pack()) + CHECKS

    def _tensor(self, quality: int) -> Tensor:
        return torch.tensor([quality], device=self.device)

    def _header(self, quality: int, schedule: str) -> Header:
        return Header(*self.original.size, quality, schedule, bytes.fromhex(self.codec.model_id))

    def _file(self, quality: int, schedule: str) -> tuple[bytes, Coded]:
        header = self._header(quality, schedule)
        stream, coded = self.model.write(self.analysed, quality, schedule, header.pack(), self.codec.probability)
        return pack(header, stream), coded

    def _reading(self, quality: int, schedule: str) -> tuple[bool, dict[str, float]]:
        written = self.file(quality, schedule)[1]
        sections: dict[str, float] = {}
        read = self.read(quality, schedule, sections)
        true = np.where(read.sent, self.analysed.indices, 0)
        intact = np.array_equal(read.indices, true) and all(map(np.array_equal, read, written))
        return intact, sections

    @torch.inference_mode()
    def _latent(self, model: HybridFlow, quality: int) -> Latent:
        return model.continuous(self.analysed.image, self._tensor(quality))

    def _figures(self, quality: int, schedule: str) -> dict[str, float]:
        return self.compare(self.whole(quality, schedule)[1])

    @torch.inference_mode()
    def _continuous_alone(self, quality: int) -> tuple[float, Tensor]:
        latent = self.ablations.continuous_alone(self.analysed.image, self._tensor(quality))
        total = sum(float(bits(p)) for p in latent.likelihoods.values())
        return self._alone(total), self.ablations.continuous_decoder(latent.y_hat)

    def _alone(self, total: float) -> float:
        """Bytes of a file that holds so many bits of one stream alone."""
        return total / 8 + len(self._header(0, "none").pack()) + CHECKS
