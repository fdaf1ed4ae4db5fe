"""The training stages: which parts each trains, how it starts, and its loss (DESIGN section 6)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridflow.ablation import Ablations
from hybridflow.container import QUALITIES
from hybridflow.continuous import Latent
from hybridflow.losses import Distortion, bits, masked_cross_entropy, rate_weight
from hybridflow.masking import random_mask
from hybridflow.model import HybridFlow
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.revive import revive_latents


def copy_matching(source: nn.Module, target: nn.Module) -> None:
    """Copy every weight whose name and shape agree."""
    own = target.state_dict()
    own.update({k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape})
    target.load_state_dict(own)


class Stage(nn.Module):
    """A stage holds the whole model; `trained` names what its optimiser moves.

    Attributes:
        trained: part names, of the model or of the ablations.
    """

    trained: tuple[str, ...] = ()

    def __init__(
        self, model: HybridFlow, ablations: Ablations, config: TrainConfig, photos: PhotoSet, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model, self.ablations, self.config = model, ablations, config
        self.photos, self.generator = photos, generator
        self.distortion = Distortion()
        for name in self.trained:
            if not hasattr(model, name) and not hasattr(ablations, name):
                raise AttributeError(f"stage trains an unknown part {name!r}")
        for owner in (model, ablations):
            for name, part in owner.named_children():
                part.requires_grad_(name in self.trained)

    def train(self, mode: bool = True) -> "Stage":
        """Only the trained parts go into training mode: frozen ones round, and their codebooks stand still."""
        super().train(False)
        for owner in (self.model, self.ablations):
            for name, part in owner.named_children():
                part.train(mode and name in self.trained)
        return self

    def begin(self, loaded: set[str]) -> None:
        """Start the trained parts from what earlier stages left. Not called on resume.

        Args:
            loaded: names of the parts whose weights were loaded.
        """

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B,3,H,W) in [0,1] and the share of the stage that has passed -> scalar loss, terms to log."""
        raise NotImplementedError

    def revive(self) -> None:
        """Wake the silent channels of y_c, judged on a few crops, if the rate is relaxed enough to keep them awake."""
        if self.config.relaxed_rate < 1:
            revive_latents(self.model, self.ablations, self.photos.crops(16, self.config.crop, self.generator).cpu())

    def random_quality(self, batch: int, device) -> Tensor:
        return torch.randint(QUALITIES, (batch,), device=device)

    def rate_weight(self, quality: Tensor, progress: float) -> Tensor:
        """lambda (B,) in loss per bpp, relaxed at the stage's start."""
        remaining = 1 - min(1.0, progress / max(self.config.relaxed_until, 1e-9))
        return self.config.relaxed_rate**remaining * rate_weight(quality)


class Tokenizer(Stage):
    """E_vq, codebook and D_vq: L1 + LPIPS + commitment. The quantiser joins after `quantise_from` of the stage."""

    trained = ("codebook_encoder", "codebook", "pixel_decoder")

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        codebook = self.model.codebook
        y_vq = self.model.codebook_encoder(x)
        logs = {}
        if progress < self.config.quantise_from:
            codes, commitment = y_vq, 1e-3 * y_vq.float().square().mean()
        else:
            if not codebook.started:
                codebook.start(self._vectors(x))
            quantised = codebook(y_vq)
            codes, commitment = quantised.codes, quantised.commitment
            share = torch.bincount(quantised.indices.flatten()).float() / quantised.indices.numel()
            logs["perplexity"] = torch.special.entr(share).sum().exp()
        distortion, terms = self.distortion(x, self.model.pixel_decoder(codes))
        loss = distortion.mean() + self.config.commitment_weight * commitment
        return loss, logs | terms | {"commitment": commitment.detach()}

    @torch.no_grad()
    def _vectors(self, x: Tensor, per_code: int = 16) -> Tensor:
        """Enough encoder outputs (N,C) of fresh crops for k-means."""
        vectors, wanted = [], per_code * self.model.codebook.num_codes
        while sum(len(v) for v in vectors) < wanted:
            crops = self.photos.crops(len(x), x.shape[-1], self.generator).to(x.device)
            vectors.append(self.model.codebook_encoder(crops).permute(0, 2, 3, 1).flatten(0, 2))
        return torch.cat(vectors)


class Continuous(Stage):
    """E_c, its entropy model and the light synthesis (a replica that starts from D_vq): rate + L1 + LPIPS."""

    trained = ("continuous", "light_synthesis")

    def begin(self, loaded: set[str]) -> None:
        copy_matching(self.model.pixel_decoder, self.ablations.light_synthesis)
        copy_matching(self.model.codebook_encoder, self.model.continuous.analysis)
        self.revive()

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        quality = self.random_quality(len(x), x.device)
        latent = self.model.continuous(x, quality)
        distortion, terms = self.distortion(x, self.ablations.light_synthesis(latent.y_hat))
        bpp = latent_bpp(latent.likelihoods, x)
        loss = (distortion + self.rate_weight(quality, progress) * bpp).mean()
        return loss, terms | {"bpp": bpp.mean().detach()}


class PredictorStage(Stage):
    """Token transformer, its blind ablation, and the index prior: cross-entropy, on frozen streams."""

    trained = ("predictor", "blind_predictor", "index_prior")

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        quality = self.random_quality(len(x), x.device)
        with torch.no_grad():
            indices = model.indices_of(x)
            latent = model.continuous(x, quality)
        sent = random_mask(*indices.shape, device=x.device)
        guided = masked_cross_entropy(model.predictor(indices, sent, latent.y_hat), indices, sent)
        blind = masked_cross_entropy(self.ablations.blind_predictor(indices, sent, latent.y_hat), indices, sent)
        sent_bits = index_bits(
            model, indices, random_mask(*indices.shape, device=x.device), latent.y_gained, quality
        )
        terms = {
            "masked_bits": guided.detach() / math.log(2),
            "blind_bits": blind.detach() / math.log(2),
            "index_bits": sent_bits.detach(),
        }
        return guided + blind + sent_bits * math.log(2), terms


def index_bits(model: HybridFlow, indices: Tensor, sent: Tensor, y_gained: Tensor, quality: Tensor) -> Tensor:
    """Mean bits of a sent index under the index prior, a scalar."""
    likelihoods = model.index_likelihoods(indices, sent, y_gained, quality)
    return bits(likelihoods).sum() / sent.sum().clamp(min=1)


def latent_bpp(likelihoods: dict[str, Tensor], x: Tensor) -> Tensor:
    """Estimated bits per pixel (B,) of y and z."""
    return (bits(likelihoods["y"]) + bits(likelihoods["z"])) / (x.shape[-1] * x.shape[-2])


class Merged(NamedTuple):
    """A batch through both streams and the pixel decoder."""

    distortion: Tensor
    """(B,)."""
    terms: dict[str, Tensor]
    """To log; "masked_bits" of the predictor with its gradient."""
    indices: Tensor
    latent: Latent
    quality: Tensor


class CorrectionStage(Stage):
    """D_corr and its joins, everything else frozen: L1 + LPIPS. D_corr starts from the light synthesis's trunk, itself
    a replica that started from D_vq and has learned to read y^_c."""

    trained = ("correction",)

    def begin(self, loaded: set[str]) -> None:
        self.model.correction.trunk.load_state_dict(self.ablations.light_synthesis.trunk.state_dict())

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        merged = self.merge(x)
        return merged.distortion.mean(), merged.terms

    def merge(self, x: Tensor) -> Merged:
        """Images (B,3,H,W) in [0,1], at random qualities and with random indices sent."""
        model = self.model
        quality = self.random_quality(len(x), x.device)
        with torch.no_grad():
            indices = model.indices_of(x)
        latent = model.continuous(x, quality)
        sent = random_mask(*indices.shape, device=x.device)
        logits = model.predictor(indices, sent, latent.y_hat)
        x_hat = model.pixel_decoder(model.fill_in(indices, sent, logits), model.correction(latent.y_hat))
        distortion, terms = self.distortion(x, x_hat)
        terms["masked_bits"] = masked_cross_entropy(logits, indices, sent) / math.log(2)
        return Merged(distortion, terms, indices, latent, quality)


class Joint(CorrectionStage):
    """Continuous codec, D_corr and D_vq together, predictor and index prior following: rate + L1 + LPIPS.

    E_vq and the codebook stay frozen, so that indices keep their meaning.
    """

    trained = ("continuous", "correction", "pixel_decoder", "predictor", "index_prior")

    def begin(self, loaded: set[str]) -> None:
        """Goes on from the correction stage, whose streams alone are kept for ablations, or from an earlier joint."""
        if "continuous_alone" not in loaded:
            self.ablations.codebook_decoder.load_state_dict(self.model.pixel_decoder.state_dict())
            self.ablations.continuous_alone.load_state_dict(self.model.continuous.state_dict())
        self.revive()

    def loss(self, x: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        distortion, terms, indices, latent, quality = self.merge(x)
        sent = random_mask(*indices.shape, device=x.device)
        terms["index_bits"] = index_bits(self.model, indices, sent, latent.y_gained.detach(), quality)
        bpp = latent_bpp(latent.likelihoods, x)
        loss = (distortion + self.rate_weight(quality, progress) * bpp).mean()
        loss = loss + self.config.index_weight * (terms["masked_bits"] + terms["index_bits"])
        return loss, {name: term.detach() for name, term in (terms | {"bpp": bpp.mean()}).items()}


class Refit(Joint):
    """What reads the frozen bits: index prior, predictor, D_corr and D_vq."""

    trained = ("correction", "pixel_decoder", "predictor", "index_prior")

    def begin(self, loaded: set[str]) -> None:
        """Goes on from where the joint stage stopped."""


STAGES = {
    "tokenizer": Tokenizer,
    "continuous": Continuous,
    "predictor": PredictorStage,
    "correction": CorrectionStage,
    "joint": Joint,
    "refit": Refit,
}
