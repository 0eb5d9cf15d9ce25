"""`bayes`: Bayesian optimization in a box, for a few numbers and costly scores.

The model of the scores and its maximization are optuna's. A study there is one growing object with
a generator inside; here the state is what was tried and what it was worth, and each round's study
is made from that with a sampler seeded for the round. So a resumed run goes on bit by bit, and
nothing of optuna's has to be saved.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput, MissingDependency
from tiller.core.evaluation import Evaluation
from tiller.core.rng import Stream
from tiller.core.shapes import Points
from tiller.core.solver import Solver
from tiller.core.space import Continuous, Space

SAMPLERS = ("auto", "gp", "tpe")


@dataclass(frozen=True)
class BayesState:
    """All that was tried.

    Attributes:
        start: the first candidate [1, ...].
        z: [tried, d] float64, flattened.
        scores: [tried] float64.
    """

    start: Tensor
    z: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Bayes(Solver[BayesState]):
    """Try where a model of the scores so far expects the largest improvement.

    The space's first sample comes first, then random points of the box, then the model's. A
    space's projection is applied to what is evaluated, and the model learns from that.

    Attributes:
        low, high: the box, the same for every number.
        sampler: gp, a Gaussian process with log expected improvement; tpe, the tree of Parzen
            estimators; auto takes gp up to `gp_up_to` numbers.
        gp_up_to: dimensions up to which auto takes the Gaussian process.
        startup: random points before the model's.
        batch: candidates a round.

    Raises:
        InvalidInput: a field is out of its range.
        MissingDependency: optuna is not installed (when it is first asked).

    Example:
        >>> from tiller.core.budget import Budget
        >>> from tiller.core.search import search
        >>> from tiller.testing.fakes import FakeQuadratic
        >>> quadratic = FakeQuadratic(dimension=2)
        >>> *_, last = search(quadratic.space, quadratic, Bayes(), Budget(images=25))
        >>> last.best.score > -0.05
        True

    Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", for tpe; Ament et
    al. 2023, "Unexpected improvements to expected improvement", for gp's acquisition; both as
    `optuna` has them (Akiba et al. 2019).
    """

    low: float = -1.0
    high: float = 1.0
    sampler: str = "auto"
    gp_up_to: int = 32
    startup: int = 10
    batch: int = 1

    spaces: ClassVar[tuple[type[Space[Any]], ...]] = (Continuous,)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(
                f"expected low < high, both finite, got low={self.low}, high={self.high}"
            )
        if self.sampler not in SAMPLERS:
            raise InvalidInput(
                f"sampler must be one of {', '.join(SAMPLERS)}; got {self.sampler!r}"
            )
        if self.startup < 1 or self.batch < 1 or self.gp_up_to < 0:
            raise InvalidInput(
                "expected startup >= 1, batch >= 1 and gp_up_to >= 0, got "
                f"startup={self.startup}, batch={self.batch}, gp_up_to={self.gp_up_to}"
            )

    def init(self, space: Space[Any], rng: Stream) -> BayesState:
        """The first candidate, and nothing tried."""
        start = space.sample(1, rng)
        empty = torch.zeros(0, start[0].numel(), dtype=torch.float64)
        return BayesState(start, empty, torch.zeros(0, dtype=torch.float64))

    def ask(self, space: Space[Any], state: BayesState, rng: Stream) -> Points:
        """The most promising points [batch, ...]."""
        assert isinstance(space, Continuous), "check_compatible lets no other space in"
        seed = int(torch.randint(2**31 - 1, (), generator=rng.next()))
        first = [] if len(state.scores) else [state.start.clamp(self.low, self.high)]
        rest = self.batch - len(first)
        points = self._proposed(state, seed, rest).to(state.start) if rest else None
        if points is not None:
            first.append(points.reshape(rest, *state.start.shape[1:]))
        return space.project(torch.cat(first))

    def tell(
        self, space: Space[Any], state: BayesState, z: Points, evaluation: Evaluation
    ) -> BayesState:
        """The record with these candidates in it."""
        tried = z.detach().flatten(1).to(state.z)
        scores = evaluation.score.to(state.scores)
        return BayesState(
            state.start, torch.cat([state.z, tried]), torch.cat([state.scores, scores])
        )

    def _proposed(self, state: BayesState, seed: int, n: int) -> Tensor:
        """`n` points [n, d] float64 of a study that holds what was tried."""
        optuna = _optuna()
        names = [f"z{i:06d}" for i in range(state.z.shape[1])]
        box = {name: optuna.distributions.FloatDistribution(self.low, self.high) for name in names}
        with _quietly():
            study = optuna.create_study(direction="maximize", sampler=self._made(names, seed))
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params=dict(zip(names, point, strict=True)), distributions=box, value=score
                    )
                    for point, score in zip(
                        state.z.clamp(self.low, self.high).tolist(),
                        state.scores.tolist(),
                        strict=True,
                    )
                ]
            )
            asked = [study.ask(box).params for _ in range(n)]
        rows = [[params[name] for name in names] for params in asked]
        return torch.tensor(rows, dtype=torch.float64)

    def _made(self, names: list[str], seed: int) -> Any:
        samplers = _optuna().samplers
        kind = self.sampler
        if kind == "auto":
            kind = "gp" if len(names) <= self.gp_up_to else "tpe"
        if kind == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self.startup)
        return samplers.TPESampler(seed=seed, n_startup_trials=self.startup)


def check_optuna() -> None:
    """Say now what the first `ask` would say.

    Raises:
        MissingDependency: optuna is not installed.
    """
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency(
            "Bayesian optimization needs optuna, which is not installed; run "
            "`pip install optuna greenlet`, or choose cma (`--set solver=cma`)"
        ) from error
    return optuna


@contextmanager
def _quietly() -> Iterator[None]:
    """No word of a study that lives for one round."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
