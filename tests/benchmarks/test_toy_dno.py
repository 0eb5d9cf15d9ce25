"""The toys of the DNO benchmarks: their mathematics, and that each script still runs."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tiller.core.rng import Draw, Stream, keyed_generator
from tiller.solvers.gradient import Gradient
from tiller.spaces.noise import Noise

FOLDER = Path(__file__).parents[2] / "benchmarks" / "dno"
SCRIPTS = {
    "toy_evolution": "toy_evolution.png",
    "toy_ode_sde": "toy_ode_sde.svg",
    "toy_reward_hacking": "toy_reward_hacking.png",
    "toy_prno": "toy_prno.png",
    "toy_stationary": "toy_stationary.png",
    "toy_estimators": "toy_estimators.svg",
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts find one another as they do when they are run."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all scripts: each toy is trained once."""
    return tmp_path_factory.mktemp("toys")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_reports_in_json_and_draws(
    name: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module(name)
    script.main(["--quick", "--json", "--work", str(work), "--out", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == name
    assert found["figures"] == [SCRIPTS[name]]
    assert (tmp_path / SCRIPTS[name]).stat().st_size > 5000
    assert all(
        claim["claim"] and claim["measured"] and isinstance(claim["held"], bool)
        for claim in found["claims"]
    )
    assert all(seconds > 0 for seconds in leaves(found["numbers"]["seconds"]))


def leaves(value: Any) -> list[float]:
    if not isinstance(value, dict):
        return [value]
    return [leaf for item in value.values() for leaf in leaves(item)]


def test_a_script_says_in_words_whether_a_claim_held(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("toy_evolution").main(["--quick", "--work", str(work)])
    text = capsys.readouterr().out
    assert text.count("held: ") + text.count("DID NOT HOLD: ") == text.count("\n") / 2 == 4


def test_shapes_lie_where_they_should_and_distances_say_so() -> None:
    toy = importlib.import_module("toy_model")
    ring = toy.ring(4000, keyed_generator(0))
    assert float(toy.off_ring(ring).max()) < 1e-6
    inner = float((ring.norm(dim=1) < 1).float().mean())  # by area: (1 - .64) / (1.44 - .64)
    assert abs(inner - 0.45) < 4 * math.sqrt(0.45 * 0.55 / 4000)
    assert float(toy.off_line(toy.line(100, keyed_generator(0))).max()) == 0
    points = torch.tensor([[0.0, 0.5], [1.5, 0.0], [0.0, 1.0], [2.0, 1.0]])
    assert toy.off_ring(points).tolist() == pytest.approx([0.3, 0.3, 0, 5**0.5 - 1.2], abs=1e-6)
    assert toy.off_line(points).tolist() == pytest.approx([0.5, 0.5, 1.0, 2**0.5], abs=1e-6)


def test_training_is_kept_and_is_the_same_again(tmp_path: Path) -> None:
    toy = importlib.import_module("toy_model")
    settings = toy.Training(steps=5)
    first = toy.load(settings, tmp_path).network.state_dict()
    assert [file.name for file in tmp_path.iterdir()] == [settings.file]
    again = toy.train(settings).state_dict()
    other = toy.train(toy.Training(steps=5, seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.weight"], other["last.weight"])


def test_types_are_told_by_slopes_that_finite_differences_confirm(work: Path) -> None:
    toy, problem = importlib.import_module("toy_model"), importlib.import_module("toy_problem")
    stationary = importlib.import_module("toy_stationary")
    path = problem.sampler(toy.load(toy.Training(steps=300), work), eta=0.0)
    noise = Noise(path.noise_shape, path.model.encode([""])).sample(3, Stream(0))
    found = stationary.slopes(path, problem.waves, noise)

    def drawn(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            points: torch.Tensor = path.model.decode(path.run(z, path.model.encode([""])))
            return points

    h = 1e-3
    columns = []
    for i in range(2):  # x_T has two numbers, and with eta = 0 there are no others
        move = torch.zeros_like(noise)
        move[:, 0, i] = h
        columns.append((drawn(noise + move) - drawn(noise - move)) / (2 * h))
    jacobian = torch.stack(columns, dim=2)
    largest = torch.linalg.matrix_norm(jacobian, ord=2)
    torch.testing.assert_close(found.sampler, largest, rtol=0.02, atol=1e-3)

    slopes = stationary.Slopes
    unsteered = slopes(torch.ones(4), torch.ones(4), torch.ones(4))
    now = slopes(
        torch.tensor([0.01, 1.0, 1.0, 1.0]),
        torch.tensor([1.0, 0.01, 1.0, 1.0]),
        torch.tensor([0.01, 0.01, 0.05, 1.0]),
    )
    assert stationary.types(now, unsteered).tolist() == [1, 2, 3, 0]


def test_an_ascent_begins_at_the_unsteered_samples_and_rises(work: Path) -> None:
    toy, problem = importlib.import_module("toy_model"), importlib.import_module("toy_problem")
    path = problem.sampler(toy.load(toy.Training(steps=300), work), eta=1.0)
    objective = problem.Points(path, problem.corner)
    run = problem.ascend(path, objective, Gradient(lr=0.01, population=16), 5, keep=(0, 5), seed=3)
    space = Noise(path.noise_shape, path.model.encode([""]))
    first = space.sample(16, Stream(3))
    assert torch.equal(run.noise[0], first)
    assert run.noise[0].shape == (16, 50, 2, 1, 1)  # x_T and 49 steps' noises: the last adds none
    rewards = torch.stack([problem.corner(run.points[k]) for k in (0, 5)])
    torch.testing.assert_close(rewards, run.reward[[0, 5]])
    assert problem.mean(run.reward[5] - run.reward[0]).low > 0


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    problem = importlib.import_module("toy_problem")
    draws = torch.randn(200, 60, generator=keyed_generator(1))
    found = [problem.mean(values) for values in draws]
    covered = sum(one.low < 0 < one.high for one in found) / len(found)
    assert 0.89 < covered < 0.99  # 95 %, less the bootstrap's known shortfall, with 4 sigma


def test_local_maxima_of_the_reward_are_where_the_waves_say() -> None:
    evolution = importlib.import_module("toy_evolution")
    maxima = evolution.maxima()
    crest = torch.tensor([0.625, 0.625])  # sin(4 pi x) is 1 at 1/8 + k/2
    inside = (maxima - crest).norm(dim=1).min()
    assert float(inside) < 0.01
    assert 8 <= len(maxima) <= 40
    assert evolution.at_maxima(torch.tensor([[0.625, 0.625], [0.0, 0.0]])).tolist() == [1, 0]


def test_separation_is_the_area_under_the_curve() -> None:
    hacking = importlib.import_module("toy_reward_hacking")
    high, low = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    assert hacking.separation(high, low) == pytest.approx(3.5 / 4)


def test_p1_of_the_own_order_sees_what_random_orders_do_not() -> None:
    prno, hacking = (
        importlib.import_module("toy_prno"),
        importlib.import_module("toy_reward_hacking"),
    )
    z = torch.randn(2, 50, 2, 1, 1, generator=keyed_generator(2))
    z[1] -= z[1].mean()
    z[1, 25:] += 0.8
    z[1, :25] -= 0.8
    penalty = prno.OwnOrder(ks=(2,)).value(z, Draw(0, 0))
    halves = z.flatten(1).view(2, 2, 50).mean(dim=2).square().sum(dim=1)
    torch.testing.assert_close(penalty, (50 * halves / 4 - math.log(2)).clamp(min=0))
    assert float(penalty[1]) > max(10, 5 * float(penalty[0]))
    random, own = hacking.paper_probability(z), hacking.probability(z)
    assert float(random[1]) > 1e-2
    assert float(own[1]) < 1e-4
