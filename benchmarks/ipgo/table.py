"""Each method steers each prompt with as many pictures (the shape of table 1).

    python benchmarks/ipgo/table.py [--prompts 60] [--seeds 1] [--images 50] [--rewards clip]
        [--methods raw ipgo draft ddpo dpo_diff best_of_n dno ipgo_dno] [--json]

Three rewards (clip, preference, their mix), the prompts in four groups. Of every method: the
reward, the held-out CLIP, the judge's verdict, how often the reward rose, and how often ipgo's was
the higher one of the pair. Every method may draw `--images` pictures a prompt; what a picture costs
differs, so the calls and the seconds stand beside. Some processes may do some methods each, and
another prints the table: finished runs are found in `--out`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import tiller
from tiller.core.errors import InvalidInput, TillerNotice

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, against, arguments, grid, mean, report, summary
from material import GROUPS, REWARDS, grouped, sampling

METHODS = ["raw", "ipgo", "draft", "ddpo", "dpo_diff", "best_of_n", "dno", "ipgo_dno"]


def reward_of(row: Row, names: list[str]) -> float:
    """The weighted sum that was raised."""
    parts = [(name.partition(":")[0], float(name.partition(":")[2] or 1)) for name in names]
    return sum(weight * row.scores[name] for name, weight in parts)


def before(row: Row, names: list[str]) -> float:
    """The same of the unsteered picture."""
    return reward_of(Row(**{**vars(row), "scores": row.baseline}), names)


def steered(model: Any, prompts: list[str], method: str, options: Any, reward: str) -> list[Row]:
    """A method's runs; prompts for which it has nothing to search keep their own picture."""
    raised, watched = REWARDS[reward]
    common = {"reward": raised, "held_out": watched, **sampling(options)}
    budget = {} if method == "raw" else {"budget": f"images={options.images}"}
    rows: list[Row] = []
    for prompt in prompts:
        settings = {**common, "method": method, **budget}
        try:
            rows += grid(model, [prompt], options.seeds, options.out, **settings)
        except InvalidInput as error:  # dpo_diff: no word of the prompt has a substitute
            print(f"{prompt}: {error}", file=sys.stderr)
            rows += grid(model, [prompt], options.seeds, options.out, method="raw", **common)
    return rows


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=60, seeds=1)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    groups = grouped(-(-options.prompts // len(GROUPS)))
    prompts = [text for texts in groups.values() for text in texts]
    table: dict[str, Any] = {}
    by_group: dict[str, Any] = {}
    for reward in options.rewards:
        raised, watched = REWARDS[reward]
        shown = [name.partition(":")[0] for name in raised] + watched
        found = {m: steered(model, prompts, m, options, reward) for m in options.methods}
        for method, rows in found.items():
            row = summary(rows, shown)
            row["raised"] = mean(rows, lambda r, n=raised: reward_of(r, n) > before(r, n) + 1e-4)
            if "ipgo" in found and method != "ipgo":
                row["ipgo wins"] = against(found["ipgo"], rows, lambda r, n=raised: reward_of(r, n))
            table[f"{reward}: {method}"] = row
            by_group[f"{reward}: {method}"] = {
                group: mean(
                    [r for r in rows if r.prompt in texts], lambda r, n=raised: reward_of(r, n)
                )
                for group, texts in groups.items()
            }
    report(options, table, _claim(table), by_group=by_group)


def _claim(table: dict[str, Any]) -> str:
    """Whether ipgo raises the reward, and over whom it wins (section 5.3)."""
    said = [
        f"{name} raised the reward of {row['raised'].value:.0%} of the prompts"
        for name, row in table.items()
        if name.endswith(": ipgo")
    ]
    lost = [
        name for name, row in table.items() if "ipgo wins" in row and row["ipgo wins"].low <= 0.5
    ]
    said.append(f"ipgo is not clearly ahead of: {', '.join(lost) or 'none'}")
    return f"{'; '.join(said)}."


if __name__ == "__main__":
    main()
