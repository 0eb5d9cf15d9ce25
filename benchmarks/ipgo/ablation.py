"""What each part of the parametrization does (section 5.5 and appendix D).

    python benchmarks/ipgo/ablation.py [--prompts 12] [--seeds 1] [--steps 50] [--reward clip]
        [--parts rotation rank constraints columns lengths anchor] [--json]

All arms of a seed begin with the same tokens (release but for them) and draw from the same noise,
so that rows compare pair by pair. Beside each part stands what the paper says of it, and whether
that held: what the interval of the difference says.
"""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import tiller
from tiller.core.errors import TillerNotice
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, arguments, grid, report, summary, verdict
from material import fields, grouped, mixed, sampling

CONSTRAINTS = ("orthonormal", "bounded", "conformity")


def constrained(kept: tuple[str, ...]) -> dict[str, Any]:
    """The settings with these constraints alone."""
    return {
        "orthonormal": "orthonormal" in kept,
        "bounded": "bounded" in kept,
        "gamma": 1e-3 if "conformity" in kept else 0.0,
    }


SUBSETS = [
    tuple(name for name, on in zip(CONSTRAINTS, chosen, strict=True) if on)
    for chosen in product((True, False), repeat=3)
]
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "rotation": {"rotated": {}, "not rotated": {"rotate": False}},
    "rank": {"low rank": {}, "plain": {"form": "plain"}, "release": {"form": "release"}},
    "constraints": {" + ".join(kept) or "none": constrained(kept) for kept in SUBSETS},
    "columns": {f"N = {n}": {"rank": n} for n in (5, 15, 30, 60, 120)},
    "lengths": {
        f"{a} + {b}": {"prefix": a, "suffix": b, "shrink": None}
        for a, b in product((0, 5, 10), repeat=2)
        if a + b
    },
    "anchor": {"on the padding": {}, "by themselves": {"anchor": "none"}},
}
CLAIMS = {
    "rotation": ("rotations help", "rotated", "not rotated"),
    "rank": ("the low rank beats plain tokens", "low rank", "plain"),
    "constraints": ("all three constraints together are best", " + ".join(CONSTRAINTS), ""),
    "columns": ("N = 30 is best", "N = 30", ""),
    "lengths": ("balanced 10 + 10 is best", "10 + 10", ""),
    "anchor": ("ours: tokens on the padding beat tokens by themselves", "on the padding", ""),
}
"""What the paper says: the claim, the arm that should win, and over which (all others if "")."""


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=12, seeds=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reward", default="clip")
    parser.add_argument("--parts", nargs="+", default=[*PARTS, "prompt"])
    parser.add_argument("--set", nargs="+", default=[], help="fields of all arms, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    prompts = mixed(options.prompts)
    common = {
        "method": "ipgo",
        "reward": options.reward,
        "held_out": "clip_heldout",
        "budget": f"steps={options.steps + 1}",
        **sampling(options),
        **fields(options),
        "at_once": options.at_once,
    }
    table: dict[str, Any] = {}
    said: list[str] = []
    for part in options.parts:
        if part == "prompt":
            said.append(_lengths(model, options, common, table))
            continue
        found = {
            name: grid(model, prompts, options.seeds, options.out, **common, **changes)
            for name, changes in PARTS[part].items()
        }
        for name, rows in found.items():
            shown = [options.reward, "clip_heldout"]
            table[f"{part}: {name}"] = summary(rows, shown)
        said.append(_said(part, found, options.reward))
        print(said[-1], file=sys.stderr, flush=True)
    report(options, table, " ".join(said))


def difference(mine: list[Row], others: list[Row], reward: str) -> Estimated:
    """The mean difference, pair by pair."""
    pairs = zip(mine, others, strict=True)
    gaps = [a.scores[reward] - b.scores[reward] for a, b in pairs]
    return estimated(gaps, groups=[row.prompt for row in mine])


def _said(part: str, found: dict[str, list[Row]], reward: str) -> str:
    claim, best, over = CLAIMS[part]
    if over:
        gap = difference(found[best], found[over], reward)
        return f"{claim}: {verdict(gap)} ({gap})."
    gaps = {
        name: difference(found[best], rows, reward) for name, rows in found.items() if name != best
    }
    beaten = [name for name, gap in gaps.items() if gap.low > 0]
    ahead = [name for name, gap in gaps.items() if gap.high < 0]
    held = "held" if len(beaten) == len(gaps) else "did not hold" if ahead else "is undecided"
    return f"{claim}: {held} (ahead of {len(beaten)} of {len(gaps)}, behind {len(ahead)})."


def _lengths(model: Any, options: Any, common: dict[str, Any], table: dict[str, Any]) -> str:
    """For each group of prompts, how often M = 2, 10 or 15 on both sides ends highest."""
    groups = grouped(max(1, options.prompts // 4))
    every = [text for texts in groups.values() for text in texts]
    where = (model, every, options.seeds, options.out)
    rows_of = {m: grid(*where, **common, prefix=m, suffix=m, shrink=None) for m in (2, 10, 15)}
    shares: dict[str, dict[int, float]] = {}
    for group, texts in groups.items():
        found = {m: [row for row in rows if row.prompt in texts] for m, rows in rows_of.items()}
        best = [
            max(found, key=lambda m, k=k: found[m][k].scores[options.reward])
            for k in range(len(found[2]))
        ]
        shares[group] = {m: best.count(m) / len(best) for m in found}
        for m, rows in found.items():
            table[f"prompt: {group}, M = {m}"] = summary(rows, [options.reward, "clip_heldout"])
    told = "; ".join(
        f"{group} {', '.join(f'{share:.0%}' for share in row.values())}"
        for group, row in shares.items()
    )
    return f"The best M of 2, 10, 15 by group (the paper: hardly any relation): {told}."


if __name__ == "__main__":
    main()
