"""The composite: both streams, the predictor and the correction, wired as in the picture in README.

    x --E_vq--> y_vq --nearest code--> d --mask--> d' ------------\\
    |                                                              > entropy coder -> file
    \\---E_c --> y_c --gain, round--> y^_c -----------------------/

    predictor(d', y^_c) = d^ ;  x^ = D_vq(codes(d^), corrections = D_corr(y^_c))
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from compressai.models.base import CompressionModel
from compressai.registry import register_model
from torch import Tensor, nn

from hybridflow.codebook import Codebook
from hybridflow.container import require_quality
from hybridflow.continuous import ContinuousCodec
from hybridflow.correction import Correction
from hybridflow.dynamic_masking import choose_regions, error_map, spatial_lpips
from hybridflow.entropy import Decoder, Encoder
from hybridflow.errors import FormatError, HybridFlowError
from hybridflow.exact import ProbabilityModel
from hybridflow.image_encoder import ImageEncoder
from hybridflow.index_prior import IndexPrior
from hybridflow.losses import rate_weight
from hybridflow.masking import (
    SCHEDULES,
    UNIFORM_SCHEDULES,
    coding_steps,
    require_schedule,
    schedule_mask,
    step_places,
)
from hybridflow.pixel_decoder import PixelDecoder
from hybridflow.predictor import Predictor
from hybridflow.probability import MEAN_STEPS
from hybridflow.refinement import refine
from hybridflow.stream_coding import code_check, code_indices, code_sent, code_y, code_z
from hybridflow.tiling import STRIDE, compare_tiled, decode_tiled, encode_tiled
from hybridflow.weights import DECODERS


@dataclass(frozen=True)
class Preset:
    """Sizes of a model. Tuples of three are for 1/4, 1/8 and 1/16 of the resolution.

    Attributes:
        half_channels: of the pixel decoder at 1/2.
        num_codes, code_dim: codewords K and their channels C.
        latent_channels, z_channels: M of y_c, Z of its hyper-latent z.
        context_width: of the hyper-synthesis and the context models.
        prior_width, prior_embedding: P and E of the index prior.
        predictor_dim, predictor_depth, predictor_heads: of the token transformer.
    """

    encoder_widths: tuple[int, int, int]
    encoder_depths: tuple[int, int, int]
    decoder_widths: tuple[int, int, int]
    decoder_depths: tuple[int, int, int]
    half_channels: int
    code_dim: int
    latent_channels: int
    z_channels: int
    context_width: int
    prior_width: int
    prior_embedding: int
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int
    num_codes: int = 1024


PRESETS = {
    "tiny": Preset(
        encoder_widths=(64, 128, 192),
        encoder_depths=(1, 2, 3),
        decoder_widths=(64, 128, 192),
        decoder_depths=(2, 3, 3),
        half_channels=16,
        code_dim=32,
        latent_channels=64,
        z_channels=48,
        context_width=96,
        prior_width=128,
        prior_embedding=40,
        predictor_dim=128,
        predictor_depth=4,
        predictor_heads=4,
    ),
    "base": Preset(
        encoder_widths=(80, 224, 512),
        encoder_depths=(1, 3, 4),
        decoder_widths=(72, 224, 512),
        decoder_depths=(2, 3, 4),
        half_channels=24,
        code_dim=64,
        latent_channels=112,
        z_channels=64,
        context_width=112,
        prior_width=224,
        prior_embedding=40,
        predictor_dim=288,
        predictor_depth=4,
        predictor_heads=8,
    ),
}


def continuous_codec(preset: Preset) -> ContinuousCodec:
    encoder = {"widths": preset.encoder_widths, "depths": preset.encoder_depths}
    return ContinuousCodec(preset.latent_channels, preset.z_channels, preset.context_width, encoder)


class Analysed:
    """What the encoder knows of one image, whatever the quality and the schedule.

    Attributes:
        image: (1,3,16h,16w) in [0,1].
        latent: y_c before its gain (1,M,h,w).
    """

    def __init__(self, model: "HybridFlow", image: Tensor) -> None:
        self._model = model
        self.image, self.latent = image, encode_tiled(model.continuous.analysis, image).float()

    @cached_property
    @torch.inference_mode()
    def indices(self) -> np.ndarray:
        """(h,w) int64. E_vq runs when they are first read: a file that sends none does without."""
        return encode_tiled(lambda tile: self._model.indices_of(tile)[:, None], self.image)[0, 0].cpu().numpy()


class Coded(NamedTuple):
    """What the file holds of one image: the same on both sides."""

    z: np.ndarray
    """(Z,ceil(h/4),ceil(w/4)) int64."""
    y: np.ndarray
    """y^_c (M,h,w) int64, in sixteenths, in the gained domain."""
    sent: np.ndarray
    """(h,w) bool."""
    indices: np.ndarray
    """(h,w) int64, zero where not sent."""


class PerceptualDecoder(nn.Module):
    """D_vq and D_corr once more, trained for textures that look alike (`hybridflow.texture`): they invent what y^_c
    and the codes leave open. They read what the first pair reads, so every file decodes with either.

    Args:
        pixel_decoder, correction: the first pair, of which these start as copies.
    """

    def __init__(self, pixel_decoder: PixelDecoder, correction: Correction) -> None:
        super().__init__()
        self.pixel_decoder, self.correction = deepcopy(pixel_decoder), deepcopy(correction)


@register_model("hybridflow")
class HybridFlow(CompressionModel):
    """Codebook stream, continuous stream, and their merging in the pixel decoder.

    Attributes:
        perceptual: the second decoder, None unless `add_perceptual` was called.

    Args:
        preset: a name of `PRESETS`, or sizes of your own.

    Raises:
        HybridFlowError: there is no preset of that name.
    """

    def __init__(self, preset: str | Preset = "tiny") -> None:
        super().__init__()
        if isinstance(preset, str) and preset not in PRESETS:
            raise HybridFlowError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
        p = self.preset = PRESETS[preset] if isinstance(preset, str) else preset
        encoder = {"widths": p.encoder_widths, "depths": p.encoder_depths}
        decoder = {"widths": p.decoder_widths, "depths": p.decoder_depths}
        self.codebook_encoder = ImageEncoder(p.code_dim, **encoder)
        self.codebook = Codebook(p.num_codes, p.code_dim)
        self.pixel_decoder = PixelDecoder(p.code_dim, **decoder, half_channels=p.half_channels)
        self.continuous = continuous_codec(p)
        self.predictor = Predictor(
            p.latent_channels, p.num_codes, p.predictor_dim, p.predictor_depth, p.predictor_heads
        )
        self.correction = Correction(p.latent_channels, **decoder)
        self.index_prior = IndexPrior(p.latent_channels, p.num_codes, p.prior_width, p.prior_embedding)
        self.perceptual: PerceptualDecoder | None = None

    def add_perceptual(self) -> None:
        """Start the second decoder, anew if there is one, as a copy of the first."""
        self.perceptual = PerceptualDecoder(self.pixel_decoder, self.correction)

    def indices_of(self, image: Tensor) -> Tensor:
        """Image (B,3,H,W) -> the index map d (B,h,w) int64."""
        y_vq = self.codebook_encoder(image)
        return self.codebook.nearest(y_vq.permute(0, 2, 3, 1).flatten(0, 2)).view(len(image), *y_vq.shape[-2:])

    def fill_in(self, indices: Tensor, sent: Tensor, logits: Tensor) -> Tensor:
        """Codes (B,C,h,w): the codeword where an index was sent, elsewhere the expected codeword of the predictor."""
        expected = self.codebook.expected(logits)
        return torch.where(sent[:, None], self.codebook.lookup(indices * sent), expected)

    def parts_of(self, decoder: str) -> nn.Module:
        """What holds the `pixel_decoder` and the `correction` of a decoder, named as in `merge`.

        Raises:
            HybridFlowError: there is none of that name, or it was not loaded.
        """
        if decoder not in DECODERS:
            raise HybridFlowError(f"there is no decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        if decoder == "perceptual" and self.perceptual is None:
            raise HybridFlowError("the model has no perceptual decoder: hybridflow.load it with decoder='perceptual'")
        return self.perceptual if decoder == "perceptual" else self

    def merge(self, codes: Tensor, y_hat: Tensor, *, corrected: bool = True, decoder: str = "fidelity") -> Tensor:
        """Codes (B,C,h,w) and y^_c (B,M,h,w) -> x^ (B,3,16h,16w), nominally in [0,1], not clamped.

        Args:
            corrected: False leaves D_corr out (an ablation).
            decoder: one of `hybridflow.weights.DECODERS`.
        """
        parts = self.parts_of(decoder)
        return parts.pixel_decoder(codes, parts.correction(y_hat) if corrected else None)

    def decode_pixels(self, indices: Tensor, sent: Tensor, y_hat: Tensor, **options: bool | str) -> Tensor:
        """d' and y^_c -> x^ (B,3,16h,16w), nominally in [0,1], not clamped; tile by tile if it is large.

        Args:
            indices: (B,h,w) int64, read only where `sent` (B,h,w) bool.
            y_hat: (B,M,h,w).
            options: those of `merge`.
        """
        codes = self.fill_in(indices, sent, self.predictor(indices, sent, y_hat))
        return decode_tiled(partial(self.merge, **options), codes, y_hat)

    def index_likelihoods(self, indices: Tensor, sent: Tensor, y_gained: Tensor, quality: Tensor) -> Tensor:
        """Probability (B,h,w) that the index prior gives each sent index; 1 where none is sent."""
        features = self.index_prior.features(y_gained, quality)
        h, w = indices.shape[1:]
        steps = coding_steps(h, w, indices.device)
        likelihoods = torch.ones(len(indices), h * w, device=indices.device)
        for step, places in enumerate(step_places(h, w, indices.device)):
            coded = self.index_prior.likelihoods(features, indices, sent & (steps < step), step, places)
            likelihoods = likelihoods.index_copy(1, places, coded)
        return likelihoods.view_as(indices).where(sent, 1)

    def forward(
        self, x: Tensor, quality: Tensor | int = 31, sent: Tensor | str = "1_4", decoder: str = "fidelity"
    ) -> dict:
        """Encode and decode without writing bytes.

        Args:
            x: image (B,3,H,W) in [0,1], H and W multiples of 16.
            quality: 0..63, an int or (B,) int64.
            sent: a uniform schedule's name, or the sent positions (B,h,w) bool.
            decoder: as in `merge`.

        Returns:
            `x_hat` (B,3,H,W); `likelihoods` of "y", "z" and "indices"; `indices` (B,h,w); `sent` (B,h,w);
            `index_logits` (B,K,h,w) of the predictor.

        Raises:
            HybridFlowError: `x` is no such image, or there is no such quality, schedule or decoder.
        """
        _require_image(x)
        batch = len(x)
        if not isinstance(quality, Tensor):
            quality = torch.full((batch,), require_quality(quality), device=x.device)
        indices = self.indices_of(x)
        if isinstance(sent, str):
            sent = schedule_mask(sent, *indices.shape[1:], x.device).expand(batch, -1, -1)
        latent = self.continuous(x, quality)
        logits = self.predictor(indices, sent, latent.y_hat)
        codes = self.fill_in(indices, sent, logits)
        likelihoods = latent.likelihoods | {
            "indices": self.index_likelihoods(indices, sent, latent.y_gained, quality)
        }
        return {
            "x_hat": self.merge(codes, latent.y_hat, decoder=decoder),
            "likelihoods": likelihoods,
            "indices": indices,
            "sent": sent,
            "index_logits": logits,
        }

    def update(self, scale_table: None = None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Bake Gaussian tables for the coder, in a model that has none; `hybridflow.training.freeze` fits better ones.

        The arguments are CompressAI's; tables that are there are left alone unless `force`, which changes the model id:
        files of before are then another model's.

        Returns:
            Whether tables were baked.
        """
        baked = bool(self.continuous.scale_counts.any())
        if baked and not force:
            return False
        self.continuous.bake_tables()
        return True

    def probability(self) -> ProbabilityModel:
        """What feeds the entropy coder: the frozen networks and tables.

        Raises:
            RuntimeError: they are not frozen.
        """
        continuous, prior = self.continuous, self.index_prior
        if not (continuous.exact.frozen and prior.exact.frozen):
            raise RuntimeError("the bits are not frozen: run `hybridflow freeze` on the weights first")
        return ProbabilityModel(continuous.exact, prior.exact, continuous.scale_counts)

    @torch.inference_mode()
    def analyse(self, image: Tensor) -> Analysed:
        """Image (1,3,H,W) in [0,1], H and W multiples of 16 -> what can be coded of it."""
        return Analysed(self, image)

    @torch.inference_mode()
    def write(
        self,
        analysed: Analysed,
        quality: int,
        schedule: str,
        header: bytes = b"",
        probability: ProbabilityModel | None = None,
        effort: int = 0,
    ) -> tuple[bytes, Coded]:
        """Code one image.

        Args:
            quality: 0..63.
            schedule: one of `hybridflow.masking.SCHEDULES`.
            header: covered by the check inside the stream.
            probability: from `probability()`, made anew if not given.
            effort: steps in which y_c is refined first (`hybridflow.refinement`).

        Returns:
            The stream, and what it holds.
        """
        probability = probability or self.probability()
        q = torch.tensor([quality], device=analysed.latent.device)
        gained, z = self.continuous.gain(analysed.latent, q)
        if effort:
            gained = self._refined(analysed, gained, z.round(), quality, schedule, effort)
        z = z[0].round().long().cpu().numpy()
        h, w = gained.shape[-2:]
        coder = Encoder()
        code_z(coder, probability, quality, h, w, z)
        y = code_y(coder, probability, quality, z, h, w, gained[0].double().cpu().numpy())
        code_check(coder, header, z, y)
        regions = self._choose_regions(analysed, y, q) if schedule == "dynamic" else None
        sent = code_sent(coder, schedule, h, w, regions)
        true = analysed.indices if sent.any() else None
        sent, indices = code_indices(coder, probability, quality, y, sent, true)
        return coder.finish(), Coded(z, y, sent, indices)

    @torch.inference_mode()
    def read(
        self,
        stream: bytes,
        h: int,
        w: int,
        quality: int,
        schedule: str,
        header: bytes = b"",
        probability: ProbabilityModel | None = None,
        sections: dict[str, float] | None = None,
        salvage: bool = False,
    ) -> Coded:
        """Undo `write` for an index map of h x w.

        Args:
            sections: filled with the bits of each section of the stream.
            salvage: of a stream cut or damaged behind its continuous part, take the index steps that are there whole.

        Raises:
            FormatError: the stream does not hold what its check says.
        """
        probability = probability or self.probability()
        coder, sections = Decoder(stream, cut=salvage), {} if sections is None else sections

        def section(name: str) -> None:
            sections[name] = coder.bits - sum(sections.values())

        z = code_z(coder, probability, quality, h, w)
        section("z")
        y = code_y(coder, probability, quality, z, h, w)
        section("y")
        code_check(coder, header, z, y)
        section("check")
        sent = code_sent(coder, schedule, h, w, salvage=salvage)
        section("regions")
        sent, indices = code_indices(coder, probability, quality, y, sent, salvage=salvage)
        section("indices")
        return Coded(z, y, sent, indices)

    @torch.inference_mode()
    def synthesise(self, coded: Coded, quality: int, **options: bool | str) -> Tensor:
        """What the file holds -> image (1,3,16h,16w) in [0,1]; options are those of `merge`."""
        device = self.codebook.codewords.device
        y_hat = self.y_hat(coded.y, torch.tensor([quality], device=device))
        indices, sent = (torch.from_numpy(a)[None].to(device) for a in (coded.indices, coded.sent))
        return self.decode_pixels(indices, sent, y_hat, **options).float().clamp(0, 1)

    def compress(self, x: Tensor, quality: int = 31, schedule: str = "1_4") -> dict:
        """CompressAI's convention: images (B,3,H,W) in [0,1], H and W multiples of 16 -> {"strings": [[a stream an
        image]], "shape": (h, w)}, and the "quality" and "schedule" that `decompress` needs too.

        Raises:
            HybridFlowError: `x` is no such image, or there is no such quality or schedule.
        """
        _require_image(x)
        header, probability = _point(quality, schedule), self.probability()
        streams = [self.write(self.analyse(image[None]), quality, schedule, header, probability)[0] for image in x]
        shape = x.shape[-2] // STRIDE, x.shape[-1] // STRIDE
        return {"strings": [streams], "shape": shape, "quality": quality, "schedule": schedule}

    def decompress(self, strings: list, shape: tuple[int, int], quality: int = 31, schedule: str = "1_4") -> dict:
        """CompressAI's convention: all that `compress` gave -> {"x_hat": (B,3,H,W) in [0,1]}.

        Raises:
            FormatError: the streams are damaged, or of another quality or schedule.
            HybridFlowError: there is no such quality or schedule.
        """
        header, probability = _point(quality, schedule), self.probability()
        try:
            coded = [self.read(stream, *shape, quality, schedule, header, probability) for stream in strings[0]]
        except FormatError as error:
            raise FormatError(f"{error}, or give the quality and schedule that compress returned") from None
        return {"x_hat": torch.cat([self.synthesise(c, quality) for c in coded])}

    def y_hat(self, y: np.ndarray, quality: Tensor) -> Tensor:
        """y^_c as the file holds it (M,h,w) int64, quality (1,) -> as the decoders read it (1,M,h,w)."""
        gained = torch.from_numpy(y)[None].to(quality.device).float() / MEAN_STEPS
        return self.continuous.ungain(gained, quality)

    def _refined(
        self, analysed: Analysed, gained: Tensor, z: Tensor, quality: int, schedule: str, steps: int
    ) -> Tensor:
        """y_c (1,M,h,w) in the gained domain, refined for a schedule, or for sending no index if it is dynamic."""
        with torch.inference_mode(False), torch.enable_grad():
            image, gained, z = (tensor.clone() for tensor in (analysed.image, gained, z))
            uniform = "none" if schedule == "dynamic" else schedule
            sent = schedule_mask(uniform, *gained.shape[-2:], gained.device)[None]
            indices = torch.from_numpy(analysed.indices)[None].to(sent.device) if sent.any() else sent.long()

            def decode(y_hat: Tensor, window: tuple[slice, slice]) -> Tensor:
                here, there = indices[(..., *window)], sent[(..., *window)]
                return self.merge(self.fill_in(here, there, self.predictor(here, there, y_hat)), y_hat)

            return refine(self.continuous, decode, image, gained, z, quality, steps)

    def _choose_regions(self, analysed: Analysed, y: np.ndarray, quality: Tensor) -> np.ndarray:
        device = quality.device
        indices = torch.from_numpy(analysed.indices)[None].to(device)
        y_hat = self.y_hat(y, quality)
        gained = torch.from_numpy(y)[None].to(device).float() / MEAN_STEPS
        compare = partial(error_map, lpips=spatial_lpips(device))
        errors, index_bits = [], []
        for schedule in UNIFORM_SCHEDULES:
            sent = schedule_mask(schedule, *indices.shape[1:], device)[None]
            decoded = self.decode_pixels(indices, sent, y_hat).clamp(0, 1)
            errors.append(compare_tiled(compare, analysed.image, decoded))
            index_bits.append(-self.index_likelihoods(indices, sent, gained, quality).log2())
        weight = float(rate_weight(quality))
        return choose_regions(torch.cat(errors), torch.cat(index_bits), weight)


def _point(quality: int, schedule: str) -> bytes:
    """What takes a file's header's place in the check of a stream; HybridFlowError if there is no such point."""
    require_schedule(schedule)
    return bytes([require_quality(quality), SCHEDULES.index(schedule)])


def _require_image(x: Tensor) -> None:
    if not x.is_floating_point():
        raise HybridFlowError(f"an image of {x.dtype} has no agreed range: give floats in [0,1]")
    if any(side % STRIDE for side in x.shape[-2:]):
        sides = " x ".join(map(str, x.shape[-2:]))
        mend = f"pad them to multiples of {STRIDE}, or use the codec that hybridflow.load() gives"
        raise HybridFlowError(f"images of {sides} do not fit the strides: {mend}")
