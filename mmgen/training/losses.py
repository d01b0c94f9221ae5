"""The losses, as functions of predictions and truths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

T_FLOOR = 0.2
ROUND = 0.02  # below it an error counts by its square
UNIFORM_PART = 0.1
# A picture's variance within a fifth of its side that counts as ordinary: the median where something stands.
CONTRAST, CONTRAST_FLOOR, MOST = 0.15, 0.02, 5.0


def sample_times(
    count: int, generator: torch.Generator, device: torch.device, mean: float = 0.2, std: float = 1.1
) -> Tensor:
    """[count] times in (0, 1): logit-normal, one in ten uniform. Source: Esser et al. 2024, arXiv:2403.03206, 3.1."""
    normal = torch.randn(count, generator=generator, device=device)
    uniform = torch.rand(count, generator=generator, device=device)
    use_uniform = torch.rand(count, generator=generator, device=device) < UNIFORM_PART
    return torch.where(use_uniform, uniform, torch.sigmoid(mean + std * normal)).clamp(1e-4, 1 - 1e-4)


def velocity_loss(x0_pred: Tensor, x0: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    """[B]: mean squared error of v = (x_t - x0) / t where x0 was predicted; t is held above 0.2.

    Below that the finest detail would outweigh all structure: at 0.05 seven tenths of the loss came from t < 1/3.
    weight: [B, 1, H, W], of the pixels; None: all alike."""
    scale = 1 / t.clamp_min(T_FLOOR)
    wrong = (x0_pred.float() - x0).square()
    if weight is not None:
        wrong = wrong * weight
    return wrong.flatten(1).mean(1) * scale.square()


def charbonnier(wrong: Tensor) -> Tensor:
    """An error's size, smooth around 0: edges come out sharper than by its square, whose least is the mean of all that
    could be. Source: Lai et al. 2017 (LapSRN), arXiv:1704.03915, section 3.2."""
    return (wrong.square() + ROUND**2).sqrt()


def contrast_weight(x0: Tensor, layout: Tensor) -> Tensor:
    """[B, 1, H, W]: 1 where nothing stands, more where something stands that hardly differs from its surroundings.

    Its squared error is small however it is drawn, so that without this an orange cat on orange sand is learned last.
    x0: [B, 3, H, W]. layout: [B, P, G, G], 0 in its first property where nothing stands.
    """
    window = x0.shape[-1] // 10 * 2 + 1

    def blurred(values: Tensor) -> Tensor:
        for across in ((window, 1), (1, window)):
            reach = (across[0] // 2, across[1] // 2)
            values = F.avg_pool2d(values, across, 1, reach, count_include_pad=False)
        return values

    variance = (blurred(x0.square()) - blurred(x0).square()).mean(1, keepdim=True)
    inverse = (CONTRAST / (variance.clamp_min(0) + CONTRAST_FLOOR)).clamp_max(MOST)
    there = F.interpolate((layout[:, :1] > 0).float(), x0.shape[-2:])
    return torch.lerp(torch.ones_like(inverse), inverse, there)


def contrastive_loss(image_embed: Tensor, text_embed: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric cross entropy over the batch's cosine similarities. Source: CLIP, arXiv:2103.00020, figure 3."""
    # `float` alone would not keep autocast from multiplying in bfloat16, which is a few per cent off in the gradient
    with torch.autocast(image_embed.device.type, enabled=False):
        logits = log_scale.exp() * image_embed.float() @ text_embed.float().T
    target = torch.arange(len(logits), device=logits.device)
    forwards = F.cross_entropy(logits, target)
    return (forwards + F.cross_entropy(logits.T, target)) / 2


def by_noise_level(losses: Tensor, t: Tensor) -> dict[str, float]:
    """Mean loss in the lower, middle and upper third of the times, where there are any."""
    thirds = (t * 3).long().clamp(0, 2)
    names = ("low", "mid", "high")
    return {
        f"loss_{name}": losses[thirds == i].mean().item()
        for i, name in enumerate(names)
        if bool((thirds == i).any())
    }
