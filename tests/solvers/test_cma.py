"""CMA-ES: rates on known functions, the diagonal form, silence, and an exact resume."""

from __future__ import annotations

import warnings
from pathlib import Path

import cma
import numpy as np
import pytest
import torch

from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import Stream
from tiller.core.search import Step, search
from tiller.core.space import starting_at
from tiller.core.state import Packed, pack, unpack
from tiller.solvers.cma import CmaEs, CmaState
from tiller.testing.fakes import FakeBox, FakeQuadratic


def run(problem: FakeQuadratic, solver: CmaEs, **limits: int) -> list[Step]:
    return list(search(problem.space, problem, solver, Budget(**limits)))


def evaluations_per_order(images: list[int], distances: list[float]) -> float:
    """The cost of coming ten times nearer, from the tenth round to the last."""
    return (images[-1] - images[9]) / float(np.log10(distances[9] / distances[-1]))


@pytest.mark.parametrize("n", [5, 20])
def test_it_converges_linearly_on_the_sphere_as_fast_as_the_package(n: int) -> None:
    problem = FakeQuadratic(n)
    ours = []
    for seed in range(3):
        steps = list(search(problem.space, problem, CmaEs(), Budget(images=110 * n), seed=seed))
        errors = [float((step.z - problem.target).norm(dim=1).median()) for step in steps]
        halves = np.array_split(np.log(errors[9:]), 3)
        slopes = [np.polyfit(range(len(part)), part, 1)[0] for part in halves]
        assert max(slopes) < 0.5 * np.mean(slopes) < 0  # no stage is stuck: the rate is constant
        ours.append(evaluations_per_order([step.cost.images for step in steps], errors))
    theirs = []
    for seed in range(1, 4):
        options = {"seed": seed, "verbose": -9, "verb_log": 0, "maxfevals": 110 * n}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            es = cma.CMAEvolutionStrategy(np.random.RandomState(seed).randn(n), 0.5, options)
        images, errors = [], []
        while es.countevals < 110 * n:
            points = es.ask()
            values = [float(((x - problem.target.numpy()) ** 2).sum()) for x in points]
            es.tell(points, values)
            images.append(es.countevals)
            errors.append(float(np.median(values)) ** 0.5)
        theirs.append(evaluations_per_order(images, errors))
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.25)  # spread over seeds


def test_it_learns_the_ellipsoid() -> None:
    # Condition 1e4: a search of fixed shape needs some 1e4 times the sphere's evaluations;
    # adapting the covariance makes the ellipsoid a sphere.
    *_, last = run(FakeQuadratic(5, condition=1e4), CmaEs(), images=4000)
    assert last.best.score > -1e-8


def test_diagonal_above_the_limit() -> None:
    problem = FakeQuadratic(8, condition=1e4)
    solver = CmaEs(full_up_to=7)
    *_, last = run(problem, solver, images=6000)
    assert last.best.score > -1e-6
    full, diagonal = (
        s.init(problem.space, Stream(0)) for s in (CmaEs(full_up_to=8), CmaEs(full_up_to=7))
    )
    assert CmaEs(full_up_to=8)._strategy(full).es.sm.C.shape == (8, 8)
    assert not hasattr(CmaEs(full_up_to=7)._strategy(diagonal).es.sm, "C")


def test_thousands_of_numbers_take_linear_memory() -> None:
    problem = FakeQuadratic(20_000)
    *_, last = run(problem, CmaEs(popsize=4), steps=2)
    assert last.z.shape == (4, 20_000)


def test_one_dimension() -> None:
    *_, last = run(FakeQuadratic(1), CmaEs(), steps=60)
    assert last.z.shape[1:] == (1,)
    assert last.best.score > -1e-8


def test_it_ends_when_it_has_converged() -> None:
    *_, last = run(FakeQuadratic(2), CmaEs(), steps=1000)
    assert last.index < 1000
    assert last.stopped is not None
    assert last.stopped.startswith("converged: tol")


def test_the_start_is_the_spaces_first_sample() -> None:
    problem = FakeQuadratic(3)
    start = torch.tensor([[2.0, 2.0, 2.0]], dtype=torch.float64)
    space = starting_at(problem.space, start)
    step = next(search(space, problem, CmaEs(sigma0=1e-3), Budget(steps=1)))
    assert (step.z - start).abs().max() < 0.01


def test_points_are_projected_before_they_are_scored() -> None:
    problem = FakeQuadratic(2)
    space = FakeBox((2,), limit=0.25)
    steps = list(search(space, problem, CmaEs(), Budget(steps=40)))
    assert max(float(step.z.abs().max()) for step in steps) <= 0.25
    assert steps[-1].best.score == pytest.approx(-2 * 0.75**2, abs=1e-3)


def test_it_prints_and_writes_nothing_and_leaves_numpys_generator(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text("{'timeout': 0}")
    np.random.seed(5)
    steps = run(FakeQuadratic(3), CmaEs(), steps=30)
    drawn = np.random.rand()
    np.random.seed(5)
    assert drawn == np.random.rand()
    assert len(steps) == 30
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["cma_signals.in"]


def test_a_rebuilt_strategy_is_the_live_one_bit_by_bit() -> None:
    problem = FakeQuadratic(6, condition=100.0)
    solver = CmaEs()
    last = run(problem, solver, steps=40)[-1].state
    packed = pack(last)
    rebuilt: CmaState = unpack(CmaState, Packed(packed.tree["solver"], packed.tensors))
    assert rebuilt.live is None
    a, b = solver._strategy(last.solver).es, solver._strategy(rebuilt).es
    assert a is not b
    assert a.sigma == b.sigma
    for name in ("mean", "pc"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert np.array_equal(a.sm.C, b.sm.C)
    assert np.array_equal(a.adapt_sigma.ps, b.adapt_sigma.ps)


def test_an_old_state_is_not_spoilt_by_going_on() -> None:
    problem = FakeQuadratic(4)
    steps = run(problem, CmaEs(), steps=10)
    for again in range(2):
        resumed = list(search(problem.space, problem, CmaEs(), Budget(steps=10), resume=steps[3]))
        assert [step.index for step in resumed] == [5, 6, 7, 8, 9, 10], again
        for a, b in zip(steps[4:], resumed, strict=True):
            assert torch.equal(a.z, b.z)


@pytest.mark.parametrize("settings", [{"sigma0": 0.0}, {"popsize": 2}, {"full_up_to": -1}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        CmaEs(**settings)  # type: ignore[arg-type]
