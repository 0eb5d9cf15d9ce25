"""Gradient ascent of affixes whose pictures are drawn from a new noise in each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tiller.core.evaluation import Estimator, Evaluation
from tiller.core.rng import Stream
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Space
from tiller.solvers.gradient import Gradient, GradientState
from tiller.spaces.insertion import AffixedPrompt


@dataclass(frozen=True)
class ResampledGradient(Solver[GradientState]):
    """`inner` moves the affixes; the noise beside them is the round's, from the run's stream.

    The noise is a part of z, so that the best picture is drawn again from the z that was kept.

    Attributes:
        inner: how the affixes move.
    """

    inner: Gradient

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Continuous,)

    def init(self, space: Space[Any], rng: Stream) -> GradientState:
        """The inner solver's first state."""
        return self.inner.init(_prompt(space).affixes, rng)

    def ask(self, space: Space[Any], state: GradientState, rng: Stream) -> Tensor:
        """The affixes where they stand, beside a fresh noise [population, d]."""
        prompt = _prompt(space)
        assert prompt.moving is not None, "the noise is a part of z"
        noise = prompt.moving.sample(1, rng)
        return prompt.joined(self.inner.ask(prompt.affixes, state, rng), noise)

    def tell(
        self, space: Space[Any], state: GradientState, z: Tensor, evaluation: Evaluation
    ) -> GradientState:
        """The inner solver's step along the affixes' part of the gradient."""
        prompt = _prompt(space)
        assert evaluation.grad is not None, "a solver with an estimator is told gradients"
        own = replace(evaluation, grad=prompt.split(evaluation.grad)[0])
        return self.inner.tell(prompt.affixes, state, prompt.split(z)[0], own)

    def finished(self, space: Space[Any], state: GradientState) -> str | None:
        """As the inner solver."""
        return self.inner.finished(_prompt(space).affixes, state)

    def stands(self, state: GradientState) -> Tensor:
        """The affixes where the last step led."""
        return state.z

    def gradient(self) -> Estimator:
        """The inner solver's estimator."""
        return self.inner.gradient()


def _prompt(space: Space[Any]) -> AffixedPrompt:
    assert isinstance(space, AffixedPrompt), "made for affixes around a prompt"
    return space
