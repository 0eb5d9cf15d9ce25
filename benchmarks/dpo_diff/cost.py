"""What a shortcut gradient step and a scored population cost, as ratios measured side by side.

    python benchmarks/dpo_diff/cost.py [--rounds 5] [--images 30] [--clock cpu] [--json]

Gradient: one step of dpo_diff's ascent (soft words through the text encoder, the shortcut, the
decoder, the reward, all the way back) against drawing and scoring the user's prompt without a
gradient, both on the same noises; over the whole ascent, whose steps move along the trajectory.
Population: `--images` / `--noises` different prompts evaluated as one batch, with their encoding
and their scores, against as many pictures of one prompt from a bare loop over the same sampler, and
from the diffusers pipeline that the model came in. All rows take turns in each round, so that a
slow minute hits all of them; ratios are medians over rounds. Cost: five minutes of one core.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tiller.core.evaluation import Autograd, evaluate
from tiller.core.rng import Draw, Stream
from tiller.methods._catalog import make_method
from tiller.methods._soft_pictures import Shortcuts, SoftPictures
from tiller.methods.base import Task
from tiller.rewards import make_reward
from tiller.spaces.relaxed_words import RelaxedWords
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD
from grid import report
from measured import Lab, options_of

PROMPT = "a red cat and a blue dog"
STEP, THROUGHPUT = 0.7, 0.9  # what is aimed at: at most, at least
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Jobs:
    """What is timed, by name."""

    def __init__(self, lab: Lab, images: int) -> None:
        noises = len(lab.own)
        _, method = make_method("dpo_diff", {**lab.settings, "noises": noises, "space": "both"})
        task = Task(lab.model, PROMPT, "", make_reward(REWARD))
        self.lab, self.method = lab, method
        self.pictures = method.pictures(task)
        self.words = method.words_of(task)
        self.soft = RelaxedWords(self.words)
        shortcuts = Shortcuts(method.t_first, method.t_end, method.k, method.iterations)
        self.relaxed = SoftPictures(self.pictures, shortcuts, tau=method.tau)
        self.user = torch.zeros(1, len(self.words.choices), dtype=torch.int64)
        self.population = self.words.sample(max(1, images // noises), Stream(0))
        self.count = len(self.population) * noises
        self.noise = self.words.noise.repeat(len(self.population), 1, 1, 1, 1)
        self.told = lab.model.encode([PROMPT]).expand(self.count)

    def sample(self) -> None:
        """The user's prompt, drawn and scored."""
        evaluate(self.words, self.pictures, self.user, Draw(0, 0))

    def step(self, iteration: int) -> None:
        """One step of the ascent."""
        z = self.soft.sample(1, Stream(0))
        evaluate(self.soft, self.relaxed, z, Draw(0, iteration), Autograd())

    def scored(self) -> None:
        """A population, as one batch."""
        evaluate(self.words, self.pictures, self.population, Draw(0, 0))

    @torch.no_grad()
    def plain(self) -> None:
        """As many pictures of one prompt."""
        path = self.lab.gallery.path
        self.lab.model.decode(path.run(self.noise, self.told))

    def piped(self) -> None:
        """The same from diffusers, by the sampler that the pipeline itself has."""
        settings = self.lab.gallery.path.settings
        pipeline: Any = self.lab.model.pipeline  # type: ignore[attr-defined]  # of the adapter
        pipeline.set_progress_bar_config(disable=True)
        pipeline(
            [PROMPT] * self.count,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            latents=self.noise[:, 0].to(self.lab.model.device, self.lab.model.dtype),
            output_type="pt",
        )


def measured(
    jobs: Jobs, rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each job in each round, and of each step of the ascent (its median)."""
    rows = {"sample": jobs.sample, "scored": jobs.scored, "plain": jobs.plain, "piped": jobs.piped}
    iterations = range(jobs.method.iterations)  # type: ignore[attr-defined]  # of dpo_diff

    def timed(function: Callable[[], None]) -> float:
        start = clock()
        function()
        if jobs.lab.model.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    for row in rows.values():  # the first call of each warms up caches
        row()
    jobs.step(0)
    seconds: dict[str, list[float]] = {name: [] for name in (*rows, "step")}
    steps: list[list[float]] = [[] for _ in iterations]
    for _ in range(rounds):
        for name, row in rows.items():
            seconds[name].append(timed(row))
        for i in iterations:
            steps[i].append(timed(lambda i=i: jobs.step(i)))
        seconds["step"].append(statistics.fmean(one[-1] for one in steps))
    return seconds, [statistics.median(one) for one in steps]


def main() -> None:
    parser = options_of(__doc__, __file__, "improve", images=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a shared machine")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = Lab(options, "dpo_diff")
    jobs = Jobs(lab, options.images)
    seconds, steps = measured(jobs, options.rounds, CLOCKS[options.clock])

    def ratio(mine: str, other: str) -> Any:
        pairs = zip(seconds[mine], seconds[other], strict=True)
        return estimated([a / b for a, b in pairs], statistics.median)

    step = ratio("step", "sample")
    bare, piped = ratio("plain", "scored"), ratio("piped", "scored")
    table = {
        "gradient step / plain sample": {"ratio": step},
        "throughput, population / bare loop": {"ratio": bare},
        "throughput, population / diffusers pipeline": {"ratio": piped},
        "seconds": {name: estimated(values, statistics.median) for name, values in seconds.items()},
    }
    claim = (
        f"A shortcut gradient step costs {step} of a plain sample (aim: less than {STEP}), which "
        f"{'is met' if step.value < STEP else 'is not met'}; a population of {jobs.count} pictures "
        f"is scored at {bare} of the throughput of plain batched sampling (aim: at least "
        f"{THROUGHPUT}), which {'is met' if bare.value >= THROUGHPUT else 'is not met'}, and at "
        f"{piped} of the diffusers pipeline's."
    )
    report(options, table, claim, step_seconds=steps, clock=options.clock)


if __name__ == "__main__":
    main()
