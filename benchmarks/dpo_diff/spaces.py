"""Which words to search: positive or negative ones (table 2).

    python benchmarks/dpo_diff/spaces.py [--prompts 60] [--images 48] [--noises 3]
        [--spaces positive negative antonyms both] [--json]

Random prompts of each space, `--images` / `--noises` of them for each hard prompt, each drawn from
the shared noises: their mean score against that of the user's words is the paper's table, the best
of them is what a search could find, and the best is drawn again from unseen noises. `antonyms` is
the negative space without the library of generic words, the paper's own; small positive spaces
have fewer prompts than are asked for.
Cost: a prompt takes images + noises + unseen pictures for each space, and the user's own: 250 by
default, of .35 to .4 s of one core, so 95 minutes for 60 prompts.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiller
from tiller.runs.record import read_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD
from grid import report, verdict
from measured import Lab, Outcome, average, options_of, over_prompts, summary

SPACES: dict[str, dict[str, Any]] = {
    "positive": {"space": "positive"},
    "negative": {"space": "negative"},
    "antonyms": {"space": "negative", "library": 0},
    "both": {"space": "both"},
}


def sampled(result: tiller.Result) -> list[float]:
    """The scores of a run's random prompts, without the user's own words."""
    steps = read_run(result.run_dir).steps
    return [one["score"] for step in steps for one in step["candidates"]][1:]


def less_own(scores: Sequence[Sequence[float]], raw: Sequence[Outcome]) -> list[float]:
    """Each prompt's mean score of samples, less that of the user's words (none: no difference)."""
    own = [average(one.own, REWARD) for one in raw]
    return [
        statistics.fmean(some) - user if some else 0.0
        for some, user in zip(scores, own, strict=True)
    ]


def main() -> None:
    parser = options_of(__doc__, __file__, "improve")
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    options = parser.parse_args()
    lab = Lab(options, "dpo_diff")
    raw = lab.raw()
    table: dict[str, Any] = {"user's prompt": summary(raw, raw)}
    gains: dict[str, list[float]] = {}
    for name in options.spaces:
        results = lab.searches(
            "dpo_diff",
            budget=f"images={options.images}",
            solver="random",
            leave_one_out=0.0,
            **SPACES[name],
        )
        scores = [sampled(result) for result in results]
        gains[name] = less_own(scores, raw)
        row = {
            "samples": over_prompts(raw, [float(len(some)) for some in scores]),
            "samples less the user's": over_prompts(raw, gains[name]),
        }
        best = summary(lab.outcomes(results), raw)
        table[name] = row | {f"best: {key}": value for key, value in best.items()}
    sentences = []
    if {"negative", "positive"} <= gains.keys():
        pairs = zip(gains["negative"], gains["positive"], strict=True)
        gap = over_prompts(raw, [a - b for a, b in pairs])
        table["negative less positive"] = {"samples": gap}
        sentences.append(
            f"The paper's claim that the negative space holds better prompts than the positive one "
            f"{verdict(gap)}: on average {REWARD} is {gap} higher."
        )
    if "negative" in gains:
        better = over_prompts(raw, gains["negative"])
        sentences.append(
            f"That random negative prompts are better than none {verdict(better)}: {better}."
        )
    report(options, table, " ".join(sentences) or "The claim is about positive and negative.")


if __name__ == "__main__":
    main()
