"""How W Q is distributed where Q ~ N(0, .5), against the vocabulary (figure 6 of Fei et al. 2023).

The paper: a random projection cannot cover the range of the words, PCA and the prior can.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from cells import arguments
from torch import Tensor

import tiller
from tiller.concepts.vocabulary import words_of
from tiller.core.rng import keyed_generator
from tiller.spaces.concept import BASES, basis

DRAWS = 4000


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--stretch", type=float, default=1.0)
    options = parser.parse_args()
    words = words_of(tiller.load_model(options.model))
    table = torch.cat(list(words.tables), dim=1)
    centred = table - table.mean(0)
    increments = {"words": centred}
    for kind in BASES:
        W = basis(
            kind, words.tables, options.d, generator=keyed_generator(0, kind),
            stretch=options.stretch,
        )  # fmt: skip
        Q = 0.5 * torch.randn(DRAWS, W.shape[1], generator=keyed_generator(0, "Q"))
        increments[kind] = Q @ W.T
    found = {name: summary(values, centred) for name, values in increments.items()}
    options.figures.mkdir(parents=True, exist_ok=True)
    figure(options.figures / "distribution.svg", increments)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, values in found.items():
        print(f"{name:<8}" + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


def summary(values: Tensor, words: Tensor) -> dict[str, float]:
    """Standard deviation and length as ratios to the words', and the distance of both laws.

    The distance is Kolmogorov and Smirnov's, of the single numbers.
    """
    a, b = values.flatten().sort().values, words.flatten().sort().values
    at = torch.cat([a, b])
    below = [torch.searchsorted(x, at, right=True) / len(x) for x in (a, b)]
    return {
        "deviation": float(values.std() / words.std()),
        "length": float(values.norm(dim=1).median() / words.norm(dim=1).median()),
        "ks": float((below[0] - below[1]).abs().max()),
    }


def figure(path: Any, increments: dict[str, Tensor]) -> None:
    """Figure 6: densities of the single numbers."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axis = drawn.subplots()
    reach = 6 * float(increments["words"].std())
    for name, values in increments.items():
        numbers = values.flatten().clamp(-reach, reach).numpy()
        axis.hist(numbers, bins=80, density=True, histtype="step", label=name)
    axis.set_yscale("log")
    axis.set_xlabel("a number of W Q, or of a word less the mean word")
    axis.legend(frameon=False)
    drawn.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
