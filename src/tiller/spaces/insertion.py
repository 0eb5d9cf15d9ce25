"""Where affixes go: around a prompt's states, between the text encoder and the denoiser.

    T = [prefix][BOS .. EOS][suffix]                  prefix = V_pre, or with an anchor pad + V_pre

The prompt comes without its padding. The unconditional branch is the negative prompt ("" by
default) padded to the same number of tokens, because both branches run as one batch. Cross-
attention reads any number of tokens, so the prompt may be as long as its encoder takes.

Anchored tokens (ours) stand where the prompt's own padding stood and are added to its state. Tokens
near 0, as the paper has them, are nothing that a denoiser was trained on.

Source: Ye et al. 2025, "IPGO", equation 2; the unconditional branch: the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.objective import Regulariser
from tiller.core.rng import Draw, Stream
from tiller.core.shapes import Flat
from tiller.core.space import Continuous
from tiller.models.base import Conditioning
from tiller.models.inputs import Inputs
from tiller.spaces.affixes import Affix, Affixes
from tiller.spaces.noise import Noise
from tiller.spaces.product import ContinuousProduct


@dataclass(frozen=True)
class Words:
    """A prompt's states without padding, ready to be put between affixes.

    Attributes:
        states: [1, K, D] from BOS to EOS; with affixes around them already, those as well.
        encoded: one row, as the model encodes it: padded, with its unconditional branch and, for
            models with two encoders, the pooled states, which affixes leave alone.
    """

    states: Tensor
    encoded: Conditioning

    @classmethod
    def of(cls, encoded: Conditioning, count: int, negative_count: int = 0) -> Words:
        """The words of a prompt of `count` tokens, both ends included.

        A negative prompt that is longer than the prompt keeps all its words: the prompt then keeps
        as much of its padding.

        Raises:
            InvalidInput: not one row, or not so many tokens.
        """
        length = encoded.prompt_embeds.shape[1]
        if len(encoded) != 1 or not 1 <= count <= length:
            raise InvalidInput(
                f"expected one encoded prompt and a count of its tokens in [1, {length}], got "
                f"{len(encoded)} and {count=}"
            )
        kept = min(length, max(count, negative_count))
        return cls(encoded.prompt_embeds[:, :kept], encoded)

    @property
    def length(self) -> int:
        """K, how many tokens stand between the affixes."""
        return self.states.shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self.states.shape[2]

    @property
    def padding(self) -> Tensor:
        """[1, 1, D] the state that the encoder puts after the prompt; EOS where it fills it."""
        return self.encoded.prompt_embeds[:, -1:]

    def within(self, affix: Affix) -> Words:
        """The same words with an affix (a batch of one) around them for good."""
        return replace(self, states=self._joined(affix))

    def conditioning(self, affix: Affix | None = None) -> Conditioning:
        """What the denoiser is told, n rows for the n candidates of an affix, one without.

        Gradients reach the affix. Precision and device are the states'.

        Raises:
            InvalidInput: the affix has another width than the states.
        """
        states = self.states if affix is None else self._joined(affix)
        n, length = states.shape[:2]
        plain = self.encoded.expand(n)
        negative = plain.negative_prompt_embeds
        return replace(
            plain,
            prompt_embeds=states,
            negative_prompt_embeds=None if negative is None else padded(negative, length),
        )

    def _joined(self, affix: Affix) -> Tensor:
        width = affix.prefix.shape[2]
        if width != self.width:
            raise InvalidInput(
                f"expected affixes of the encoder's width {self.width}, got {width}; they belong "
                "to another model"
            )
        states = self.states.expand(len(affix.prefix), -1, -1)
        prefix, suffix = affix.prefix.to(states), affix.suffix.to(states)
        if affix.anchored:
            prefix, suffix = self.padding + prefix, self.padding + suffix
        return torch.cat([prefix, states, suffix], dim=1)


def padded(states: Tensor, length: int) -> Tensor:
    """The first `length` rows of padded states [n, L, D]; beyond L the last row again.

    The encoder is causal, so cutting its padding leaves what a shorter padding would have given.
    """
    missing = length - states.shape[1]
    if missing <= 0:
        return states[:, :length]
    return torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1)


class AffixedPrompt(Continuous[Inputs]):
    """Affixes around one prompt, drawn from one noise.

    z [n, d] are the parameters of `affixes`, or of their product with `moving`, the noise.

    Args:
        affixes: how z becomes tokens.
        words: the prompt.
        noise: [1, slots, C, h, w] that all candidates are drawn from, or begin with.
        moving: the space of the noise where it is searched, or drawn anew, as well.
    """

    def __init__(
        self, affixes: Affixes, words: Words, noise: Tensor, moving: Noise | None = None
    ) -> None:
        self.affixes, self.words, self.noise, self.moving = affixes, words, noise, moving
        self.parts = ContinuousProduct([affixes] if moving is None else [affixes, moving])

    @property
    def shape(self) -> tuple[int, ...]:
        """[d]."""
        return self.parts.shape

    def sample(self, n: int, rng: Stream) -> Flat:
        """`n` affixes, all beside the given noise."""
        return self.joined(self.affixes.sample(n, rng), self.noise)

    def decode(self, z: Flat) -> Inputs:
        """The noises, and the prompt within each candidate's tokens."""
        noise = self.split(z)[1]
        if noise is None:
            noise = self.noise.expand(len(z), *self.noise.shape[1:])
        return Inputs(noise=noise, conditioning=self.words.conditioning(self.affix(z)))

    def project(self, z: Flat) -> Flat:
        """Each part's own projection."""
        return self.parts.project(z)

    def affix(self, z: Flat) -> Affix:
        """The tokens of z alone."""
        return self.affixes.decode(self.split(z)[0])

    def split(self, z: Flat) -> tuple[Tensor, Tensor | None]:
        """The affixes' part of z [n, d], and the noise's [n, slots, C, h, w] if it has one."""
        own, *noise = self.parts.split(z)
        return own, noise[0] if noise else None

    def joined(self, affixes: Tensor, noise: Tensor | None) -> Flat:
        """The inverse of `split`; one noise serves all candidates."""
        if self.moving is None or noise is None:
            return affixes
        flat = noise.to(affixes).flatten(1).expand(len(affixes), -1)
        return torch.cat([affixes, flat], dim=1)

    def describe(self) -> str:
        """The parts."""
        own = f"{self.affixes.describe()} around {self.words.length} of the prompt"
        return f"{own}, with {self.moving.describe()}" if self.moving else own


@dataclass(frozen=True)
class Prompts:
    """What conformity needs of a round's b prompts.

    Attributes:
        means: [b, D] of their states.
        counts: [b] how many they are.
    """

    means: Tensor
    counts: Tensor

    @classmethod
    def of(cls, words: list[Words]) -> Prompts:
        """Of a batch of prompts; in float32 at least, on the CPU, where affixes are."""
        wide = torch.promote_types(words[0].states.dtype, torch.float32)
        states = [w.states[0].detach().to("cpu", wide) for w in words]
        means = torch.stack([s.mean(dim=0) for s in states])
        return cls(means, torch.tensor([len(s) for s in states]))


@dataclass(frozen=True)
class Conformity(Regulariser):
    """How far the affixes pull the mean token away from the prompt's, squared.

        value(z) = | mean_j T_j - mean_k f(C)_k |^2 = | sum_j V_j - M mean_k f(C)_k |^2 / J^2

    with the M tokens V of the affixes, the K of the prompt, and J = M + K; averaged over a batch of
    prompts. For anchored tokens, which the prompt's padding pulls already, it is how far V pulls
    further, | sum_j V_j |^2 / J^2: at their start they cost no more than the unsteered prompt does.

    Attributes:
        affix: z [n, d] to the tokens.
        prompts: the round's prompts.
        weight: gamma (the paper: 1e-3).

    Raises:
        InvalidInput: the weight is negative or not finite.

    Source: IPGO, equations 9, 11 and 12.
    """

    affix: Callable[[Tensor], Affix]
    prompts: Callable[[Draw], Prompts]
    weight: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise InvalidInput(
                f"gamma must be finite and not negative, got {self.weight!r}; 0 leaves the "
                "conformity out"
            )

    def value(self, z: Tensor, draw: Draw) -> Tensor:
        """The penalty [n] of z [n, d]; differentiable."""
        affix, batch = self.affix(z), self.prompts(draw)
        total = affix.prefix.sum(dim=1) + affix.suffix.sum(dim=1)  # [n, D]
        means = torch.zeros_like(batch.means) if affix.anchored else batch.means
        off = total[:, None] - affix.length * means.to(total)  # [n, b, D]
        tokens = (affix.length + batch.counts).to(total)
        return (off / tokens[:, None]).square().sum(dim=2).mean(dim=1)
