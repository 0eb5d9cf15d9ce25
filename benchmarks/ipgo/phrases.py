"""Words where a learned affix would stand: what one affix can do to every prompt (ours).

    python benchmarks/ipgo/phrases.py [--prompts 32] [--seeds 1] [--reward preference]
        [--phrases "on a white background" ...] [--json]

The states of a phrase stand after the words of each prompt, as an affix's tokens do, and the prompt
is drawn with and without them from the same noise. `--padding` tokens of the prompt's own padding
are the control. An affix with these tokens is one of those that a training searches, so phrases
show what there is to be learned for all prompts at once. The prompts are those that `transfer.py`
looks at. Cost: a picture a phrase and prompt.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch

import tiller
from tiller.affixes.evaluation import Unseen
from tiller.affixes.objective import PromptSet
from tiller.methods.ipgo import Ipgo
from tiller.models.base import FrozenModel
from tiller.rewards import make_reward
from tiller.spaces.affixes import Affix
from tiller.tasks.statistics import Estimated, estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report, save, verdict
from material import cell, halves, sampling

HELD_OUT = "clip_heldout"
PADDING = "(padding)"
PHRASES = (
    "on a white background",
    "on a black background",
    "on a yellow background",
    "white background",
    "black background",
    "a big",
    "two",
    "a picture of",
    "an elephant",
    "a picture of a whale",
    "a yellow tree",
    "a red apple",
    "an apple on a white background",
    "a red apple on a white background",
    "a black elephant on a white background",
)


def affix_of(model: FrozenModel, phrase: str, padding: int) -> Affix:
    """The states of a phrase without its beginning, or so much of a prompt's own padding."""
    if phrase == PADDING:
        width = model.encode([""], [""]).prompt_embeds.shape[2]
        return Affix(torch.zeros(1, 0, width), torch.zeros(1, padding, width), anchored=True)
    (count,) = model.token_counts([phrase])
    states = model.encode([phrase], [""]).prompt_embeds[:, 1:count].float().cpu()
    return Affix(states[:, :0], states)


def drawn(looks: Unseen, affix: Affix | None) -> dict[str, Any]:
    """What every reward says of each prompt's picture."""
    return dict(looks.scores(looks.pictures(affix)))


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=32, seeds=1)
    parser.add_argument("--reward", default="preference")
    parser.add_argument("--phrases", nargs="+", default=list(PHRASES))
    parser.add_argument("--padding", type=int, default=10, help="tokens of the control")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    path = Ipgo(**sampling(options)).trajectory(model)
    _, texts = halves(options.prompts, split=options.split)
    reward, held_out = (make_reward(name) for name in (options.reward, HELD_OUT))
    about = {name: getattr(options, name) for name in ("model", "reward", "prompts", "split")}
    gains: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        looks = Unseen(path, PromptSet(model, texts, ""), reward, seed, held_out)
        key = {**about, **sampling(options), "seed": seed}
        before = cell(options.out, {"phrase": None, **key}, functools.partial(drawn, looks, None))
        for phrase in (PADDING, *options.phrases):
            affix = affix_of(model, phrase, options.padding)
            mine = {"phrase": phrase, "tokens": affix.length, **key}
            after = cell(options.out, mine, functools.partial(drawn, looks, affix))
            row = gains.setdefault(phrase, {})
            for name in (options.reward, HELD_OUT):
                pairs = zip(before[name], after[name], strict=True)
                row.setdefault(name, []).extend(b - a for a, b in pairs)
            print(f"{phrase}: done", file=sys.stderr, flush=True)
    groups = texts * options.seeds
    table = {
        phrase: {f"{name}, gain": estimated(each, groups=groups) for name, each in row.items()}
        for phrase, row in gains.items()
    }
    save(options, "phrases", functools.partial(draw, table, options.reward), figsize=(6, 4))
    report(options, table, claim(table, options.reward))


def claim(table: dict[str, dict[str, Estimated]], reward: str) -> str:
    """Which phrases raise the reward, and what they cost."""
    raised = {p: row for p, row in table.items() if verdict(row[f"{reward}, gain"]) == "held"}
    kept = [p for p, row in raised.items() if verdict(row[f"{HELD_OUT}, gain"]) != "did not hold"]
    listed = ", ".join(repr(phrase) for phrase in raised) or "none"
    return (
        f"That some words after every prompt raise {reward}: {len(raised)} of {len(table)} do "
        f"({listed}); of these {len(kept)} without lowering {HELD_OUT}."
    )


def draw(table: dict[str, dict[str, Estimated]], reward: str, figure: Any) -> None:
    """Each phrase's gain, and what the held-out reward says of it."""
    axis = figure.subplots()
    for phrase, row in table.items():
        x, y = row[f"{reward}, gain"], row[f"{HELD_OUT}, gain"]
        across, along = ([[e.value - e.low], [e.high - e.value]] for e in (x, y))
        axis.errorbar([x.value], [y.value], along, across, fmt="o", ms=3, lw=0.7)
        axis.annotate(phrase, (x.value, y.value), xytext=(3, 3), textcoords="offset points", size=6)
    axis.axhline(0, color="gray", lw=0.5)
    axis.axvline(0, color="gray", lw=0.5)
    axis.set_xlabel(f"{reward}, gain")
    axis.set_ylabel(f"{HELD_OUT}, gain")


if __name__ == "__main__":
    main()
