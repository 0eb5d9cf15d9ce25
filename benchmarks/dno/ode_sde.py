"""ODE against SDE on pictures (figure 3, right): the score per gradient step.

    python benchmarks/dno/ode_sde.py [--prompts 8] [--seeds 2] [--steps 30] [--json]

dno with eta = 1 (every step's noise) and eta = 0 (the initial noise alone), same prompts, seeds and
learning rate; the paper finds the SDE faster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.models.bundled.captions import prompts as evaluation_prompts

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, against, arguments, course, grid, report, save, summary, verdict

KINDS = {"SDE (eta=1)": 1.0, "ODE (eta=0)": 0.0}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=8, seeds=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--reward", default="clip")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = [prompt for prompt, _ in evaluation_prompts("test", options.prompts, seed=11)]
    rows: dict[str, list[Row]] = {
        name: grid(
            model,
            prompts,
            options.seeds,
            options.out,
            at_once=options.at_once,
            method="dno",
            reward=options.reward,
            held_out=["clip_heldout"],
            budget=f"steps={options.steps}",
            eta=eta,
        )
        for name, eta in KINDS.items()
    }
    sde, ode = rows.values()
    table: dict[str, Any] = {
        name: summary(found, [options.reward, "clip_heldout"]) for name, found in rows.items()
    }
    better = against(sde, ode, gained)
    table["SDE gains more than ODE"] = {"share of runs": better}
    held = verdict(better, above=0.5)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for name, found in rows.items():
            axis.plot(course(found, lambda line: line["best_reward"]), label=name)
        axis.set_xlabel("gradient steps")
        axis.set_ylabel(options.reward)
        axis.legend()

    save(options, "ode_sde", draw, figsize=(4.5, 3))
    report(
        options, table, f"The paper's claim that the SDE ascends faster {held}: {better} of runs."
    )


def gained(row: Row) -> float:
    """What the ascent added to the reward of its first picture."""
    return float(row.curve[-1]["best_reward"] - row.curve[0]["best_reward"])


if __name__ == "__main__":
    main()
