"""Negative prompts that draw hard prompts better (table 1b).

    python benchmarks/dpo_diff/improve.py [--prompts 60] [--images 48] [--noises 3] [--solvers epo]
        [--json]

For each prompt that the model draws badly: the user's own words, the best of as many pictures as
the search costs (its forwards and backwards), hand-made modifiers, a language model's rewrite where
a server is configured (OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL), and `dpo_diff` with a budget
of `--images` pictures. Best of n keeps one picture for each of the shared noises, from n / noises
each; it finds no words, so it has nothing to carry over to unseen noises.
Cost: a prompt takes images + unseen + noises pictures, as many as these searched with for best of
n, and noises + unseen for the modifiers: about 120 by default, of .35 to .4 s of one core, so 45
minutes for 60 prompts; gpo+es adds an ascent that is worth 9.5 times the noises.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput, MissingDependency
from tiller.llm import open_chat
from tiller.methods.manual import Manual
from tiller.tasks.statistics import wins

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD, Asked
from grid import report, save, verdict
from measured import (
    SAMPLER,
    Lab,
    Outcome,
    average,
    change,
    draw_examples,
    listing,
    options_of,
    over_prompts,
    summary,
)

AIM = 0.95  # of the prompts are better on the search's own noises


def best_of_n(lab: Lab, like: Sequence[Outcome]) -> list[Outcome]:
    """The best picture for each shared noise, at the cost of other outcomes, prompt by prompt."""
    found = []
    noises = len(lab.own)
    for one in like:
        each = max(1, round(one.calls / lab.gallery.calls_per_picture / noises))
        words = (one.prompt, "")
        asked = [Asked(one.prompt, words, one.seed, index) for index in range(each * noises)]
        seen = lab.gallery.look(asked)
        groups = [seen[k::noises] for k in range(noises)]
        best = [max(group, key=lambda picture: picture.scores[REWARD]) for group in groups]
        calls = len(asked) * lab.gallery.calls_per_picture
        found.append(Outcome(one.prompt, one.seed, words, best, [], calls))
    return found


def manual(lab: Lab) -> list[Outcome]:
    """The prompt with modifiers, whatever they do to the score."""
    calls = len(lab.own) * lab.gallery.calls_per_picture
    written = {prompt: Manual().prompts(prompt)[-1] for prompt in lab.prompts}
    return [lab.outcome(key, (written[key[0]], ""), calls=calls) for key in lab.keys]


def llm_rewrite(lab: Lab, like: Sequence[Outcome]) -> list[Outcome] | None:
    """A language model's rewrites at the mean cost of other outcomes; None without a server."""
    try:
        open_chat()
    except (InvalidInput, MissingDependency) as error:
        print(f"llm_rewrite is left out: {error}", file=sys.stderr, flush=True)
        return None
    calls = sum(one.calls for one in like) / len(like)
    images = max(2, round(calls / lab.gallery.calls_per_picture))
    sampler = {name: value for name, value in lab.settings.items() if name in SAMPLER}
    results = lab.runs("llm_rewrite", budget=f"images={images}", iterations=images, **sampler)
    return lab.outcomes(results)


def main() -> None:
    parser = options_of(__doc__, __file__, "improve")
    parser.add_argument("--solvers", nargs="+", default=["epo"], help="of dpo_diff")
    options = parser.parse_args()
    lab = Lab(options, "dpo_diff")
    searched = {}
    for solver in options.solvers:
        name = f"dpo_diff, {solver}"
        budget = f"images={options.images}"
        searched[name] = lab.outcomes(lab.searches("dpo_diff", budget=budget, solver=solver))
    first = next(iter(searched))
    raw = lab.raw()
    arms: dict[str, list[Outcome] | None] = {
        "user's prompt": raw,
        "best_of_n": best_of_n(lab, searched[first]),
        "manual": manual(lab),
        "llm_rewrite": llm_rewrite(lab, searched[first]),
        **searched,
    }
    found = {name: outcomes for name, outcomes in arms.items() if outcomes is not None}
    table: dict[str, Any] = {name: summary(outcomes, raw) for name, outcomes in found.items()}
    for name in searched:
        for other, which in (("best_of_n", "own"), ("manual", "own"), ("manual", "unseen")):
            table[name][f"wins against {other} ({which})"] = beats(found[name], found[other], which)
    save(
        options, "improve", lambda figure: draw_examples(figure, searched[first]), figsize=(9, 2.8)
    )
    prompts = listing(searched[first], raw)
    report(options, table, " ".join(claims(table, found, first)), prompts=prompts)


def beats(mine: Sequence[Outcome], others: Sequence[Outcome], which: str) -> Any:
    """The share of prompts where mine score higher."""
    values = [[average(getattr(one, which), REWARD) for one in some] for some in (mine, others)]
    return over_prompts(mine, wins(*values))


def claims(table: dict[str, Any], found: dict[str, list[Outcome]], first: str) -> list[str]:
    """What the paper says of the table, and whether it held here."""
    row = table[first]
    unseen = row[f"unseen change of {REWARD}"]
    modifiers = table["manual"][f"unseen change of {REWARD}"]
    none = "did not hold" if verdict(modifiers) == "held" else "held"
    equal = change(found[first], found["best_of_n"], "own")
    searched = (
        f"The paper's claim that searched negative prompts improve hard prompts {verdict(unseen)}: "
        f"{REWARD} changes by {unseen} on noises that the search did not see, by {row['change']} "
        f"on its own, where {row['right way'].value:.0%} of the prompts are better (aim {AIM:.0%})."
    )
    by_hand = (
        f"The claim that hand-made modifiers do not improve relevance {none}: they change it by "
        f"{modifiers} on unseen noises."
    )
    at_cost = (
        "At equal cost, against the best of n pictures of the user's own words on the search's "
        f"noises: {equal}."
    )
    return [searched, by_hand, at_cost]


if __name__ == "__main__":
    main()
