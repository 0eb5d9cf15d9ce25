"""What is behind the thing in a picture, in words: `on a blue background`, if it is one colour.

A sentence that names what else is there leaves less for the new word to explain. A photo's
background has no one colour, and nothing is said of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

BORDER = 1 / 32  # of a side: where the background is looked at
CLOSE = 0.12  # largest difference in a channel to the border's middle colour that is still it
SHARE = 0.8  # of the border that must have that colour; a thing may touch the rest

# Full and pale: a colour's name goes to the nearest.
_NAMED: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("white", (250, 250, 250)),
    ("gray", (130, 130, 135)),
    ("gray", (175, 175, 180)),
    ("black", (20, 20, 24)),
    ("red", (220, 40, 40)),
    ("orange", (250, 150, 50)),
    ("orange", (252, 170, 90)),
    ("yellow", (250, 215, 40)),
    ("yellow", (255, 232, 120)),
    ("green", (40, 150, 60)),
    ("green", (120, 205, 125)),
    ("blue", (40, 90, 220)),
    ("blue", (116, 178, 246)),
    ("purple", (140, 60, 195)),
    ("purple", (190, 145, 230)),
    ("pink", (250, 120, 185)),
    ("pink", (255, 185, 212)),
    ("brown", (120, 75, 40)),
)


def colour_behind(picture: Tensor) -> Tensor | None:
    """The colour [3] of most of the border of a picture [3, H, W] in [0, 1], if there is one."""
    h, w = (max(1, round(side * BORDER)) for side in picture.shape[1:])
    inside = torch.zeros(picture.shape[1:], dtype=torch.bool)
    inside[h:-h, w:-w] = True
    edge = picture[:, ~inside]
    middle = edge.median(dim=1).values
    same = ((edge - middle[:, None]).abs().amax(0) < CLOSE).float().mean()
    return middle if float(same) >= SHARE else None


def place_of(picture: Tensor) -> str:
    """What a sentence about the picture [3, H, W] ends with; "" where the border is not plain.

    Example:
        >>> place_of(torch.tensor([0.1, 0.3, 0.9])[:, None, None].expand(3, 32, 32))
        'on a blue background'
    """
    colour = colour_behind(picture)
    if colour is None:
        return ""
    known = torch.tensor([rgb for _, rgb in _NAMED]) / 255
    name = _NAMED[int((known - colour).norm(dim=1).argmin())][0]
    return f"on {'an' if name[0] in 'aeiou' else 'a'} {name} background"
