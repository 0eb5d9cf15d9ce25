"""What relaxed words are worth: the shortcut gradient of a picture for its words.

Source: Wang et al., *On discrete prompt optimization for diffusion models* (DPO-Diff), section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.objective import Objective, Regulariser
from tiller.core.rng import Draw
from tiller.methods._pictures import Pictures
from tiller.models.inputs import Inputs
from tiller.models.pieces import Piece
from tiller.models.trajectory import Gradient
from tiller.spaces.relaxed_words import SoftWords
from tiller.spaces.words import cut_silently


@dataclass(frozen=True)
class Shortcuts:
    """Which sampling step carries the gradient in each iteration: t moves towards less noise.

        t_i = floor(T (t_first + (t_end - t_first) i / iterations))

    Attributes:
        t_first: where the first iteration's shortcut starts, as a part of the trajectory.
        t_end: where the last one's would, one iteration further.
        k: steps that carry the gradient.
        iterations: how many there are; later ones keep the last t.
        first_round: the search's rounds before the first of them.

    Raises:
        InvalidInput: a number is out of its range.

    Example:
        >>> paper = Shortcuts()
        >>> [paper.gradient(50, Draw(seed=0, round=i)).t for i in (0, 1, 2, 3, 19)]
        [15, 15, 16, 16, 24]

    Source: section 4.3.1, "around the middle point and progressively reducing it"; the numbers are
    the authors' release's.
    """

    t_first: float = 0.3
    t_end: float = 0.5
    k: int = 1
    iterations: int = 20
    first_round: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.t_first < 1 and 0 <= self.t_end <= 1):
            raise InvalidInput(
                "expected 0 <= t_first < 1 and 0 <= t_end <= 1, parts of the trajectory; got "
                f"t_first={self.t_first}, t_end={self.t_end}"
            )
        if self.k < 1 or self.iterations < 1:
            raise InvalidInput(
                f"k and iterations must be at least 1, got k={self.k}, iterations={self.iterations}"
            )

    def gradient(self, steps: int, draw: Draw) -> Gradient:
        """The shortcut of this round, in a trajectory of so many steps."""
        i = min(max(draw.round - self.first_round, 0), self.iterations - 1)
        part = self.t_first + (self.t_end - self.t_first) * i / self.iterations
        k = min(self.k, steps)
        t = math.floor(steps * part + 1e-9)  # 50 * .32 is 16
        return Gradient.shortcut(min(t, steps - k), k)


class SoftPictures(Objective[SoftWords, Tensor]):
    """score(z) = reward(the picture that mixed words are heading for), the mean over S noises.

    A sampling step at t says in closed form which clean picture it is heading for; the trajectory
    stops there. Each of the S noises has a Gumbel noise of its own, the same for all candidates of
    the round: the text encoder's work alone grows, and the gradient is less noisy.

    Args:
        pictures: the sampler, the reward and the prompt.
        shortcuts: the steps that carry the gradient.
        tau: temperature of the Gumbel-softmax.
        regularisers: penalties over the logits.
    """

    render_differentiable = True

    def __init__(
        self,
        pictures: Pictures,
        shortcuts: Shortcuts,
        *,
        tau: float = 1.0,
        regularisers: tuple[Regulariser, ...] = (),
    ) -> None:
        if not 0 < tau < math.inf:
            raise InvalidInput(f"tau must be positive and finite, got {tau=}")
        self.pictures = pictures
        self.shortcuts = shortcuts
        self.tau = tau
        self.regularisers = regularisers
        self.differentiable = pictures.reward.differentiable

    def joint_key(self) -> Hashable:
        """As pictures, where the gradients take the same steps."""
        return self.pictures.joint_key(), self.shortcuts

    def render(self, x: SoftWords, draw: Draw) -> Tensor:
        """Estimates of the pictures [n S, 3, H, W], with the graph of the logits."""
        return self.pictures.drawn(self._inputs(x, draw), self._gradient(draw))

    def render_jointly(self, xs: Sequence[SoftWords], draws: Sequence[Draw]) -> list[Tensor]:
        """The same for several runs, from one trajectory where their shortcuts are the same."""
        pairs = list(zip(xs, draws, strict=True))
        if len({self._gradient(draw) for draw in draws}) > 1:  # resumed in different rounds
            return [self.render(x, draw) for x, draw in pairs]
        positive: list[list[Piece]] = []
        negative: list[list[Piece]] = []
        for x, draw in pairs:
            said, avoided = x.texts(self._gumbel(x, draw), self.tau)
            positive += said
            negative += avoided
        with cut_silently():
            told = self.pictures.trajectory.model.encode_pieces(positive, negative)
        inputs = Inputs(torch.cat([x.noise for x in xs]), told)
        pictures = self.pictures.drawn(inputs, self._gradient(draws[0]))
        return list(torch.split(pictures, [len(x.noise) for x in xs]))

    def room(self, x: SoftWords, gradient: bool) -> int | None:
        """As many candidates as the free memory takes."""
        space = x.words.space
        return self.pictures.room(space.decode(torch.zeros(1, len(space.choices)).long()), gradient)

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """The reward [n] of the estimates."""
        return self.pictures.score(y, draw)

    def score_key(self) -> Hashable:
        """As pictures."""
        return self.pictures.score_key()

    @classmethod
    def score_jointly(
        cls, objectives: Sequence[SoftPictures], ys: Sequence[Tensor], draws: Sequence[Draw]
    ) -> list[Tensor]:
        """As pictures."""
        return Pictures.score_jointly([one.pictures for one in objectives], ys, draws)

    def pick(self, y: Tensor, index: int) -> Tensor:
        """A candidate's estimates [S, 3, H, W]."""
        return self.pictures.pick(y, index)

    def _gradient(self, draw: Draw) -> Gradient:
        return self.shortcuts.gradient(self.pictures.trajectory.num_steps, draw)

    def _inputs(self, x: SoftWords, draw: Draw) -> Inputs:
        return Inputs(x.noise, x.conditioning(self._gumbel(x, draw), self.tau))

    def _gumbel(self, x: SoftWords, draw: Draw) -> Tensor:
        return gumbel((self.pictures.images_per_candidate, *x.logits.shape[1:]), draw)


def gumbel(shape: Sequence[int], draw: Draw) -> Tensor:
    """The round's g = -log(-log u), u uniform in (0, 1); float64."""
    u = torch.rand(*shape, generator=draw.generator("gumbel"), dtype=torch.float64)
    return -torch.log(-torch.log(u.clamp(min=torch.finfo(u.dtype).tiny)))
