"""What makes the classifiers see more than clean scenes: corruptions, and pictures of nothing.

A reward that only ever saw clean pictures is climbed by noise. So the CLIP towers and the judge
also train on noisy, blurred, jittered and reconstructed scenes, and CLIP on pictures that no
caption describes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor


def signed(images: Tensor) -> Tensor:
    """Pictures of bytes [n, H, W, 3] -> [n, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def corrupt(images: Tensor, vae: AutoencoderTiny | None, generator: torch.Generator) -> Tensor:
    """Mild corruptions of pictures [n, 3, 64, 64] in [-1, 1] that leave what they show intact.

    About one in seven goes through the autoencoder with noise on the latents; then each of blur,
    pixel noise and a jitter of brightness and channel gains is applied with its own chance. What is
    drawn comes from the CPU's generator on any device.
    """
    count = len(images)
    out = images.clone()

    def chosen(chance: float) -> Tensor:
        return torch.rand(count, generator=generator) < chance

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(images.device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    picked = chosen(0.15)
    if vae is not None and picked.any():
        with torch.no_grad():
            latents = vae.encode(out[picked]).latents.float()
            spread = uniform(len(latents), 1, 1, 1) * 0.3 / vae.config.scaling_factor
            latents = latents + spread * normal(*latents.shape)
            out[picked] = vae.decode(latents).sample.float().clamp(-1, 1)
    picked = chosen(0.25)
    if picked.any():
        out[picked] = _blur(out[picked])
    picked = chosen(0.3)
    if picked.any():
        scale = uniform(int(picked.sum()), 1, 1, 1) * 0.25
        out[picked] = out[picked] + scale * normal(*out[picked].shape)
    picked = chosen(0.5)
    if picked.any():
        gain = 1.0 + 0.06 * normal(int(picked.sum()), 3, 1, 1).clamp(-2, 2)
        lift = 0.06 * normal(int(picked.sum()), 1, 1, 1).clamp(-2, 2)
        out[picked] = out[picked] * gain + lift
    return out.clamp(-1, 1)


def nothing(images: Tensor, vae: AutoencoderTiny, generator: torch.Generator) -> Tensor:
    """Pictures [m, 3, 64, 64] that no caption describes, about a sixth of the scenes given.

    In turn: decoded latent noise, two scenes blended, a scene's 16x16 tiles shuffled, a scene lost
    in latent noise, and a scene without its colours' order (channels rolled and inverted).
    """
    each = max(1, len(images) // 25)
    # far apart: neighbours in a batch are near twins
    spread = torch.arange(5 * each) * len(images) // (5 * each)
    a, b, c, d, e = images[spread].chunk(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(images.device)

    unit = 1.0 / vae.config.scaling_factor
    with torch.no_grad():
        noise = unit * normal(each, 4, 16, 16)
        lost = vae.encode(d).latents.float()
        lost = 0.6 * lost + 0.8 * unit * normal(*lost.shape)
        decoded = vae.decode(torch.cat([noise, lost])).sample.float().clamp(-1, 1)
    blended = 0.5 * a + 0.5 * b
    tiles = F.unfold(c, 16, stride=16)
    order = torch.randperm(tiles.shape[-1], generator=generator)
    shuffled = F.fold(tiles[..., order], c.shape[-2:], 16, stride=16)
    return torch.cat([decoded, blended, shuffled, -e.roll(1, dims=1)])


def _blur(images: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4.0
    weight = torch.outer(kernel, kernel).expand(3, 1, 3, 3)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, weight, groups=3).to(images.dtype)
