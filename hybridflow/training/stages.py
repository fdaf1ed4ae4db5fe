"""The training stages: which parts each trains, how it starts, and its loss."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridflow.ablation import Ablations
from hybridflow.checkpoint import makes_bits
from hybridflow.codebook import Codebook
from hybridflow.container import QUALITIES
from hybridflow.continuous import ContinuousCodec, Latent
from hybridflow.draws import Draws
from hybridflow.errors import CheckpointError, TrainingError
from hybridflow.exact import IntegerNetwork
from hybridflow.losses import (
    Distortion,
    bits,
    masked_accuracy,
    masked_cross_entropy,
    rate_weight,
    typical_count,
)
from hybridflow.masking import random_mask
from hybridflow.model import HybridFlow
from hybridflow.training.config import TrainConfig
from hybridflow.training.data import PhotoSet
from hybridflow.training.discriminator import Adversary
from hybridflow.training.noise import NoiseByDraws
from hybridflow.training.revive import revive_latents


def copy_matching(source: nn.Module, target: nn.Module) -> None:
    """Copy every weight whose name and shape agree."""
    own = target.state_dict()
    own.update({k: v for k, v in source.state_dict().items() if k in own and own[k].shape == v.shape})
    target.load_state_dict(own)


def thaw(part: nn.Module) -> None:
    """Forget the integers frozen from a part that is about to change."""
    for module in part.modules():
        if isinstance(module, IntegerNetwork):
            module.thaw()


class Stage(nn.Module):
    """A stage holds the whole model; `trained` names what its optimiser moves.

    Attributes:
        trained: part names, of the model or of the ablations.
        reads: names of parts that have to have been trained before.
        kept: names of the ablations' parts that it sets aside at its start.
        keeps_bits: whether what makes bits of the trained parts stands still, with the integers frozen from it.
        takes: weights of the configuration that it may set over 0, of those that not every stage takes.
        decoder: what it decodes with, one of `hybridflow.weights.DECODERS`.
        turns: methods like `loss`, which a step calls one after the other, each with optimisers of its own for
            `parameters_of` it.
    """

    trained: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    keeps_bits = False
    takes: tuple[str, ...] = ()
    decoder = "fidelity"

    def __init__(self, model: HybridFlow, ablations: Ablations, config: TrainConfig, photos: PhotoSet) -> None:
        super().__init__()
        self.model, self.ablations, self.config, self.photos = model, ablations, config, photos
        self.distortion = Distortion(config.grid_weight, config.texture_weight, config.mse_weight)
        self.adversary = None
        if config.adversarial_weight > 0:
            self.adversary = Adversary(config.adversarial_weight, config.adversarial_from)
        self.turns = ("loss",) if self.adversary is None else ("loss", "judge")
        self.noise = NoiseByDraws(model.continuous, ablations.continuous_alone)
        for name in self.trained:
            if not hasattr(model, name) and not hasattr(ablations, name):
                raise AttributeError(f"stage trains an unknown part {name!r}")
        for owner in (model, ablations):
            for name, part in owner.named_children():
                part.requires_grad_(name in self.trained)
                if name in self.trained and not self.keeps_bits:
                    thaw(part)
        if self.keeps_bits:
            for name, parameter in model.named_parameters():
                if makes_bits(name):
                    parameter.requires_grad_(False)

    @classmethod
    def refuse_settings(cls, config: TrainConfig) -> None:
        """TrainingError if the configuration sets a weight that only other stages take."""
        for setting in sorted({name for stage in STAGES.values() for name in stage.takes} - {*cls.takes}):
            if getattr(config, setting) > 0:
                takers = " or ".join(name for name, stage in STAGES.items() if setting in stage.takes)
                raise TrainingError(f"{setting} is for the {takers} stage: leave it at 0 here")

    def forward(self, turn: str, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one of `turns`; what every random number comes of is `draws`."""
        self.noise.draws = draws
        return getattr(self, turn)(x, draws, progress)

    def parameters_of(self, turn: str) -> dict[str, nn.Parameter]:
        """What the optimisers of one of `turns` move, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name.startswith("adversary.") == (turn == "judge")
        }

    def train(self, mode: bool = True) -> "Stage":
        """Only the trained parts go into training mode: frozen ones round, and their codebooks stand still."""
        super().train(False)
        self.training = mode
        for owner in (self.model, self.ablations):
            for name, part in owner.named_children():
                part.train(mode and name in self.trained)
        if self.adversary is not None:
            self.adversary.train(mode)
        return self

    def begin(self, loaded: set[str]) -> None:
        """Start the trained parts from what earlier stages left. Not called on resume.

        Args:
            loaded: names of the parts whose weights were loaded.
        """

    def prepare(self, progress: float) -> None:
        """Do what is due before a step, outside of the graph and the same in every process."""

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B,3,H,W) in [0,1] and the share of the stage that has passed -> scalar loss, scalars to log, detached
        and always of the same names."""
        raise NotImplementedError

    def judge(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on what `loss` decoded."""
        return self.adversary.judge(progress)

    def fool(
        self, x: Tensor, x_hat: Tensor, distortion: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar distortion of images (B,3,H,W) in [0,1], and, while training against a discriminator, what
        fooling it adds; terms to log."""
        if self.adversary is None or not self.training:
            return distortion, {}
        last_layer = self.model.parts_of(self.decoder).pixel_decoder.head[-1].weight
        added, terms = self.adversary.fool(x, x_hat, distortion, last_layer, progress)
        return distortion + added, terms

    def reconstruct(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B,3,H,W) in [0,1] at the middle quality -> what is decoded (B,3,H,W) and bits per pixel by part."""
        out = self.model(x, QUALITIES // 2, decoder=self.decoder)
        return out["x_hat"], bpp_by_part(out["likelihoods"], x)

    @property
    def comparable(self) -> bool:
        """Whether validations from now on can be compared with each other."""
        return True

    def extra_crops(self, count: int, last: int = 0) -> Tensor:
        """Crops (count,3,crop,crop) in [0,1] of sample numbers that end before -last: of none that is trained on."""
        samples = torch.arange(-last - count, -last, device=self.photos.device)
        return self.photos.crops(self.config.crop, Draws(self.config.seed, -1, samples))

    def rate_weight(self, quality: Tensor, progress: float) -> Tensor:
        """lambda (B,) in loss per bpp, relaxed at the stage's start."""
        remaining = 1 - min(1.0, progress / max(self.config.relaxed_until, 1e-9))
        return self.config.relaxed_rate**remaining * rate_weight(quality)


class Tokenizer(Stage):
    """E_vq, codebook and D_vq: distortion + commitment, and a discriminator if `adversarial_weight` says so. The
    quantiser joins after `quantise_from` of the stage."""

    trained = ("codebook_encoder", "codebook", "pixel_decoder")
    takes = ("adversarial_weight",)

    @property
    def comparable(self) -> bool:
        return bool(self.model.codebook.started)

    def prepare(self, progress: float) -> None:
        codebook = self.model.codebook
        if progress >= self.config.quantise_from and not codebook.started:
            codebook.start(self._vectors(), Draws(self.config.seed, -1, codebook.codewords.new_zeros(1).long()))

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        codebook = self.model.codebook
        y_vq = self.model.codebook_encoder(x)
        if codebook.started:
            codes, _, commitment = codebook(y_vq, draws)
        else:
            codes, commitment = y_vq, 1e-3 * y_vq.float().square().mean()
        x_hat = self.model.pixel_decoder(codes)
        distortion, terms = self.distortion(x, x_hat, draws)
        loss, fooling = self.fool(x, x_hat, distortion.mean(), progress)
        loss = loss + self.config.commitment_weight * commitment
        return loss, terms | fooling | {"commitment": commitment.detach(), "perplexity": codebook.perplexity}

    def reconstruct(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        codebook = self.model.codebook
        codes = self.model.codebook_encoder(x)
        if codebook.started:
            codes = codebook(codes).codes
        return self.model.pixel_decoder(codes), {"bpp_indices": uncoded_bpp(codebook, codes, x)}

    @torch.no_grad()
    def _vectors(self) -> Tensor:
        """Enough encoder outputs (N,C) of fresh crops for k-means: 16 a codeword."""
        device, vectors = self.model.codebook.codewords.device, []
        while sum(len(v) for v in vectors) < 16 * self.model.codebook.num_codes:
            crops = self.extra_crops(16, last=16 * len(vectors)).to(device)
            vectors.append(self.model.codebook_encoder(crops).permute(0, 2, 3, 1).flatten(0, 2))
        return torch.cat(vectors)


class Continuous(Stage):
    """E_c, which starts from E_vq, its entropy model, and the light synthesis, a replica that starts from D_vq:
    rate + distortion."""

    trained = ("continuous", "light_synthesis")

    @property
    def codec(self) -> ContinuousCodec:
        return self.model.continuous

    @property
    def synthesis(self) -> nn.Module:
        """y^_c -> image."""
        return self.ablations.light_synthesis

    def begin(self, loaded: set[str]) -> None:
        """Parts that were loaded are gone on with; silent channels of a new y_c are woken, judged on a few crops, if a
        relaxed rate lets them stay awake."""
        if "light_synthesis" not in loaded:
            copy_matching(self.model.pixel_decoder, self.synthesis)
        if "continuous" not in loaded:
            copy_matching(self.model.codebook_encoder, self.codec.analysis)
            if self.config.relaxed_rate < 1:
                revive_latents(self.codec, self.synthesis, self.extra_crops(16).cpu())

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        quality = draws.integers(QUALITIES)
        latent = self.codec(x, quality)
        distortion, terms = self.distortion(x, self.synthesis(latent.y_hat), draws)
        parts = bpp_by_part(latent.likelihoods, x)
        loss = (distortion + self.rate_weight(quality, progress) * sum(parts.values())).mean()
        return loss, terms | batch_means(parts)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        latent = self.codec(x, torch.full((len(x),), QUALITIES // 2, device=x.device))
        return self.synthesis(latent.y_hat), bpp_by_part(latent.likelihoods, x)


class Baseline(Continuous):
    """The continuous stream alone, with a decoder of the hybrid's cost, from all that the hybrid knows:
    rate + distortion, or rate + MSE if `mse_weight` says so. It is what the hybrid has to beat."""

    trained = ("continuous_alone", "continuous_decoder")
    reads = ("codebook", "pixel_decoder", "continuous", "correction")
    takes = ("mse_weight",)

    @property
    def codec(self) -> ContinuousCodec:
        return self.ablations.continuous_alone

    @property
    def synthesis(self) -> nn.Module:
        return self.ablations.continuous_decoder

    def begin(self, loaded: set[str]) -> None:
        """Starts from the hybrid's own parts, at the mean codeword everywhere."""
        self.codec.load_state_dict(self.model.continuous.state_dict())
        thaw(self.codec)
        self.synthesis.pixel_decoder.load_state_dict(self.model.pixel_decoder.state_dict())
        self.synthesis.correction.load_state_dict(self.model.correction.state_dict())
        last = self.synthesis.entry[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(self.model.codebook.codewords.mean(0))


class CodebookOnly(Stage):
    """D_vq of the codebook stream alone, from where the tokenizer left it, around frozen indices: distortion. Half of
    the samples send all indices, the others some, and what does not see y^_c fills in the rest. It is what the hybrid
    has to beat, too."""

    trained = ("codebook_decoder",)
    reads = ("codebook_encoder", "codebook", "blind_predictor", *trained)

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            indices = self.model.indices_of(x)
            sent = random_mask(draws, *indices.shape[1:]) | (draws.uniform(1, 1) < 0.5)
            codes = self.model.fill_in(indices, sent, self.ablations.blind_predictor(indices, sent))
        distortion, terms = self.distortion(x, self.ablations.codebook_decoder(codes), draws)
        return distortion.mean(), terms

    def reconstruct(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        codes = self.model.codebook.lookup(self.model.indices_of(x))
        return self.ablations.codebook_decoder(codes), {"bpp_indices": uncoded_bpp(self.model.codebook, codes, x)}


class PredictorStage(Stage):
    """Token transformer, its blind ablation, and the index prior: cross-entropy, on frozen streams."""

    trained = ("predictor", "blind_predictor", "index_prior")
    reads = ("codebook_encoder", "codebook", "continuous")

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        quality = draws.integers(QUALITIES)
        with torch.no_grad():
            indices = model.indices_of(x)
            latent = model.continuous(x, quality)
        sent, other_sent = (random_mask(draws, *indices.shape[1:]) for _ in range(2))
        logits = model.predictor(indices, sent, latent.y_hat)
        guided = masked_cross_entropy(logits, indices, sent)
        blind = masked_cross_entropy(self.ablations.blind_predictor(indices, sent), indices, sent)
        sent_bits = index_bits(model, indices, other_sent, latent.y_gained, quality)
        terms = {
            "masked_bits": guided.detach() / math.log(2),
            "masked_accuracy": masked_accuracy(logits, indices, sent),
            "blind_bits": blind.detach() / math.log(2),
            "index_bits": sent_bits.detach(),
        }
        return guided + blind + sent_bits * math.log(2), terms


def index_bits(model: HybridFlow, indices: Tensor, sent: Tensor, y_gained: Tensor, quality: Tensor) -> Tensor:
    """Mean bits of a sent index under the index prior, a scalar."""
    likelihoods = model.index_likelihoods(indices, sent, y_gained, quality)
    return bits(likelihoods).sum() / typical_count(sent)


def bpp_by_part(likelihoods: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Estimated bits per pixel (B,) of each part of the stream: "bpp_y", "bpp_z", "bpp_indices".

    In training y counts 0.03 to 0.07 bpp that no file pays: noise on symbols of the smallest scale, which a file leaves
    out.
    """
    return {f"bpp_{part}": bits(values) / x[0, 0].numel() for part, values in likelihoods.items()}


def uncoded_bpp(codebook: Codebook, codes: Tensor, x: Tensor) -> Tensor:
    """Bits per pixel (B,) of images (B,3,H,W) if each of their codes (B,C,h,w) is sent as an index of fixed length."""
    return x.new_full((len(x),), math.log2(codebook.num_codes) * codes[0, 0].numel() / x[0, 0].numel())


def batch_means(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Terms (B,) as scalars to log."""
    return {name: term.mean().detach() for name, term in terms.items()}


class Merged(NamedTuple):
    """A batch through both streams and the pixel decoder."""

    x_hat: Tensor
    """(B,3,H,W)."""
    distortion: Tensor
    """(B,)."""
    terms: dict[str, Tensor]
    """To log."""
    masked_bits: Tensor
    """Of the predictor, a scalar, with its gradient."""
    indices: Tensor
    latent: Latent
    quality: Tensor


class CorrectionStage(Stage):
    """D_corr and its joins, everything else frozen: distortion. D_corr starts from the light synthesis's trunk, itself
    a replica that started from D_vq and has learned to read y^_c. The codebook stream's decoder is kept, a baseline."""

    trained = ("correction",)
    reads = ("codebook_encoder", "codebook", "pixel_decoder", "continuous", "light_synthesis", "predictor")
    kept = ("codebook_decoder",)

    def begin(self, loaded: set[str]) -> None:
        if "codebook_decoder" not in loaded:
            self.ablations.codebook_decoder.load_state_dict(self.model.pixel_decoder.state_dict())
        if "correction" not in loaded:
            self.model.correction.trunk.load_state_dict(self.ablations.light_synthesis.trunk.state_dict())

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        merged = self.merge(x, draws)
        return merged.distortion.mean(), merged.terms

    def merge(self, x: Tensor, draws: Draws) -> Merged:
        """Images (B,3,H,W) in [0,1], at random qualities and with random indices sent."""
        model = self.model
        quality = draws.integers(QUALITIES)
        with torch.no_grad():
            indices = model.indices_of(x)
        latent = model.continuous(x, quality)
        sent = random_mask(draws, *indices.shape[1:])
        logits = model.predictor(indices, sent, latent.y_hat)
        x_hat = model.merge(model.fill_in(indices, sent, logits), latent.y_hat, decoder=self.decoder)
        distortion, terms = self.distortion(x, x_hat, draws)
        masked_bits = masked_cross_entropy(logits, indices, sent) / math.log(2)
        terms |= {"masked_bits": masked_bits.detach(), "masked_accuracy": masked_accuracy(logits, indices, sent)}
        return Merged(x_hat, distortion, terms, masked_bits, indices, latent, quality)


class Joint(CorrectionStage):
    """Continuous codec, D_corr and D_vq together, predictor and index prior following: rate + distortion.

    E_vq and the codebook stay frozen, so that indices keep their meaning.
    """

    trained = ("continuous", "correction", "pixel_decoder", "predictor", "index_prior")
    reads = ("codebook_encoder", "codebook", *trained)
    kept = ()

    def begin(self, loaded: set[str]) -> None:
        """Every part is gone on with."""

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        merged = self.merge(x, draws)
        sent = random_mask(draws, *merged.indices.shape[1:])
        sent_bits = index_bits(self.model, merged.indices, sent, merged.latent.y_gained.detach(), merged.quality)
        loss, terms = self.rate_and_distortion(x, merged, progress)
        bpp_indices = sent_bits.detach() * typical_count(sent) / x[:, 0].numel()
        terms |= {"index_bits": sent_bits.detach(), "bpp_indices": bpp_indices}
        return loss + self.config.index_weight * sent_bits, terms

    def rate_and_distortion(self, x: Tensor, merged: Merged, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of images (B,3,H,W) in [0,1] but for the bits of sent indices, and terms to log."""
        parts = bpp_by_part(merged.latent.likelihoods, x)
        loss = (merged.distortion + self.rate_weight(merged.quality, progress) * sum(parts.values())).mean()
        return loss + self.config.index_weight * merged.masked_bits, merged.terms | batch_means(parts)


class Refit(Joint):
    """What reads the frozen bits: index prior, predictor, D_corr and D_vq."""

    trained = ("correction", "pixel_decoder", "predictor", "index_prior")

    def begin(self, loaded: set[str]) -> None:
        """Goes on from `freeze`, which made y^_c what files will hold.

        Raises:
            CheckpointError: the continuous stream is not frozen.
        """
        if not self.model.continuous.exact.frozen:
            mend = "run `hybridflow freeze` on the joint stage's weights"
            raise CheckpointError(f"this stage trains around frozen bits: {mend}")


class Transforms(Refit):
    """All that surrounds the frozen bits: E_c up to what is coded, D_vq, D_corr and the predictor: rate + distortion.

    Files that were written before stay readable, and a perceptual decoder stays one of this model. While training, y^_c
    is that of the floats that the integers were frozen from, through which gradients pass; it is as near to y_c.
    """

    trained = ("continuous", "correction", "pixel_decoder", "predictor")
    keeps_bits = True

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        return self.rate_and_distortion(x, self.merge(x, draws), progress)


class Perceptual(Refit):
    """A second D_vq and D_corr, with all that makes bits and the first pair frozen: distortion, that of textures, and a
    discriminator if `adversarial_weight` says so."""

    trained = ("perceptual",)
    takes = ("adversarial_weight", "texture_weight")
    decoder = "perceptual"

    def begin(self, loaded: set[str]) -> None:
        """Starts from the first pair, or goes on from a second one that was loaded."""
        super().begin(loaded)
        if "perceptual" not in loaded:
            for name, part in self.model.perceptual.named_children():
                part.load_state_dict(getattr(self.model, name).state_dict())

    def loss(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        merged = self.merge(x, draws)
        loss, fooling = self.fool(x, merged.x_hat, merged.distortion.mean(), progress)
        return loss, merged.terms | fooling


STAGES = {
    "tokenizer": Tokenizer,
    "continuous": Continuous,
    "predictor": PredictorStage,
    "correction": CorrectionStage,
    "joint": Joint,
    "refit": Refit,
    "transforms": Transforms,
    "baseline": Baseline,
    "codebook-only": CodebookOnly,
    "perceptual": Perceptual,
}
