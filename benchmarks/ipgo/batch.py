"""One affix for many prompts over 1,000 pictures, beside DRaFT-1 (figure 4).

    python benchmarks/ipgo/batch.py [--prompts 60] [--images 1000] [--batches 4 10]
        [--rewards clip preference] [--json]

Training on `--prompts` prompts with the paper's settings; every `--every` pictures what was learned
is put to 16 prompts that are not trained on, each with a noise of its own, and their mean reward is
the curve. So both methods are measured alike, and on what a trained thing is for. Pictures of the
measurement are not counted; those of a training step are. Some processes may do some trainings
each, and another prints the table: what is finished is found in `--out`.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiller
from tiller.affixes.evaluation import Unseen
from tiller.affixes.objective import BatchPictures, ByParts, PromptSet
from tiller.core.budget import Budget
from tiller.core.errors import InvalidInput
from tiller.core.rng import keyed_generator
from tiller.core.search import search, search_phases
from tiller.methods._catalog import make_method
from tiller.methods._training import AdaptedPictures
from tiller.methods.base import Task
from tiller.methods.draft import Draft
from tiller.methods.ipgo import Ipgo
from tiller.models.base import FrozenModel
from tiller.models.trajectory import Gradient
from tiller.rewards import RewardSum, make_reward
from tiller.solvers.gradient import Gradient as GradientSolver
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report, save
from material import cell, fields, mixed, sampling

UNSEEN = 16
Curve = list[tuple[int, float]]


class Course:
    """The measurement: unseen prompts, and their rewards as the training goes."""

    def __init__(self, method: Ipgo, model: FrozenModel, reward: RewardSum, prompts: list[str]):
        self.watch = Unseen(method.trajectory(model), PromptSet(model, prompts, ""), reward, 0)
        self.points: Curve = []
        self.final: list[float] = []
        self.before = self.look(self.watch.pictures(None))

    def look(self, pictures: Tensor) -> list[float]:
        """The reward of each picture."""
        (scores,) = self.watch.scores(pictures).values()
        return scores

    def take(self, images: int, pictures: Callable[[], Tensor], every: int, *, last: bool) -> None:
        """Measure, if it is time."""
        if self.points and not last and images < self.points[-1][0] + every:
            return
        self.final = self.look(pictures())
        self.points.append((images, sum(self.final) / len(self.final)))


def ipgo(
    model: FrozenModel, reward: RewardSum, texts: list[str], batch: int, **own: Any
) -> Iterator[Any]:
    """(pictures drawn, the unseen prompts within the affix) as training goes."""
    unread = UNREAD.intersection(own)
    if unread:
        raise InvalidInput(f"a training has no use for {', '.join(sorted(unread))}; leave it out")
    _, method = make_method("ipgo", {"decay": 1.0, **own})
    assert isinstance(method, Ipgo)
    space = method.affixes(model)
    objective = BatchPictures(
        method.trajectory(model),
        reward,
        PromptSet(model, texts, ""),
        space,
        batch=batch,
        gamma=method.gamma,
        gradient=Gradient.parse(method.gradient),
    )
    solver = GradientSolver(
        lr=method.lr, schedule=method.schedule(), clip_norm=method.clip_norm, estimator=ByParts()
    )
    for step in search(space, objective, solver, Budget(steps=10**9)):
        affix = space.decode(step.z)
        yield step.cost.images, lambda watch, affix=affix: watch.pictures(affix)


def draft(
    model: FrozenModel, reward: RewardSum, texts: list[str], batch: int, **own: Any
) -> Iterator[Any]:
    """The same with DRaFT-1's weights; the picture of its own that a step draws is not counted."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        phases = Draft(batch=batch, prompts=file.name, **own).build(
            Task(model, texts[0], "", reward)
        )
    for step in search_phases(phases, Budget(steps=10**9)):
        pictures = step.problem.objective
        assert isinstance(pictures, AdaptedPictures)
        weights = step.problem.space.decode(step.z).weights[0]

        def drawn(watch: Unseen, pictures: Any = pictures, weights: Tensor = weights) -> Tensor:
            names = watch.prompts.texts
            noises = [
                watch.trajectory.sample_noise(keyed_generator(0, "noise of unseen prompt", i))
                for i in range(len(names))
            ]
            with torch.no_grad():
                latents = pictures.latents(
                    weights, torch.stack(noises), model.encode(names), Gradient.none()
                )
                return model.decode(latents)

        yield step.index * batch, drawn


# Fields of ipgo for one prompt, or for another way of searching.
UNREAD = frozenset(
    ("resample", "shrink", "solver", "popsize", "patience", "stop_below", "affix", "checkpoint")
)
METHODS = {"ipgo": ipgo, "draft": draft}


def trained(model: FrozenModel, key: dict[str, Any]) -> dict[str, Any]:
    """One training: the unseen prompts' rewards before and after it, and the curve."""
    texts = mixed(key["prompts"] + UNSEEN)
    reward = make_reward(key["reward"], probe_size=model.defaults.height)
    size = {k: v for k, v in key["settings"].items() if k == "num_inference_steps"}
    course = Course(Ipgo(**size), model, reward, texts[:UNSEEN])
    learner = METHODS[key["method"]]
    for images, pictures in learner(model, reward, texts[UNSEEN:], key["batch"], **key["settings"]):
        last = images >= key["images"]
        drawn = functools.partial(pictures, course.watch)
        course.take(images, drawn, key["every"], last=last)
        if last:
            break
    print(f"{key}: {course.points[-1]}", file=sys.stderr, flush=True)
    return {"before": course.before, "after": course.final, "points": course.points}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=60, seeds=1)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 10])
    parser.add_argument("--rewards", nargs="+", default=["clip", "preference"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--set", nargs="+", default=[], help="fields of ipgo, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    curves: dict[str, Curve] = {}
    table: dict[str, Any] = {}
    for name in options.rewards:
        for method in options.methods:
            for batch in options.batches:
                own = fields(options) if method == "ipgo" else {}
                key = {
                    "model": options.model,
                    "reward": name,
                    "method": method,
                    "batch": batch,
                    "images": options.images,
                    "every": options.every,
                    "prompts": options.prompts,
                    "settings": {**own, **sampling(options)},
                }
                found = cell(options.out, key, functools.partial(trained, model, key))
                row = f"{name}: {method}, batches of {batch}"
                gains = [b - a for a, b in zip(found["before"], found["after"], strict=True)]
                table[row] = {"gain": estimated(gains), "reward": estimated(found["after"])}
                curves[row] = [(images, value) for images, value in found["points"]]
    save(options, "batch", lambda figure: _draw(figure, curves, options.rewards))
    ahead = [
        f"{name}, {batch}: {'ipgo' if a.value > b.value else 'draft'}"
        for name in options.rewards
        for batch in options.batches
        if (a := _gain(table, name, "ipgo", batch)) and (b := _gain(table, name, "draft", batch))
    ]
    claim = f"Higher gain on unseen prompts after {options.images} pictures: {'; '.join(ahead)}."
    report(options, table, claim, curves={k: [list(p) for p in v] for k, v in curves.items()})


def _gain(table: dict[str, Any], reward: str, method: str, batch: int) -> Any:
    row = table.get(f"{reward}: {method}, batches of {batch}")
    return row and row["gain"]


def _draw(figure: Any, curves: dict[str, Curve], rewards: list[str]) -> None:
    axes = figure.subplots(1, len(rewards), squeeze=False)[0]
    for axis, reward in zip(axes, rewards, strict=True):
        for key, points in curves.items():
            if key.startswith(f"{reward}:"):
                axis.plot(*zip(*points, strict=True), label=key.partition(": ")[2])
        axis.set_title(reward)
        axis.set_xlabel("pictures of the training")
        axis.legend(fontsize=7)


if __name__ == "__main__":
    main()
