"""What a shortcut gradient says of words, by where it starts and how many steps carry it.

    python benchmarks/dpo_diff/shortcuts.py [--prompts 12] [--noises 3] [--options 24]
        [--draws 3] [--json]

The paper starts "around the middle point" of the trajectory (section 4.3.1) and finds one step
enough (section 5.1). Here the gradient at the user's words predicts what each of some single words
would do to the score, and the pictures of these words say what it does: the rank correlation of the
two for each prompt, and its mean. Gradients are means over draws of the Gumbel noise: without it a
slot that most likely says nothing has no position, and no gradient. `whole` is the exact one of
the whole trajectory: what a shortcut stands for.
Cost: 3 (options + 1) pictures and gradients of about 60 more for each prompt, 2 minutes of a core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.api import plan
from tiller.core.rng import Draw, keyed_generator
from tiller.methods._soft_pictures import gumbel
from tiller.models.inputs import Inputs
from tiller.models.trajectory import Gradient
from tiller.spaces.relaxed_words import RelaxedWords
from tiller.spaces.words import Words as Space
from tiller.spaces.words import probabilities

sys.path.insert(0, str(Path(__file__).parents[1]))
from gallery import REWARD, Asked
from grid import report, save, verdict
from measured import Lab, average, options_of

from tiller.tasks.statistics import Estimated, estimated

STARTS = (0.1, 0.3, 0.5, 0.7, 0.9)
STEPS = (2, 4)
MIDDLE = 0.5
WHOLE = "whole"


def arms(steps: int) -> dict[str, Gradient]:
    """The shortcuts of a trajectory of so many steps, and its exact gradient."""
    at = {start: min(int(steps * start), steps - 1) for start in STARTS}
    found = {f"t={start:g}": Gradient.shortcut(t, 1) for start, t in at.items()}
    middle = at[MIDDLE]
    found |= {
        f"t={MIDDLE:g}, k={k}": Gradient.shortcut(min(middle, max(0, steps - k)), min(k, steps))
        for k in STEPS
    }
    return found | {WHOLE: Gradient.full()}


def singles(space: Space, most: int) -> list[tuple[int, int]]:
    """(position, option) of single words, at most so many of them, each text once."""
    found: dict[str, tuple[int, int]] = {}
    for j, position in enumerate(space.positions):
        for option in range(1, position.slot.size):
            found.setdefault(position.text(option), (j, option))
    kept = list(found.values())
    order = torch.randperm(len(kept), generator=keyed_generator("options", space.wording.prompt))
    return [kept[i] for i in order[:most].tolist()]


def predicted(
    run: Any, space: Space, gradient: Gradient, words: Sequence[tuple[int, int]], draws: int
) -> Tensor:
    """What the gradient at the user's words says that each single word adds to the score.

    d score / d logit_j = w_j (e_j - sum w e), so that e_j - e_own = g_j / w_j - g_own / w_own.
    """
    relaxed = RelaxedWords(space, run.method.start)
    pictures = run.method.pictures(run.task)
    slope = torch.zeros(relaxed.shape)
    for draw in (Draw(0, i) for i in range(draws)):
        z = relaxed.logits[None].requires_grad_()
        soft = relaxed.decode(z)
        told = soft.conditioning(gumbel((len(space.noise), *relaxed.shape), draw))
        drawn = pictures.drawn(Inputs(soft.noise, told), gradient)
        slope += torch.autograd.grad(pictures.score(drawn, draw).sum(), z)[0][0] / draws
    each = slope / probabilities(relaxed.logits, space.choices).clamp(min=1e-9)
    return torch.stack([each[j, option] - each[j, 0] for j, option in words])


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two lists without many equals."""
    ranks = torch.stack([one.argsort().argsort().double() for one in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    parser = options_of(__doc__, __file__, "improve", prompts=12)
    parser.add_argument("--options", type=int, default=24, help="single words a prompt, at most")
    parser.add_argument("--draws", type=int, default=3, help="of the Gumbel noise")
    options = parser.parse_args()
    lab = Lab(options, "dpo_diff")
    found: dict[str, list[float]] = {}
    for i, prompt in enumerate(lab.prompts):
        run = plan(
            lab.model, prompt, method="dpo_diff", reward=REWARD, **lab.settings, **lab.noises
        )
        space = run.method.words_of(run.task)
        words = singles(space, options.options)
        z = torch.zeros(len(words), len(space.choices), dtype=torch.int64)
        z[range(len(words)), [j for j, _ in words]] = torch.tensor([o for _, o in words])
        texts = [(prompt, ""), *space.texts(z)]
        seen = lab.gallery.look([Asked(prompt, text, 0, k) for text in texts for k in lab.own])
        size = len(lab.own)
        scores = [average(seen[k : k + size], REWARD) for k in range(0, len(seen), size)]
        true = torch.tensor(scores[1:]) - scores[0]
        for name, gradient in arms(lab.gallery.path.num_steps).items():
            said = predicted(run, space, gradient, words, options.draws)
            found.setdefault(name, []).append(rank_correlation(said, true))
        print(f"{i + 1} of {len(lab.prompts)} prompts", file=sys.stderr, flush=True)
    table = {name: {"rank correlation": estimated(ones)} for name, ones in found.items()}
    middle = found[f"t={MIDDLE:g}"]

    def less(name: str) -> Estimated:
        return estimated([a - b for a, b in zip(middle, found[name], strict=True)])

    for name in found:
        if name != f"t={MIDDLE:g}":
            table[name]["t=0.5 less this"] = less(name)
    ends = [less(f"t={end:g}") for end in (STARTS[0], STARTS[-1])]
    more = estimated(
        [b - a for a, b in zip(middle, found[f"t={MIDDLE:g}, k={STEPS[-1]}"], strict=True)]
    )
    claim = (
        f"That the middle says more than the beginning {verdict(ends[0])}: {ends[0]}; than the end "
        f"{verdict(ends[1])}: {ends[1]}. That {STEPS[-1]} steps say more than one {verdict(more)}: "
        f"{more}."
    )

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        names = list(table)
        rows = [table[name]["rank correlation"] for name in names]
        across = [[one.value - one.low for one in rows], [one.high - one.value for one in rows]]
        axis.errorbar([one.value for one in rows], names, xerr=across, fmt="o")
        axis.axvline(0, color="grey", lw=0.8)
        axis.set_xlabel("rank correlation with what the words do")
        axis.invert_yaxis()

    save(options, "shortcuts", draw, figsize=(5, 3))
    report(options, table, claim)


if __name__ == "__main__":
    main()
