"""The DNO paper's toys: a tiny diffusion model of points in the plane, for uniform data on a shape.

    python benchmarks/dno/toy_model.py ring --work runs/dno_toys

A toy is a `FrozenModel` whose latents are points, so the shipped sampler (`Trajectory`), space
(`Noise`), solvers and regulariser run on it as they do on a text-to-image model; only `decode`
differs: it returns points [n, 2] in place of pictures. Training takes some ten seconds on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiller.core.rng import Stream, keyed_generator
from tiller.models.base import Conditioning, FrozenModel, SamplerSettings
from tiller.models.trajectory import Trajectory
from tiller.spaces.noise import Noise

INNER, OUTER = 0.8, 1.2  # the ring's radii (DNO, section 2.1)
TIMESTEPS = 1000  # of training; sampled in 50 steps, as everywhere in the paper


def ring(n: int, generator: torch.Generator) -> Tensor:
    """`n` points [n, 2], uniform between the radii .8 and 1.2."""
    u, v = torch.rand(2, n, generator=generator)
    radius = (INNER**2 + (OUTER**2 - INNER**2) * u).sqrt()
    angle = 2 * math.pi * v
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def line(n: int, generator: torch.Generator) -> Tensor:
    """`n` points [n, 2], uniform on the segment from (-1, 0) to (1, 0) (DNO, appendix B)."""
    x = 2 * torch.rand(n, generator=generator) - 1
    return torch.stack([x, torch.zeros(n)], dim=1)


def off_ring(points: Tensor) -> Tensor:
    """Distance [n] of points [n, 2] to the ring; 0 on it."""
    radius = points.norm(dim=1)
    return (INNER - radius).clamp(min=0) + (radius - OUTER).clamp(min=0)


def off_line(points: Tensor) -> Tensor:
    """Distance [n] of points [n, 2] to the segment; 0 on it."""
    beyond = (points[:, 0].abs() - 1).clamp(min=0)
    return torch.hypot(beyond, points[:, 1])


SHAPES = {"ring": ring, "line": line}
DISTANCES = {"ring": off_ring, "line": off_line}


@dataclass(frozen=True)
class Training:
    """How a toy is trained: Adam with a cosine decay to 0 on the error of the predicted noise.

    Attributes:
        shape: "ring" or "line".
        width: numbers in each of the three hidden layers.
        steps: of Adam.
        batch: points a step.
        lr: Adam's first learning rate.
        seed: of the weights and of the data.
    """

    shape: str = "ring"
    width: int = 64
    steps: int = 10_000
    batch: int = 512
    lr: float = 3e-3
    seed: int = 0

    @property
    def file(self) -> str:
        """A file name that is another one for other settings."""
        digest = hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=6).hexdigest()
        return f"toy-{self.shape}-{digest}.safetensors"


class Denoiser(nn.Module):
    """epsilon(x_t, t) for points x_t [n, 2]: three hidden layers, the timestep as waves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point, self.time = nn.Linear(2, width), nn.Linear(16, width)
        self.middle = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise [n, 2] in x [n, 2] at timesteps t, [n] or one for all."""
        phases = (t.float() / TIMESTEPS).unsqueeze(-1) * math.pi * 2.0 ** torch.arange(8)
        waves = torch.cat([phases.sin(), phases.cos()], dim=-1)
        out: Tensor = self.last(self.middle(self.point(x) + self.time(waves)))
        return out


def scheduler() -> DDIMScheduler:
    """DDIM on DDPM's linear schedule; the last step lands on x0 without noise."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def train(settings: Training) -> Denoiser:
    """A trained denoiser; the same for the same settings on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Denoiser(settings.width)
    alphas = scheduler().alphas_cumprod
    generator = keyed_generator(settings.seed, "toy training")
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        x0 = SHAPES[settings.shape](settings.batch, generator)
        t = torch.randint(TIMESTEPS, (settings.batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        alpha = alphas[t, None]
        predicted = network(alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t)
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return network


class Toy(FrozenModel):
    """A trained toy. Its latents [n, 2, 1, 1] are points, and `decode` returns them as [n, 2]."""

    def __init__(self, network: Denoiser, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.source, self.options = name, None, {}
        self.defaults = SamplerSettings(50, 1.0, eta=1.0, height=1, width=1)
        self.latent_shape, self.latent_scale = (2, 1, 1), 1
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.scheduler = scheduler()

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """Nothing: a toy is not told what to draw."""
        return Conditioning(torch.zeros(len(prompts), 1, 1))

    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """epsilon [m, 2, 1, 1] of latents [m, 2, 1, 1]."""
        out: Tensor = self.network(latents[:, :, 0, 0], t)
        return out[:, :, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Points [n, 2]."""
        return latents[:, :, 0, 0]


def load(settings: Training, work: Path) -> Toy:
    """The toy of these settings from the folder `work`, trained first if it is not there."""
    path = work / settings.file
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        save_file(train(settings).state_dict(), path)
    network = Denoiser(settings.width)
    network.load_state_dict(load_file(path))
    return Toy(network, settings.shape)


def main() -> None:
    """Train a toy, and say how well its samples fill the shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--work", type=Path, default=Path("runs/dno_toys"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    toy = load(Training(options.shape), options.work)
    path = Trajectory(toy)
    conditioning = toy.encode([""])
    noise = Noise(path.noise_shape, conditioning).sample(2000, Stream(0))
    with torch.no_grad():
        off = DISTANCES[options.shape](toy.decode(path.run(noise, conditioning)))
    for level in (0.5, 0.9, 0.99):
        print(f"{level:.0%} of samples are within {float(off.quantile(level)):.4f} of the shape")


if __name__ == "__main__":
    main()
