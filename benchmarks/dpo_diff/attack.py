"""Prompts that mean the same and draw worse (table 1a).

    python benchmarks/dpo_diff/attack.py [--prompts 60] [--images 48] [--noises 3] [--solvers epo]
        [--reward clip] [--json]

For each prompt that the model draws well, `tiller attack` with a budget of `--images` pictures and
the similarity to the user's prompt kept at .9. The found prompt is drawn again from the search's
own noises and from `--unseen` others. `--solvers random` adds a control that learns nothing.
Cost: a prompt takes images + 2 unseen + 2 noises pictures, 70 by default, of .35 to .4 s of a core,
so 25 minutes for 60 prompts; gpo+es adds an ascent that is worth 9.5 times the noises.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD
from grid import report, save, verdict
from measured import (
    Lab,
    draw_examples,
    listing,
    options_of,
    over_prompts,
    summary,
)

AIM = 0.95  # of the prompts are worse on the search's own noises


def main() -> None:
    parser = options_of(__doc__, __file__, "attack")
    parser.add_argument("--solvers", nargs="+", default=["epo"], help="of the attack")
    parser.add_argument("--reward", default=REWARD, choices=(REWARD, "clip"), help="lowered")
    options = parser.parse_args()
    reward = options.reward
    lab = Lab(options, "attack")
    raw = lab.raw()
    table: dict[str, Any] = {"user's prompt": summary(raw, raw, sign=-1, reward=reward)}
    found = {}
    for solver in options.solvers:
        name = f"attack, {solver}"
        budget = f"images={options.images}"
        results = lab.searches("attack", budget=budget, reward=reward, solver=solver)
        found[name] = lab.outcomes(results)
        table[name] = summary(found[name], raw, sign=-1, reward=reward)
        kept = [one.similarity for one in found[name] if one.similarity is not None]
        same = [float(one.words == (one.prompt, "")) for one in found[name]]
        table[name]["similarity"] = estimated(kept)
        table[name]["least similarity"] = estimated(kept, min)
        table[name]["nothing worse found"] = over_prompts(found[name], same)
    first = next(iter(found))
    row = table[first]
    unseen = row[f"unseen change of {reward}"]
    lower = verdict(negated(unseen))
    claim = (
        f"The paper's claim that prompts of the same meaning break the picture {lower}: "
        f"{reward} changes by {unseen} on noises that the search did not see, by {row['change']} "
        f"on its own, where {row['right way'].value:.0%} of the prompts are worse (aim {AIM:.0%}); "
        f"the least similarity is {row['least similarity'].value:.3f}."
    )
    save(options, "attack", lambda figure: draw_examples(figure, found[first]), figsize=(9, 2.8))
    report(options, table, claim, prompts=listing(found[first], raw, reward))


def negated(found: Any) -> Any:
    """A difference seen from the other side."""
    return type(found)(-found.value, -found.high, -found.low, found.runs)


if __name__ == "__main__":
    main()
