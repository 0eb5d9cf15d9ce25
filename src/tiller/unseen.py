"""Words that were found, on noises that their search did not see: does the gain carry over?

A search that draws every candidate from the same few noises also fits them. Afterwards the user's
own words and the best ones are drawn from others, in pairs, and the change is given with its
interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tiller.core.rng import Draw, Stream
from tiller.learning import INTERRUPTED, now
from tiller.models.inputs import Inputs
from tiller.runs.store import RunStore
from tiller.tasks.statistics import estimated

if TYPE_CHECKING:
    from tiller.run import Run

_AT_ONCE = 16

Words = tuple[str, str]
"""A prompt and a negative prompt."""


def look_elsewhere(run: Run, store: RunStore) -> None:
    """Draw the user's words and the best from other noises, if the run's search is over.

    The noises are the next of the run's own sequence. Outside the budget, like the unsteered
    picture; done once for each end of a run, also after a crash in the middle of it.
    """
    if not due(run, store):
        return
    _, about = store.load_image("best")
    user = run.task.prompt, run.task.negative_prompt
    best = about["prompt"], about["negative_prompt"]
    before = drawn(run, user)
    after = before if best == user else drawn(run, best)
    scores = {which: run.each_score(y) for which, y in (("before", before), ("after", after))}
    change = {}
    for name, values in scores["after"].items():
        found = estimated((values - scores["before"][name]).tolist())
        change[name] = {"mean": found.value, "low": found.low, "high": found.high}
    images = {}
    for which, pictures in (("before", before), ("after", after)):
        strip = torch.cat(list(pictures), dim=2)[None]
        path = store.save_image(f"unseen-{which}.png", strip, about)
        images[which] = f"images/{path.name}"
    entry: dict[str, Any] = {
        "kind": "unseen",
        "noises": run.method.unseen,
        "prompt": best[0],
        "negative_prompt": best[1],
        "baseline_scores": {name: one.tolist() for name, one in scores["before"].items()},
        "scores": {name: one.tolist() for name, one in scores["after"].items()},
        "change": change,
        "images": images,
        "time": now(),
    }
    store.append(entry)


def due(run: Run, store: RunStore) -> bool:
    """Whether the run's search has ended, and this was not done since."""
    found = False
    for entry in store.entries() if run.method.unseen else ():
        if entry["kind"] == "step":
            found = entry["stopped"] not in (None, INTERRUPTED)
        elif entry["kind"] == "unseen":
            found = False
    return found


@torch.no_grad()
def drawn(run: Run, words: Words) -> Tensor:
    """The pictures [n, 3, H, W] of some words, from the n noises after those of the search."""
    method, task = run.method, run.task
    stream = Stream(run.spec["seed"], position=method.repeats)
    noise = method.noise(task).sample(method.unseen, stream)
    told = task.model.encode(words[:1], words[1:])
    pictures = method.pictures(task)
    parts = [Inputs(some, told.expand(len(some))) for some in torch.split(noise, _AT_ONCE)]
    return torch.cat([pictures.render(part, Draw(stream.seed, 0)) for part in parts])
