"""What a stage is worth on images that it never trains on."""

import torch
from torch import Tensor

from hybridflow.draws import Draws
from hybridflow.training.stages import Stage, batch_means

BATCH = 8


@torch.no_grad()
def validate(stage: Stage, crops: Tensor) -> tuple[dict[str, float], Tensor]:
    """Measure a stage with the weights it has now.

    Args:
        crops: (N,3,H,W) in [0,1], on the stage's device; always the same ones.

    Returns:
        The stage's own loss at its end, with the same random numbers every time; PSNR in dB of 8-bit RGB per image;
        LPIPS; bits per pixel, whole and by part, where rates are estimated at the middle quality: all means over the
        crops; the share of the codewords that the crops use, and the perplexity of that use, at most their number; and
        the reconstructions (N,3,H,W) in [0,1].
    """
    stage.eval()
    sums, reconstructions = {}, []
    uses = torch.zeros(stage.model.codebook.num_codes, device=crops.device)
    for first in range(0, len(crops), BATCH):
        x = crops[first : first + BATCH]
        draws = Draws(0, 0, torch.arange(first, first + len(x), device=x.device))
        loss, _ = stage("loss", x, draws, 1.0)
        x_hat, parts = stage.reconstruct(x)
        x_hat = x_hat.float().clamp(0, 1)
        error = ((255 * x_hat).round() - 255 * x).square().flatten(1).mean(1)
        figures = {
            "psnr": 10 * (255**2 / error.clamp(min=1e-3)).log10(),
            "lpips": stage.distortion.lpips(2 * x - 1, 2 * x_hat - 1).flatten().float(),
            "bpp": sum(parts.values()),
        }
        for name, value in ({"loss": loss} | batch_means(figures | parts)).items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(x)
        uses += stage.model.indices_of(x).flatten().bincount(minlength=len(uses))
        reconstructions.append(x_hat)
    stage.train()
    means = {name: total / len(crops) for name, total in sums.items()}
    perplexity = torch.special.entr(uses / uses.sum()).sum().exp()
    use = {"codebook_usage": float((uses > 0).float().mean()), "codebook_perplexity": float(perplexity)}
    return means | use, torch.cat(reconstructions)
