"""What a generation costs beside the forwards that it must make, and CMA-ES's own share.

A generation's bare forwards are its denoiser rows, in the same calls, its sentences through the
text encoder once, and, of the drawn loss, its drawings through the decoder and the CLIP. Both are
timed in turns, in one process, so that other load hits them alike. With `--dtype bfloat16` so is
the same generation in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import tiller
from tiller.concepts.drawn import DrawnLoss
from tiller.concepts.learn import _material, make
from tiller.concepts.objective import ConceptLoss, DenoisingLoss
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
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=12, help="of each, in turns")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: beside other load")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measured(tiller.load_model(options.model, dtype=options.dtype), options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:<34}{value}")


def measured(model: FrozenModel, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, in seconds, and the ratios; the first round warms up."""
    fields = dict(setting.split("=", 1) for setting in options.set)
    method: Any = make("gfti", {"init": "random", **fields}).settled(model)
    size = (model.defaults.height, model.defaults.width)
    noise = torch.rand(4, *size, 3, generator=torch.Generator().manual_seed(0))
    photos = [Image.fromarray((one * 255).byte().numpy()) for one in noise]
    material, _ = _material(model, method, load_pictures(photos, size), "object", 0)
    objective = material.loss(model, method, method.sampling())
    plain = objective
    if options.dtype != "float32":
        plain = material.loss(tiller.load_model(options.model), method, method.sampling())
    parts = ("generation", "denoiser", "text", "pictures", "solver", "float32")
    times: dict[str, list[float]] = {name: [] for name in parts}
    solver = Stopwatch()
    began = [clock()]

    def after(step: Step) -> None:
        times["generation"].append(clock() - began[0])
        times["solver"].append(solver.lap())
        for name, bare in _bare(objective, step).items():
            times[name].append(_timed(bare))
        if plain is not objective:
            draw, x = Draw(step.state.seed, step.index - 1), step.problem.space.decode(step.z)
            times["float32"].append(_timed(lambda: plain.render(x, draw)))
        began[0] = clock()

    with tempfile.TemporaryDirectory() as folder, solver:
        store = RunStore.create(Path(folder), {"kind": "cost"}, "gfti")
        phases = method.build(material.space, material.z, objective)
        began[0] = clock()
        budget = Budget(steps=options.rounds + 1)
        learn(store, phases, budget, 0, entry=lambda step: {}, on_step=after)
    middle = {name: statistics.median(values[1:]) for name, values in times.items() if values}
    least = sum(middle.get(name, 0.0) for name in ("denoiser", "text", "pictures"))
    again = middle.get("float32", middle["generation"])
    return {
        "clock": options.clock,
        "dtype": options.dtype,
        "loss": method.loss,
        "candidates x draws": [method.popsize, method.draws],
        "dimensions": material.space.dimension,
        **{f"{name} seconds": round(value, 4) for name, value in middle.items()},
        "generation / bare forwards": round(middle["generation"] / least, 3),
        "generation / denoiser alone": round(middle["generation"] / middle["denoiser"], 3),
        "float32 generation / generation": round(again / middle["generation"], 2),
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


def _bare(objective: ConceptLoss, step: Step) -> dict[str, Callable[[], Any]]:
    """The forwards that the round could not do without, on tensors that are ready."""
    draw = Draw(step.state.seed, step.index - 1)
    x = step.problem.space.decode(step.z)
    if isinstance(objective, DenoisingLoss):
        trials = objective.trials(draw)
        ready = [_rows(objective, x, trials, trials.noisy, trials.t)]
    else:
        assert isinstance(objective, DrawnLoss)
        trials = objective.sketches(draw)
        noise = trials.noise[:, 0].repeat_interleave(2, dim=0)  # both branches of guidance
        twice = replace(trials, sentence=trials.sentence.repeat_interleave(2))
        levels = [objective.path.timesteps[i].expand(len(noise)) for i in objective.steps]
        ready = [_rows(objective, x, twice, noise, t) for t in levels]

    def denoiser() -> None:
        for latents, timesteps, words in itertools.chain(*ready):
            pooled = words.pooled_prompt_embeds
            more = {} if pooled is None else {"pooled_prompt_embeds": pooled}
            objective.model.denoise(latents, timesteps, words.prompt_embeds, **more)

    found = {"denoiser": denoiser, "text": lambda: objective.states(x, trials.templates)}
    if isinstance(objective, DrawnLoss):
        latents = [rows[0][: (len(rows[0]) + 1) // 2] for rows in ready[0]]
        tower, decode = objective.tower, objective.model.decode
        found["pictures"] = lambda: [tower.embed_images(decode(some)) for some in latents]
    return found


def _rows(
    objective: ConceptLoss, x: Any, trials: Any, noisy: torch.Tensor, t: torch.Tensor
) -> list[tuple[Any, Any, Any]]:
    """The denoiser's calls: latents, timesteps, words."""
    n, m = len(x[0]), len(noisy)
    row = torch.arange(n).repeat_interleave(m) * len(trials.templates) + trials.sentence.repeat(n)
    with torch.no_grad():
        told = objective.states(x, trials.templates).index(row)
    latents, times = noisy.repeat(n, 1, 1, 1), t.repeat(n)
    parts = [slice(first, first + objective.rows) for first in range(0, n * m, objective.rows)]
    return [(latents[p].clone(), times[p].clone(), told.index(p).to(copy=True)) for p in parts]


@torch.no_grad()
def _timed(function: Callable[[], Any]) -> float:
    began = clock()
    function()
    return clock() - began


if __name__ == "__main__":
    main()
