"""What a generation costs beside the forwards that it must make, and CMA-ES's own share.

A generation's bare forwards are its denoiser rows, in the same calls, and its sentences through the
text encoder once. Both are timed in turns, in one process, so that other load hits them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tiller
from tiller.concepts.learn import _material, make
from tiller.concepts.objective import DenoisingLoss
from tiller.concepts.pictures import load_pictures
from tiller.core.budget import Budget
from tiller.core.rng import Draw
from tiller.core.search import Step
from tiller.learning import learn
from tiller.models import FrozenModel
from tiller.runs.store import RunStore
from tiller.solvers.cma import CmaEs

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--rounds", type=int, default=12, help="of each, in turns")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: beside other load")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(tiller.load_model(options.model), options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<28}{value}")


def measured(model: FrozenModel, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, in seconds, and the ratios; the first round warms up."""
    fields = dict(setting.split("=", 1) for setting in options.set)
    method: Any = make("gfti", {"init": "random", **fields})
    size = (model.defaults.height, model.defaults.width)
    noise = torch.rand(4, *size, 3, generator=torch.Generator().manual_seed(0))
    photos = [Image.fromarray((one * 255).byte().numpy()) for one in noise]
    material, _ = _material(model, method, load_pictures(photos, size), "object", 0)
    objective = material.loss(model, method.sampling())
    times: dict[str, list[float]] = {"generation": [], "denoiser": [], "text": [], "solver": []}
    solver = Stopwatch()
    began = [clock()]

    def after(step: Step) -> None:
        times["generation"].append(clock() - began[0])
        times["solver"].append(solver.lap())
        for name, bare in _bare(objective, step).items():
            times[name].append(_timed(bare))
        began[0] = clock()

    with tempfile.TemporaryDirectory() as folder, solver:
        store = RunStore.create(Path(folder), {"kind": "cost"}, "gfti")
        phases = method.build(material.space, material.z, objective)
        began[0] = clock()
        budget = Budget(steps=options.rounds + 1)
        learn(store, phases, budget, 0, entry=lambda step: {}, on_step=after)
    middle = {name: statistics.median(values[1:]) for name, values in times.items()}
    least = middle["denoiser"] + middle["text"]
    return {
        "clock": options.clock,
        "rows": method.popsize * method.draws,
        "dimensions": material.space.dimension,
        **{f"{name} seconds": round(value, 4) for name, value in middle.items()},
        "generation / bare forwards": round(middle["generation"] / least, 3),
        "generation / denoiser alone": round(middle["generation"] / middle["denoiser"], 3),
        "CMA-ES share": round(middle["solver"] / middle["generation"], 4),
    }


class Stopwatch:
    """The time inside CMA-ES's `ask` and `tell`, while this lasts."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.own = {name: getattr(CmaEs, name) for name in ("ask", "tell")}

    def __enter__(self) -> Stopwatch:
        for name, function in self.own.items():
            setattr(CmaEs, name, self._timing(function))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.own.items():
            setattr(CmaEs, name, function)

    def lap(self) -> float:
        """What was spent since the last lap."""
        spent, self.spent = self.spent, 0.0
        return spent

    def _timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = clock()
            try:
                return function(*arguments)
            finally:
                self.spent += clock() - began

        return timed


def _bare(objective: DenoisingLoss, step: Step) -> dict[str, Callable[[], Any]]:
    """The forwards that the round could not do without, on tensors that are ready."""
    trials = objective.trials(Draw(step.state.seed, step.index - 1))
    x = step.problem.space.decode(step.z)
    n, m = len(step.z), len(trials.t)
    row = torch.arange(n).repeat_interleave(m) * len(trials.templates) + trials.sentence.repeat(n)
    with torch.no_grad():
        told = objective.states(x, trials.templates).index(row)
    noisy, t = trials.noisy.repeat(n, 1, 1, 1), trials.t.repeat(n)
    parts = [slice(first, first + objective.rows) for first in range(0, n * m, objective.rows)]
    ready = [(noisy[p].clone(), t[p].clone(), told.index(p).to(copy=True)) for p in parts]

    def denoiser() -> None:
        for latents, timesteps, words in ready:
            pooled = words.pooled_prompt_embeds
            more = {} if pooled is None else {"pooled_prompt_embeds": pooled}
            objective.model.denoise(latents, timesteps, words.prompt_embeds, **more)

    return {"denoiser": denoiser, "text": lambda: objective.states(x, trials.templates)}


@torch.no_grad()
def _timed(function: Callable[[], Any]) -> float:
    began = clock()
    function()
    return clock() - began


if __name__ == "__main__":
    main()
