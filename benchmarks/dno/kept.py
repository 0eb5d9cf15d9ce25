"""What a run had kept after a round: a longer run, read earlier."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tiller.models.bundled.loaders import load_judge

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, to_tensor


@dataclass(frozen=True)
class Kept:
    """The best picture of a run's first rounds.

    Attributes:
        scores: what every reward of the run says of it.
        probability: P(z) of its noise.
        colour_right, faithful: the judge's verdicts.
        round: in which it was found.
        picture: its file.
    """

    scores: dict[str, float]
    probability: float
    colour_right: bool
    faithful: bool
    round: int
    picture: Path


def kept(row: Row, rounds: int) -> Kept:
    """The best picture of the first `rounds` rounds (of all, where the run had fewer).

    The rewards, P(z) and the picture are those of the round that found it: a budget of so many
    steps would have ended with it.
    """
    lines = row.curve[:rounds]
    found = max(i for i, line in enumerate(lines) if line["image"])
    file = Path(row.folder) / lines[found]["image"]
    picture = to_tensor(Image.open(file))
    judge = load_judge()
    return Kept(
        scores=lines[found]["scores"],
        probability=lines[found]["probability"],
        colour_right=judge.colours_right(picture, [row.prompt])[0],
        faithful=judge.faithful(picture, [row.prompt])[0],
        round=found + 1,
        picture=file,
    )
