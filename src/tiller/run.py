"""Runs: what they are made of, their scores, and the pictures that are kept of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tiller.core.budget import Budget, Cost
from tiller.core.rng import Draw
from tiller.core.search import Phase, Step
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel
from tiller.models.inputs import Inputs
from tiller.models.loader import BUNDLED
from tiller.rewards import RewardSum, make_reward
from tiller.runs.store import RunStore


@dataclass(frozen=True)
class Picture:
    """A picture and what every reward of the run says of it, the held-out ones included."""

    image: Image.Image
    scores: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A run's parts, all made from its spec."""

    spec: Mapping[str, Any]
    method: Method
    task: Task
    reward: RewardSum
    held_out: RewardSum | None
    budget: Budget
    phases: list[Phase]
    spent: Cost = dataclasses.field(default_factory=Cost)  # on making it, where this is a new one

    @classmethod
    def of(
        cls,
        spec: Mapping[str, Any],
        model: FrozenModel,
        method: Method,
        reward: RewardSum,
        held_out: RewardSum | None = None,
    ) -> Run:
        """The parts that `spec` names; rewards that are loaded already may be passed."""
        words = spec["prompt"], spec["negative_prompt"]
        task = Task(model, *words, reward, spec["seed"])
        if held_out is None and spec["held_out"]:
            size = model.defaults.height
            held_out = make_reward(spec["held_out"], probe_size=size, device=model.device)
        budget = Budget.parse(spec["budget"])
        return cls(spec, method, task, reward, held_out, budget, method.build(task))

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of the rewards that are not optimized."""
        return tuple(part.name for part in self.held_out.parts) if self.held_out else ()

    @property
    def reward_files(self) -> dict[str, str]:
        """The files that its rewards come from, see `RewardSum.files`."""
        return self.reward.files | (self.held_out.files if self.held_out else {})

    def scores(self, pictures: Tensor) -> dict[str, float]:
        """What every reward of the run says of a candidate's pictures [S, 3, H, W], on average."""
        (found,) = mean_scores([self], [pictures])
        return found

    def each_score(self, pictures: Tensor) -> dict[str, Tensor]:
        """What every reward of the run says of each of pictures [n, 3, H, W], [n]."""
        (found,) = each_score([self], [pictures])
        return found


@torch.no_grad()
def each_score(runs: Sequence[Run], pictures: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """What every reward of each run says of each of its pictures [n, 3, H, W], [n] on the CPU.

    From one call of each reward for all runs that have it.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (run, y) in enumerate(zip(runs, pictures, strict=True)):
        groups.setdefault((id(run.held_out), id(run.reward), y.shape[1:]), []).append(i)
    found: list[dict[str, Tensor]] = [{} for _ in runs]
    for members in groups.values():
        first, counts = runs[members[0]], [len(pictures[i]) for i in members]
        device = first.task.model.device
        together = torch.cat([pictures[i].to(device) for i in members])
        prompts = [runs[i].task.prompt for i in members for _ in pictures[i]]
        for rewards in filter(None, (first.held_out, first.reward)):
            for name, scores in rewards.parts_scores(together, prompts).items():
                for i, own in zip(members, torch.split(scores.cpu(), counts), strict=True):
                    found[i][name] = own
    return found


def mean_scores(runs: Sequence[Run], pictures: Sequence[Tensor]) -> list[dict[str, float]]:
    """The same on average over each candidate's pictures [S, 3, H, W]."""
    return [
        {name: float(scores.mean()) for name, scores in one.items()}
        for one in each_score(runs, pictures)
    ]


@torch.no_grad()
def draw_baselines(runs: Sequence[Run]) -> list[Tensor]:
    """The unsteered pictures of each run [S, 3, H, W], one for each of the S noises.

    Drawn together, as many at a time as there is room for.
    """
    objectives = [run.method.pictures(run.task) for run in runs]
    inputs = [run.method.baseline(run.task, run.spec["seed"]) for run in runs]
    groups: dict[Hashable, list[int]] = {}
    for i, objective in enumerate(objectives):
        groups.setdefault(objective.joint_key(), []).append(i)
    found: dict[int, Tensor] = {}
    for members in groups.values():
        first = objectives[members[0]]
        size = first.room(inputs[members[0]], gradient=False) if len(members) > 1 else 1
        for at in range(0, len(members), size or len(members)):
            part = members[at : at + (size or len(members))]
            draws = [Draw(runs[i].spec["seed"], 0) for i in part]
            drawn = first.render_jointly([inputs[i] for i in part], draws)
            found.update(zip(part, drawn, strict=True))
    return [found[i] for i in range(len(runs))]


def keep_baseline(run: Run, store: RunStore, pictures: Tensor, scores: dict[str, float]) -> None:
    """Keep the unsteered pictures with their scores."""
    _save_pictures(store, "baseline", pictures, _about(run, 0, scores))
    image = "images/baseline.png"
    weights = {part.name: part.weight for part in run.reward.parts}
    entry = {"kind": "baseline", "scores": scores, "held_out": run.watched, "image": image}
    store.append({**entry, "weights": weights})


def _save_pictures(store: RunStore, name: str, pictures: Tensor, about: Mapping[str, Any]) -> None:
    """The first of a candidate's pictures [S, 3, H, W], and all of them side by side."""
    store.save_image(f"{name}.png", pictures[:1], about)
    if len(pictures) > 1:
        store.save_image(f"{name}-seeds.png", torch.cat(list(pictures), dim=2)[None], about)


def save_best(store: RunStore, run: Run, step: Step, scores: dict[str, float]) -> None:
    """The best so far as a film frame, as `best.png`, and as the tensors that redraw it.

    Where a candidate is drawn from several noises, the first one's picture stands for it.
    """
    with torch.no_grad():
        inputs: Inputs = step.problem.space.decode(step.best.z)
    texts = run.task.prompt, run.task.negative_prompt
    if inputs.prompts is not None and inputs.negative_prompts is not None:
        texts = inputs.prompts[0], inputs.negative_prompts[0]
    about = _about(run, step.index, scores, texts)
    store.save_image(f"best-{step.index:04d}.png", step.best.y[:1], about)
    _save_pictures(store, "best", step.best.y, about)
    tensors = {"noise": inputs.noise[0].contiguous(), **inputs.extras()}
    own = inputs.conditioning.index([0])
    words = run.task.model.encode(texts[:1], texts[1:])
    model = run.task.model
    for field in dataclasses.fields(words):  # embeddings go along where words do not say it all
        value, plain = getattr(own, field.name), getattr(words, field.name)
        said = plain is not None and torch.equal(value, plain) and not model.taught
        if value is not None and not said:
            tensors[field.name] = value.contiguous()
    source = str(BUNDLED.get(model.source, model.source)) if model.source else None
    device = {"dtype": str(model.dtype), "device": str(model.device)}
    device["pipeline"] = model.pipeline_class
    store.save_best(tensors, {**about, **device, "model_path": source})


def _about(
    run: Run, step: int, scores: dict[str, float], texts: tuple[str, str] | None = None
) -> dict[str, Any]:
    """What a picture's file says of it; `texts` drew it, the user's own by default."""
    prompt, negative = texts or (run.spec["prompt"], run.spec["negative_prompt"])
    known = {key: run.spec[key] for key in ("model", "seed", "versions")}
    words = {"prompt": prompt, "negative_prompt": negative}
    method = run.spec["method"]["name"]
    sampler = run.spec["sampler"]
    return {**words, **known, **sampler, "method": method, "step": step, "scores": scores}


def picture_of(store: RunStore, name: str) -> Picture:
    """A picture of the run with the scores that its file carries."""
    image, about = store.load_image(name)
    return Picture(image, about["scores"])
