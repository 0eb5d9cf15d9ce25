"""Four solvers by their cost: random, EPO, GPO, GPO + ES (figure 3).

    python benchmarks/dpo_diff/solvers.py [--prompts 30] [--seeds 4] [--images 384] [--noises 3]
        [--solvers epo gpo] [--part 1/3] [--json]
    python benchmarks/dpo_diff/solvers.py --merge epo.json random.json [--json]

The best score so far, less that of the user's words, at budgets of 8, 16, ... evaluations up to
`--images` / `--noises` (128). An evaluation draws a prompt from all shared noises. The gradient
steps are billed at what they cost: forwards and backwards over those of an evaluation; the paper
bills a gradient step as one denoising step, and the columns "paper's count" leave the steps out
altogether. Where the ascent would take more than half of a budget it has fewer steps, in a run of
its own; larger budgets are read off the longest run. `--merge` compares the objects that parts have
printed with `--json`, over the prompts, seeds and budgets that all of them have.
Cost: for each prompt and seed about 4.4 times `--images` pictures of .35 to .4 s of one core: 11
minutes by default, so 30 prompts x 4 seeds take 22 hours; a third of that with one noise.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiller
from tiller.core.rng import Draw
from tiller.methods._catalog import make_method
from tiller.methods._soft_pictures import Shortcuts
from tiller.runs.record import read_run
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import report, save, verdict
from measured import Lab, options_of, summary

SOLVERS = ("random", "epo", "gpo", "gpo+es")
SMALLEST = 8
SHARE = 0.5  # of a budget that the ascent may take


@dataclass(frozen=True)
class Ascent:
    """What gradient steps cost, in denoiser calls.

    Attributes:
        steps: of the trajectory.
        rows: noises times the branches of guidance.
        settings: the method's fields t_first, t_end, k.
    """

    steps: int
    rows: int
    settings: dict[str, Any]

    def calls(self, iterations: int) -> int:
        """Forwards up to each shortcut's end, and backwards through its steps."""
        plan = Shortcuts(iterations=iterations, **self.settings)
        total = 0
        for i in range(iterations):
            gradient = plan.gradient(self.steps, Draw(0, i))
            total += gradient.t + 2 * gradient.k
        return total * self.rows

    def affordable(self, calls: float, most: int) -> int:
        """The largest number of steps, up to `most`, that costs no more than `calls`."""
        return max((i for i in range(1, most + 1) if self.calls(i) <= calls), default=0)


@dataclass(frozen=True)
class Plan:
    """A run of a learning solver: its gradient steps, what they cost, and its evaluations."""

    iterations: int
    ascent: float  # in evaluations
    evaluations: int


def planned(lab: Lab, budget: int) -> Plan:
    """The run for a budget of so many evaluations."""
    _, method = make_method("dpo_diff", lab.settings)
    fields = {name: getattr(method, name) for name in ("t_first", "t_end", "k")}
    path = lab.gallery.path
    rows = len(lab.own) * path.model.branches(path.settings.guidance_scale)
    ascent = Ascent(path.num_steps, rows, fields)
    one = lab.gallery.calls_per_picture * len(lab.own)
    iterations = ascent.affordable(SHARE * budget * one, method.iterations)
    spent = ascent.calls(iterations) / one
    return Plan(iterations, spent, max(1, math.floor(budget - spent)))


def gains(result: tiller.Result) -> list[float]:
    """The best score after each evaluation, less that of the first, the user's own words."""
    steps = read_run(result.run_dir).steps
    scores = [one["score"] for step in steps for one in step.get("candidates", ())]
    best = [max(scores[: k + 1]) for k in range(len(scores))]
    return [score - scores[0] for score in best]


def at(curve: Sequence[float], evaluations: int) -> float:
    """The gain after so many evaluations; a space that was searched through has no more."""
    return curve[min(evaluations, len(curve)) - 1]


@dataclass
class Gains:
    """What each solver has gained over the user's words at each budget, a number a run.

    Attributes:
        keys: each run's prompt and seed.
        budgets: in evaluations.
        gained: by solver and budget, gradient steps billed as what they cost.
        counted: likewise, with gradient steps free.
    """

    keys: list[tuple[str, int]]
    budgets: list[int]
    gained: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    counted: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    @classmethod
    def merged(cls, files: Sequence[Path]) -> Gains:
        """Of parts that were printed: the runs and budgets that all of them have."""
        parts = [json.loads(file.read_text())["runs"] for file in files]
        places = [{tuple(key): i for i, key in enumerate(part["keys"])} for part in parts]
        keys = [key for key in places[0] if all(key in place for place in places)]
        have = [{int(b) for one in part["gains"].values() for b in one} for part in parts]
        found = cls(keys, sorted(set.intersection(*have)))
        for part, place in zip(parts, places, strict=True):
            for name, into in (("gains", found.gained), ("free_steps", found.counted)):
                for solver, values in part[name].items():
                    into[solver] = {
                        b: [values[str(b)][place[key]] for key in keys] for b in found.budgets
                    }
        return found

    def mean(self, values: Sequence[float]) -> Estimated:
        """Over the runs; the interval is over prompts."""
        return estimated(values, groups=[prompt for prompt, _ in self.keys])

    def row(self, solver: str) -> dict[str, Estimated]:
        """A line of the table."""
        row = {f"{b}": self.mean(values) for b, values in self.gained[solver].items()}
        for b, values in self.counted[solver].items():
            row[f"{b}, paper's count"] = self.mean(values)
        return row

    def plain(self) -> dict[str, Any]:
        """Every run's gains, for `merged`."""
        both = {"gains": self.gained, "free_steps": self.counted}
        found: dict[str, Any] = {"keys": [list(key) for key in self.keys]}
        for name, gains in both.items():
            found[name] = {
                solver: {str(b): values for b, values in one.items()}
                for solver, one in gains.items()
            }
        return found


class Curves:
    """The runs of all solvers."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        largest = lab.options.images // lab.options.noises
        doublings = range(int(math.log2(max(1, largest / SMALLEST))) + 1)
        self.budgets = [b for b in (SMALLEST * 2**i for i in doublings) if b <= largest]
        self.gains = Gains(lab.keys, self.budgets)

    def run(self, solver: str) -> list[tiller.Result]:
        """Search with one solver at all budgets; the runs of the largest one."""
        learned = solver.startswith("gpo")
        plans = {b: planned(self.lab, b) if learned else Plan(0, 0.0, b) for b in self.budgets}
        full = plans[self.budgets[-1]]
        curves: dict[int, list[list[float]]] = {}
        longest: list[tiller.Result] = []
        for budget in reversed(self.budgets):
            plan = plans[budget]
            if plan.iterations == full.iterations and curves:
                curves[budget] = curves[self.budgets[-1]]
                continue
            results = self._search(solver, plan)
            curves[budget] = [gains(result) for result in results]
            longest = longest or results
        self.gains.gained[solver] = {
            b: [at(curve, plans[b].evaluations) for curve in curves[b]] for b in self.budgets
        }
        last = curves[self.budgets[-1]]
        self.gains.counted[solver] = {b: [at(curve, b) for curve in last] for b in self.budgets}
        return longest

    def _search(self, solver: str, plan: Plan) -> list[tiller.Result]:
        learning = {"iterations": plan.iterations} if plan.iterations else {}
        if solver.startswith("gpo") and not plan.iterations:
            solver = {"gpo": "random", "gpo+es": "epo"}[solver]  # no step is affordable
        return self.lab.searches(
            "dpo_diff",
            budget=f"images={(plan.evaluations + plan.iterations) * len(self.lab.own)}",
            solver=solver,
            leave_one_out=0.0,
            gradient_share=1.0,  # the plan has seen to it; an estimate counts as an image
            **learning,
        )


def main() -> None:
    parser = options_of(__doc__, __file__, "improve", prompts=30, seeds=4, images=384)
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=SOLVERS)
    parser.add_argument("--merge", nargs="+", type=Path, metavar="JSON", help="of parts")
    options = parser.parse_args()
    table: dict[str, Any] = {}
    if options.merge:
        found = Gains.merged(options.merge)
        table = {solver: found.row(solver) for solver in SOLVERS if solver in found.gained}
    else:
        lab = Lab(options, "dpo_diff")
        curves, raw = Curves(lab), lab.raw()
        found = curves.gains
        for solver in options.solvers:
            longest = curves.run(solver)
            best = summary(lab.outcomes(longest), raw)
            ends = {f"at the end: {key}": value for key, value in best.items()}
            table[solver] = found.row(solver) | ends

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for solver, row in table.items():
            means = [row[f"{b}"] for b in found.budgets]
            (line,) = axis.plot(found.budgets, [one.value for one in means], "o-", label=solver)
            low, high = ([getattr(one, end) for one in means] for end in ("low", "high"))
            axis.fill_between(found.budgets, low, high, alpha=0.12, color=line.get_color())
        axis.set_xscale("log", base=2)
        axis.set_xticks(found.budgets, [str(b) for b in found.budgets])
        axis.set_xlabel("evaluations, gradient steps billed as such")
        axis.set_ylabel("gain over the user's words")
        axis.legend()

    save(options, "solvers", draw, figsize=(5, 3.2))
    sentences, gaps = claims(found)
    report(options, table | gaps, " ".join(sentences), runs=found.plain())


def claims(gains: Gains) -> tuple[list[str], dict[str, Any]]:
    """What the paper says of the figure, and the differences that decide it.

    A difference is between runs of the same prompt and seed at the same budget; the interval is
    over prompts.
    """

    def gap(mine: str, other: str, budget: int, counted: bool = False) -> Estimated:
        found = gains.counted if counted else gains.gained
        pairs = zip(found[mine][budget], found[other][budget], strict=True)
        return gains.mean([a - b for a, b in pairs])

    run = gains.gained.keys()
    low, high = gains.budgets[0], gains.budgets[-1]
    compared = [
        ("gpo", "epo"),
        ("epo", "random"),
        *(("gpo+es", other) for other in ("random", "epo", "gpo")),
    ]
    gaps = {
        f"{mine} less {other}": {f"{b}": gap(mine, other, b) for b in gains.budgets}
        for mine, other in compared
        if {mine, other} <= run
    }
    sentences: list[str] = []
    if {"gpo", "epo"} <= run:
        first, counted = gap("gpo", "epo", low), gap("gpo", "epo", low, counted=True)
        gaps["gpo less epo"][f"{low}, paper's count"] = counted
        sentences.append(
            f"The paper's claim that GPO leads EPO at low budgets {verdict(first)}: {first} at "
            f"{low} evaluations; with gradient steps free it {verdict(counted)}: {counted}."
        )
        rises = (gains.gained[name] for name in ("epo", "gpo"))
        epo, gpo = ([b - a for a, b in zip(one[low], one[high], strict=True)] for one in rises)
        later = gains.mean([a - b for a, b in zip(epo, gpo, strict=True)])
        gaps["gpo less epo"]["epo's rise less gpo's"] = later
        sentences.append(
            f"That GPO plateaus sooner {verdict(later)}: from {low} to {high} EPO rises by {later} "
            "more."
        )
    if {"epo", "random"} <= run:
        last = gap("epo", "random", high)
        sentences.append(f"That EPO is better than random at {high} {verdict(last)}: {last}.")
    for other in ("random", "epo", "gpo"):
        if {"gpo+es", other} <= run:
            last = gap("gpo+es", other, high)
            sentences.append(
                f"That GPO + ES is better than {other} at {high} {verdict(last)}: {last}."
            )
    return sentences or ["The claims compare solvers; run two at least."], gaps


if __name__ == "__main__":
    main()
