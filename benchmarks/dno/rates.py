"""Which learning rate, by the budget: long runs, read early as well.

    python benchmarks/dno/rates.py [--prompts 20] [--seeds 2] [--steps 50] [--at 10 20 50]
        [--lrs 0.01 0.05] [--gammas 0 1] [--rewards clip preference] [--json]

dno makes `--steps` steps once with each rate; what it had kept after each of `--at` rounds is what
a budget of so many steps would have ended with. A rate is better where its reward is higher and
nothing that was held out is lower: the other rewards, the judge, P(z). Several processes may do a
part each (`--rewards`, `--lrs`, `--gammas`) with one `--out`; one more prints the whole table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiller
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, course, grid, report, save
from kept import Kept, kept

from rewards import PAIRS, mixed

Arm = tuple[str, float, float]  # reward, gamma, lr


def columns(reward: str) -> dict[str, Callable[[Kept], float]]:
    """What is read of a picture."""
    scores = {name: _score(name) for name in (reward, *PAIRS[reward])}
    return {**scores, "faithful": lambda k: float(k.faithful), "P(z)": lambda k: k.probability}


def _score(name: str) -> Callable[[Kept], float]:
    return lambda kept: kept.scores[name]


def table_of(
    rows: dict[Arm, list[Row]], at: Sequence[int]
) -> tuple[dict[str, dict[str, Estimated]], list[str]]:
    """Every arm after so many rounds, the largest rate less the smallest, and what that says."""
    table: dict[str, dict[str, Estimated]] = {}
    said = []
    lrs = sorted({lr for _, _, lr in rows})
    for reward, gamma in dict.fromkeys((reward, gamma) for reward, gamma, _ in rows):
        groups = [row.prompt for row in rows[reward, gamma, lrs[0]]]
        for rounds in at:
            place = f"{reward}, gamma {gamma:g}, {rounds} steps"
            read = {lr: [kept(row, rounds) for row in rows[reward, gamma, lr]] for lr in lrs}
            for lr in lrs:
                table[f"{place}, lr {lr:g}"] = {
                    name: estimated([value(k) for k in read[lr]], groups=groups)
                    for name, value in columns(reward).items()
                }
            if len(lrs) < 2:
                continue
            gap = {
                name: estimated(
                    [value(a) - value(b) for a, b in zip(read[lrs[-1]], read[lrs[0]], strict=True)],
                    groups=groups,
                )
                for name, value in columns(reward).items()
            }
            table[f"{place}, lr {lrs[-1]:g} less {lrs[0]:g}"] = gap
            said.append(f"{place}: {_judged(gap, reward)}")
    return table, said


def _judged(gap: dict[str, Estimated], reward: str) -> str:
    """What the larger rate raises and lowers, where the intervals are clear of 0."""
    raised = [name for name, found in gap.items() if found.low > 0]
    lowered = [name for name, found in gap.items() if found.high < 0]
    better = reward in raised and not lowered
    told = f"raises {', '.join(raised) or 'nothing'}, lowers {', '.join(lowered) or 'nothing'}"
    return f"{'better' if better else 'not better'} ({told})"


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=20, seeds=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--at", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rewards", nargs="+", default=list(PAIRS), choices=PAIRS)
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = mixed(options.prompts)
    rows: dict[Arm, list[Row]] = {
        (reward, gamma, lr): grid(
            model,
            prompts,
            options.seeds,
            options.out,
            at_once=options.at_once,
            method="dno",
            reward=reward,
            held_out=PAIRS[reward],
            budget=f"steps={options.steps}",
            lr=lr,
            gamma=gamma,
        )
        for reward in options.rewards
        for gamma in options.gammas
        for lr in options.lrs
    }
    table, said = table_of(rows, [rounds for rounds in options.at if rounds <= options.steps])

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(options.rewards), 3, squeeze=False)
        for line, reward in zip(axes, options.rewards, strict=True):
            other = PAIRS[reward][0]
            for (name, gamma, lr), found in rows.items():
                if name != reward:
                    continue
                score = course(found, lambda entry: entry["best_reward"])
                watched = course(found, lambda entry, key=other: entry["scores"][key])
                style = {"label": f"lr {lr:g}, gamma {gamma:g}", "ls": "--" if gamma else "-"}
                style["color"] = f"C{options.lrs.index(lr)}"
                line[0].plot(range(1, len(score) + 1), score, **style)
                line[1].plot(range(1, len(score) + 1), watched, **style)
                line[2].plot(score, watched, **style)
            for axis, (x, y) in zip(
                line, (("steps", reward), ("steps", other), (reward, other)), strict=True
            ):
                axis.set_xlabel(x)
                axis.set_ylabel(y)
        axes[0][0].legend(fontsize=7)

    save(options, "rates", draw, figsize=(9, 2.8 * len(options.rewards)))
    report(options, table, f"The larger rate is: {'; '.join(said)}.")


if __name__ == "__main__":
    main()
