"""How often the reward rises within the budget: a run ends as soon as its own has.

    python benchmarks/ipgo/raised.py [--prompts 60] [--reward preference] [--steps 50] [--json]

`tiller steer PROMPT --method ipgo --reward preference --budget steps=50` for the prompts of
`table.py`. A run keeps its best picture, so one that has risen after few steps has risen after all
of them; it is not gone on with, and no mean of the rewards is told.
`--part 1/2` does every second prompt.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import tiller
from tiller.core.errors import TillerNotice
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report
from material import fields, mixed, sampling

FIRST = 4  # steps before the first look; then twice as many, and so on
RISE = 1e-4  # above what a picture's last bits do


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=60, seeds=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reward", default="preference")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th prompt, from the K-th")
    parser.add_argument("--set", nargs="+", default=[], help="fields of ipgo, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    first, parts = map(int, options.part.split("/"))
    each: dict[str, Any] = {}
    for prompt in mixed(options.prompts)[first - 1 :: parts]:
        steps = min(FIRST, options.steps)
        result = tiller.steer(
            model,
            prompt,
            method="ipgo",
            reward=options.reward,
            budget=f"steps={steps + 1}",  # and the prompt as it is
            out=options.out,
            **sampling(options),
            **fields(options),
        )
        while not (risen := _rise(result, options.reward) > RISE) and steps < options.steps:
            steps = min(2 * steps, options.steps)
            result = tiller.resume(result.run_dir, model=model, budget=f"steps={steps + 1}")
        each[prompt] = {"risen": risen, "after": steps}
        print(f"{prompt}: {each[prompt]}", file=sys.stderr, flush=True)
    risen = [float(one["risen"]) for one in each.values()]
    table = {
        options.reward: {
            "raised": estimated(risen),
            f"raised after {FIRST} steps": estimated(
                [float(one["risen"] and one["after"] <= FIRST) for one in each.values()]
            ),
        }
    }
    claim = f"It rose for {sum(risen):.0f} of {len(risen)} prompts within {options.steps} steps."
    report(options, table, claim, each=each)


def _rise(result: tiller.Result, reward: str) -> float:
    return result.best.scores[reward] - result.baseline.scores[reward]


if __name__ == "__main__":
    main()
