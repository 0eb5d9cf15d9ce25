"""Rewards without gradients: ZO-SGD, hybrid 1 and hybrid 2 at equal cost (figure 8).

    python benchmarks/dno/black_box.py --time
    python benchmarks/dno/black_box.py [--prompts 8] [--seeds 2] [--calls 6800]
        [--estimators hybrid2 ...] [--rewards jpeg ...] [--limit SECONDS]
    python benchmarks/dno/black_box.py --table [--json]

jpeg (the size of the file, negative) and preference, whose gradient no estimator here asks for; q
and mu are the paper's. All prompts and seeds ascend as one population, and all their perturbed
pictures are drawn together, which is fast and says nothing about the time of one run. So the course
is recorded by steps and shown twice: by model calls (what a machine that is busy with one picture
pays for) and by seconds, which are steps times the seconds of a step of a single run that `--time`
measured, alone on the machine. The paper compares at equal time. Each part that is asked for leaves
a file in `--out`; `--table` reads them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiller
from tiller.core.budget import Budget
from tiller.core.rng import Draw
from tiller.core.search import Step, search
from tiller.methods._pictures import Pictures
from tiller.methods.base import Task
from tiller.methods.dno import Dno
from tiller.models.base import FrozenModel
from tiller.models.bundled.captions import prompts as evaluation_prompts
from tiller.models.bundled.loaders import load_judge
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient, Trajectory
from tiller.rewards import Reward, make_reward
from tiller.spaces.noise import Noise
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, machine, report, save, verdict

ESTIMATORS = {"zeroth_order": "ZO-SGD", "hybrid1": "hybrid 1", "hybrid2": "hybrid 2"}
REWARDS = {"jpeg": ["clip", "clip_heldout"], "preference": ["clip", "clip_heldout"]}


class Prompts(Noise):
    """The noises of a population whose members have prompts of their own.

    Points come as many times the population, each member's perturbed points together.
    """

    def decode(self, z: Tensor) -> Inputs:
        """Each point with its member's conditioning."""
        members = len(self.conditioning)
        rows = torch.arange(members).repeat_interleave(-(-len(z) // members))
        return Inputs(z, self.conditioning.index(rows[: len(z)]))


class Several(Pictures):
    """The pictures of such a population; keeps what its members themselves were drawn as."""

    def __init__(self, trajectory: Trajectory, reward: Reward, prompts: list[str], most: int):
        super().__init__(trajectory, reward, prompts[0], gradient=Gradient.full())
        self.prompts, self.most = prompts, most
        self.drawn_last = torch.empty(0)

    def room(self, x: Inputs, gradient: bool) -> int | None:
        """The members go together: a part of them would be told others' prompts."""
        return None

    def render(self, x: Inputs, draw: Draw) -> Tensor:
        """Without a graph, `most` pictures at a time."""
        if torch.is_grad_enabled():
            return super().render(x, draw)
        parts = torch.arange(len(x.noise)).split(self.most)
        drawn = [Inputs(x.noise[part], x.conditioning.index(part)) for part in parts]
        return torch.cat([super(Several, self).render(part, draw) for part in drawn])

    def score(self, y: Tensor, draw: Draw) -> Tensor:
        """Each picture by its member's prompt."""
        each = len(y) // len(self.prompts)
        if each == 1:
            self.drawn_last = y.detach()
        return self.reward(y, [prompt for prompt in self.prompts for _ in range(each)])


def ascent(
    model: FrozenModel,
    reward: Reward,
    prompts: list[str],
    estimator: str,
    options: argparse.Namespace,
    budget: Budget,
) -> tuple[Several, Iterator[Step]]:
    """dno as it is shipped, for one seed of each of `prompts`, which may repeat."""
    method = Dno(
        lr=options.lr,
        estimator=estimator,
        population=len(prompts),
        num_inference_steps=options.sampling_steps,
    )
    (phase,) = method.build(Task(model, prompts[0], "", reward))
    path = method.trajectory(model)
    space = Prompts(path.noise_shape, model.encode(prompts, [""] * len(prompts)))
    objective = Several(path, reward, prompts, options.most)
    return objective, search(space, objective, phase.build(None).solver, budget)


def record(model: FrozenModel, name: str, estimator: str, options: argparse.Namespace) -> None:
    """The course of one estimator on one reward: what each member's best so far is worth."""
    file = options.out / f"{name}-{estimator}.json"
    if file.exists() and json.loads(file.read_text())["finished"]:
        return
    reward = make_reward(name, probe_size=model.defaults.height, device=model.device)
    watched = {n: make_reward(n, device=model.device) for n in REWARDS[name]}
    found = evaluation_prompts("test", options.prompts, seed=13)
    prompts = [prompt for prompt, _ in found for _ in range(options.seeds)]
    limits = Budget(steps=options.calls, seconds=options.limit)
    objective, steps = ascent(model, reward, prompts, estimator, options, limits)
    judge = load_judge()
    best = torch.full((len(prompts),), -math.inf)
    kept: dict[str, Tensor] = {}
    course: dict[str, Any] = {"prompts": prompts, "finished": False, "calls": []}
    for step in steps:
        y = objective.drawn_last
        scores = {name: step.evaluation.reward.float().cpu()}
        with torch.no_grad():
            scores |= {n: one(y, prompts).float().cpu() for n, one in watched.items()}
        scores["faithful"] = torch.tensor(judge.faithful(y.cpu(), prompts)).float()
        better = scores[name] > best
        best = torch.where(better, scores[name], best)
        for key, value in scores.items():
            kept[key] = torch.where(better, value, kept.get(key, value))
            course.setdefault(key, []).append(kept[key].tolist())
        course["calls"].append(step.cost.model_calls / len(prompts))
        course["finished"] = course["calls"][-1] >= options.calls
        file.write_text(json.dumps(course))
        if course["finished"]:
            break
    print(f"{name}, {estimator}: {len(course['calls'])} steps", file=sys.stderr, flush=True)


def clock(model: FrozenModel, options: argparse.Namespace) -> None:
    """Seconds of a step of one run; the estimators take turns, so all see the same machine."""
    prompt = evaluation_prompts("test", 1, seed=13)[0][0]
    seconds: dict[str, dict[str, float]] = {}
    for name in REWARDS:
        reward = make_reward(name, probe_size=model.defaults.height, device=model.device)
        budget = Budget(steps=options.repeat + 1)
        running = {e: ascent(model, reward, [prompt], e, options, budget)[1] for e in ESTIMATORS}
        taken: dict[str, list[float]] = {e: [] for e in ESTIMATORS}
        for _ in range(options.repeat + 1):
            for estimator, steps in running.items():
                begun = time.perf_counter()
                next(steps)  # ends in numbers, which wait for the device
                taken[estimator].append(time.perf_counter() - begun)
        seconds[name] = {e: statistics.median(each[1:]) for e, each in taken.items()}
    about = {"machine": machine(), "steps": options.repeat, "seconds": seconds}
    kind = model.device.type
    (options.out / f"seconds-{kind}.json").write_text(json.dumps(about, indent=1))
    print(json.dumps(about, indent=1), file=sys.stderr)


def axes_of(
    name: str, courses: dict[str, Any], clocks: list[dict[str, Any]]
) -> dict[str, dict[str, list[float]]]:
    """For each way to count, what every estimator had used after each of its steps."""
    ways = {"model calls": {e: course["calls"] for e, course in courses.items()}}
    for one in clocks:
        each = one["seconds"][name]
        ways[f"seconds, {one['machine'].split(',')[0]}"] = {
            e: [each[e] * (i + 1) for i in range(len(course["calls"]))]
            for e, course in courses.items()
        }
    return ways


def table_of(
    name: str, courses: dict[str, Any], ways: dict[str, dict[str, list[float]]]
) -> tuple[dict[str, dict[str, Estimated]], list[str]]:
    """Each estimator where the first of them has used up its course, and hybrid 2 against all."""
    table: dict[str, dict[str, Estimated]] = {}
    said = []
    for way, used in ways.items():
        equal = min(each[-1] for each in used.values())
        groups = next(iter(courses.values()))["prompts"]
        rows: dict[str, dict[str, list[float]]] = {}
        for e, course in courses.items():
            at = max((i for i, x in enumerate(used[e]) if x <= equal * (1 + 1e-9)), default=0)
            row = {key: course[key][at] for key in (name, *REWARDS[name], "faithful")}
            row["gain"] = [b - a for a, b in zip(course[name][0], row[name], strict=True)]
            rows[e] = row
            shown = {key: estimated(values, groups=groups) for key, values in row.items()}
            shown["steps"], shown[way] = estimated([float(at + 1)]), estimated([used[e][at]])
            table[f"{name}, {ESTIMATORS[e]}, at equal {way}"] = shown
        for other in [e for e in rows if e != "hybrid2" and "hybrid2" in rows]:
            gap = {
                key: estimated(
                    [a - b for a, b in zip(rows["hybrid2"][key], rows[other][key], strict=True)],
                    groups=groups,
                )
                for key in rows[other]
            }
            table[f"{name}, hybrid 2 less {ESTIMATORS[other]}, at equal {way}"] = gap
            said.append(
                f"that hybrid 2 is ahead of {ESTIMATORS[other]} on {name} at equal {way} "
                f"{verdict(gap[name])} ({gap[name]})"
            )
    return table, said


def show(options: argparse.Namespace) -> None:
    """The table and the figure of what lies in `--out`."""
    clocks = [json.loads(f.read_text()) for f in sorted(options.out.glob("seconds-*.json"))]
    table: dict[str, Any] = {}
    said: list[str] = []
    panels = []
    for name in options.rewards:
        files = {e: options.out / f"{name}-{e}.json" for e in options.estimators}
        courses = {e: json.loads(f.read_text()) for e, f in files.items() if f.exists()}
        if not courses:
            continue
        ways = axes_of(name, courses, clocks)
        found, told = table_of(name, courses, ways)
        table |= found
        said += told
        panels += [(name, way, courses, used) for way, used in ways.items()]

    def draw(figure: Any) -> None:
        columns = 1 + len(clocks)
        axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
        for axis, (name, way, courses, used) in zip(axes.flat, panels, strict=True):
            for e, course in courses.items():
                mean = [statistics.fmean(values) for values in course[name]]
                axis.plot(used[e], mean, label=ESTIMATORS[e], marker="." if len(mean) < 20 else "")
            axis.set_xlim(0, min(each[-1] for each in used.values()))
            axis.set_xlabel(way)
            axis.set_ylabel(name)
        axes.flat[0].legend(fontsize=7)

    save(options, "black_box", draw, figsize=(3.3 * (1 + len(clocks)), 2.6 * len(options.rewards)))
    report(options, table, f"The paper's claim {'; '.join(said)}.", clocks=clocks)


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=8, seeds=2)
    parser.add_argument("--calls", type=int, default=6800, help="model calls of a member")
    parser.add_argument("--limit", type=float, help="seconds after which a course is left as it is")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--sampling-steps", type=int, help="[the model's own]")
    parser.add_argument("--most", type=int, default=64, help="pictures drawn at once")
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), choices=ESTIMATORS)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--time", action="store_true", help="measure the seconds of a step, alone")
    parser.add_argument("--repeat", type=int, default=3, help="steps that --time measures")
    parser.add_argument("--table", action="store_true", help="show what was recorded")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        model = tiller.load_model(options.model)
        if options.time:
            clock(model, options)
            return
        for name in options.rewards:
            for estimator in options.estimators:
                record(model, name, estimator, options)
    show(options)


if __name__ == "__main__":
    main()
