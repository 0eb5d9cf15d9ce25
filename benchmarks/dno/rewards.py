"""Two rewards, each held out while the other is optimized, and all methods at equal cost
(figure 7 and the shape of table 1).

    python benchmarks/dno/rewards.py [--prompts 20] [--seeds 3] [--steps 20] [--rewards clip]
        [--methods raw best_of_n dno] [--split train] [--json]

preference and clip; every method gets the same number of denoiser forwards plus backwards: what dno
uses in `--steps` gradient steps. Runs go side by side and their seconds are shares of a common
call: they compare methods within one process, and say nothing of a run alone. "At equal time" is
what each method had when the quickest of them was over. Two processes may do one reward each, and a
third prints the table: finished runs are found in `--out`. `--split train` takes prompts of the
training scenes, for choosing settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.models.bundled.captions import Split
from tiller.models.bundled.captions import prompts as evaluation_prompts

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, against, arguments, grid, mean, report, save, summary, verdict

PAIRS = {"clip": ["clip_heldout", "preference"], "preference": ["clip_heldout", "clip"]}


def mixed(count: int, split: Split = "test") -> list[str]:
    """Prompts, three of four with one subject, the others with two."""
    one = count * 3 // 4
    found = evaluation_prompts(split, one, seed=7, kind="one")
    found += evaluation_prompts(split, count - one, seed=7, kind="two")
    return [prompt for prompt, _ in found]


def arms(steps: int, forwards: int) -> dict[str, dict[str, Any]]:
    """Methods with budgets of equal cost, 2 * steps pictures' worth of model calls."""
    calls = 2 * steps * forwards
    return {
        "raw": {"method": "raw"},
        "best_of_n": {"method": "best_of_n", "budget": f"images={2 * steps}"},
        "lgd": {"method": "lgd", "budget": f"forwards={calls // 2}"},
        "reno": {"method": "reno", "budget": f"steps={steps}"},
        "dno": {"method": "dno", "lr": 0.01, "budget": f"steps={steps}"},
        "dno_fast": {"method": "dno", "lr": 0.05, "budget": f"steps={steps}"},
        "dno_prno_fast": {"method": "dno", "lr": 0.03, "gamma": 0.1, "budget": f"steps={steps}"},
        "dno_combined": {
            "method": "dno",
            "rule": "normalized",
            "lr": 0.03,
            "gamma": 0.1,
            "warm_start": 8,
            "budget": f"steps={steps - 4 + 1}",
        },
        "dno_prno": {"method": "dno", "gamma": 0.1, "budget": f"steps={steps}"},
        "dno_warm": {
            "method": "dno",
            "warm_start": 8,
            "budget": f"steps={steps - 4 + 1}",  # the eight pictures are one round
        },
        "dno_thinned": {
            "method": "dno",
            "population": 4,
            "halve_every": 1,
            "budget": f"steps={steps - 7 + 3}",  # 4 + 2 + 1 gradient steps in three rounds
        },
    }


def at_time(row: Row, seconds: float) -> float:
    """The best reward after so many seconds of a run, its first round's where that took longer."""
    begun = [line for line in row.curve if line["cost"]["seconds"] <= seconds] or row.curve[:1]
    return float(begun[-1]["best_reward"])


def claim(reward: str, table: dict[str, dict[str, Any]]) -> str:
    """What the paper says of its method, against what there is beside it."""
    row, other = table.get(f"{reward}: dno"), PAIRS[reward][0]
    if row is None or "wins against best_of_n" not in row:
        return f"{reward}: run raw, best_of_n and dno for the paper's claim."
    wins = row["wins against best_of_n"]
    said = f"{reward}: that dno is ahead of best of n {verdict(wins, 0.5)}, in {wins} of the runs"
    if raw := table.get(f"{reward}: raw"):
        lost = raw[other].value - row[other].value
        said += f"; {other} is {lost:.3f} below the unsteered pictures'"
    return f"{said}."


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=20, seeds=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--rewards", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--split", default="test", choices=("train", "test"))
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = mixed(options.prompts, options.split)
    forwards = 2 * model.defaults.num_inference_steps
    table: dict[str, Any] = {}
    for reward in options.rewards:
        held_out = PAIRS[reward]
        rows: dict[str, list[Row]] = {}
        for name, settings in arms(options.steps, forwards).items():
            if options.methods and name not in options.methods:
                continue
            rows[name] = grid(
                model,
                prompts,
                options.seeds,
                options.out,
                at_once=options.at_once,
                reward=reward,
                held_out=held_out,
                **settings,
            )
        searches = [found for name, found in rows.items() if name != "raw"] or list(rows.values())
        seconds = min(mean(found, lambda r: r.seconds).value for found in searches)
        for name, found in rows.items():
            row = summary(found, [reward, *held_out])
            row[f"{reward} at equal time"] = mean(found, lambda r, s=seconds: at_time(r, s))
            row["raised"] = mean(
                found, lambda r, key=reward: r.scores[key] > r.baseline[key] + 1e-4
            )
            if "best_of_n" in rows:
                score = against(found, rows["best_of_n"], lambda r, key=reward: r.scores[key])
                row["wins against best_of_n"] = score
            table[f"{reward}: {name}"] = row

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, len(options.rewards), squeeze=False)
        for axis, reward in zip(axes[0], options.rewards, strict=True):
            other = PAIRS[reward][-1]
            for name, row in table.items():
                if name.startswith(f"{reward}:"):
                    x, y = row[reward], row[other]
                    across = [[x.value - x.low], [x.high - x.value]]
                    along = [[y.value - y.low], [y.high - y.value]]
                    label = name.removeprefix(f"{reward}: ")
                    axis.errorbar([x.value], [y.value], along, across, fmt="o", label=label)
            axis.set_xlabel(f"{reward} (optimized)")
            axis.set_ylabel(f"{other} (held out)")
        axes[0][-1].legend(fontsize=7)

    both = len(options.rewards) == len(PAIRS)
    name = "rewards" if both else f"rewards_{options.rewards[0]}"
    save(options, name, draw, figsize=(4.2 * len(options.rewards), 3.2))
    report(options, table, " ".join(claim(reward, table) for reward in options.rewards))


if __name__ == "__main__":
    main()
