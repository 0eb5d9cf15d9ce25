"""What the benchmarks of concepts share: cells (a concept learned in one way), kept on the disk.

A cell is a concept, a variant and a seed. What is measured of it is a line of a file in the folder
of `--rows`; a line that is there is not computed again, so a script that was interrupted goes on,
and scripts share what they have in common. Several processes may share the folder, each with a part
of the cells (`--only 1/8` to `--only 8/8`); each writes a file of its own and reads all.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiller
from concepts import CONCEPTS, Made, pictures
from tiller.concepts import templates
from tiller.concepts.base import DRAWN
from tiller.concepts.drawing import sample, told_by
from tiller.concepts.initialize import NEAREST, similarities
from tiller.concepts.learn import ConceptResult, learn_concept, make
from tiller.concepts.metrics import Measured, evaluate
from tiller.concepts.pictures import load_pictures
from tiller.concepts.vocabulary import words_of
from tiller.models import FrozenModel
from tiller.models.loader import is_emoji
from tiller.rewards._tower import EMOJI, EMOJI_HELD_OUT, tower_for
from tiller.runs.record import read_run

UNSEEN = 1000  # seeds of the pictures that measure begin here; no search draws with them
# Few steps on many trials: at equal forwards as good as many on few, and quicker on a GPU.
TI: dict[str, Any] = {"method": "ti", "draws": 32, "lr": 0.02, "check_every": 20}
# In the order in which they are made, with one token unless they say otherwise.
VARIANTS: dict[str, dict[str, Any]] = {
    "pca": {},
    "default": {"tokens": 3},
    "2 tokens": {"tokens": 2},
    "no init": {"init": "random"},
    "prior": {"projection": "prior"},
    "random": {"projection": "random"},
    "full": {"projection": "full"},
    "d=32": {"d": 32},
    "d=64": {"d": 64},
    "d=128": {"d": 128},
    "ti": TI,
    "ti, drawn": {"method": "ti", "loss": "drawn", "init": "best", "lr": 0.01, "check_every": 20},
    "clip init": {"init": "clip"},
    "denoising": {"loss": "denoising"},
    "denoising, near": {"loss": "denoising", "init": "best", "d": 16, "stretch": 0.5},
    "ti, no init": TI | {"init": "random"},
}
WORD = "word"  # the variant that learns nothing
COMPILED = (32, 64)  # rows of the denoiser's calls in looks and rounds


@dataclass(frozen=True)
class Cell:
    """One concept learned in one way, measured.

    Attributes:
        concept, variant, seed: which one.
        reconstruction, editability: by the held-out CLIP, the paper's.
        judge: the judge's shares.
        loss, start_loss: on trials that chose nothing; None of a word.
        model_calls: forwards plus backwards of the search.
        aside: forwards of its start, its looks at held-out trials and the losses above.
        seconds: of the search.
        curve: (model calls, lowest held-out loss so far).
        token: what stands for it; of the word, the word.
        began: the words that the search began at, or the nearest five where it began at their mix.
        dtype: that the model computed in.
    """

    concept: str
    variant: str
    seed: int
    reconstruction: float
    editability: float
    judge: dict[str, float | None]
    loss: float | None
    start_loss: float | None
    model_calls: int
    aside: int
    seconds: float
    curve: list[tuple[int, float]]
    token: str
    began: list[str]
    dtype: str

    @property
    def edited(self) -> float:
        """The share of edits that the judge sees."""
        return self.judge.get("edited") or 0.0


def arguments(about: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--concepts", type=int, default=len(CONCEPTS), help="how many, from 1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="I/N", help="make the I-th of N parts")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after")
    parser.add_argument("--kept", action="store_true", help="make no cell: show what is kept")
    parser.add_argument("--calls", type=int, default=12_000, help="forwards + backwards a cell")
    parser.add_argument("--images", type=int, default=16, help="pictures of each prompt")
    parser.add_argument("--out", type=Path, default=Path("runs/concepts"), help="of the searches")
    parser.add_argument("--rows", type=Path, default=Path("runs/concepts"), help="of the cells")
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="the denoiser; takes minutes once")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of all cells")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


class Cells:
    """The cells of a folder, made where they are not there.

    Args:
        options: of `arguments`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model: FrozenModel = tiller.load_model(options.model, dtype=options.dtype)
        if options.compile:
            compile_denoiser(self.model)
        self.common = dict(setting.split("=", 1) for setting in options.set)
        self.began = time.monotonic()
        part, _, parts = (options.only or "1/1").partition("/")
        self.part, self.parts = int(part) - 1, int(parts)
        self.file = options.rows / f"cells{options.only.replace('/', '-')}.jsonl"
        self.known: dict[str, Cell] = {}
        for file in sorted(options.rows.glob("cells*.jsonl")):
            for line in file.read_text().splitlines():
                found = json.loads(line)
                key = found.pop("key")
                self.known[key] = Cell(**found)

    def grid(self, variants: Sequence[str]) -> dict[str, list[Cell]]:
        """The cells of each variant that there are, after making this part's, seed by seed.

        A part of the cells has no table: it ends here.
        """
        made = CONCEPTS[: self.options.concepts]
        seeds = range(self.options.seeds)
        wanted = [(v, one, seed) for seed in seeds for v in variants for one in made]
        mine = wanted[self.part :: self.parts]
        for i, (variant, one, seed) in enumerate(mine):
            if self.cell(one, variant, seed):
                print(f"{i + 1} of {len(mine)}: {variant}, {one.name}, {seed}", file=sys.stderr)
        if self.parts > 1:
            raise SystemExit(0)
        found: dict[str, list[Cell]] = {variant: [] for variant in variants}
        for variant, one, seed in wanted:
            cell = self.known.get(self.key(one, variant, seed))
            if cell is not None:
                found[variant].append(replace(cell, variant=variant))
        return {variant: cells for variant, cells in found.items() if cells}

    def cell(self, made: Made, variant: str, seed: int) -> bool:
        """Make one cell, unless it is kept or the time is over; whether it was made."""
        options, key = self.options, self.key(made, variant, seed)
        late = time.monotonic() - self.began > options.seconds
        if key in self.known or options.kept or late:
            return False
        self.known[key] = self._made(made, variant, seed)
        options.rows.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"key": key, **asdict(self.known[key])}) + "\n")
        return True

    def key(self, made: Made, variant: str, seed: int) -> str:
        """A digest of all that a cell depends on, the methods' defaults included.

        But for the precision: one machine may go on in float32 where another, quicker in bfloat16,
        has begun.
        """
        options = self.options
        how = [NEAREST] if variant == WORD else [name_and_fields(*self.method(variant))]
        whole = [made.name, *how, seed, options.model, options.calls, options.images]
        return sha256(json.dumps(whole).encode()).hexdigest()[:16]

    def method(self, variant: str) -> tuple[str, dict[str, Any]]:
        """The variant's method and settings."""
        common = {"preview_every": 0, "patience": 0, "tokens": 1}
        settings = common | VARIANTS[variant] | self.common
        return settings.pop("method", "gfti"), settings

    def _made(self, made: Made, variant: str, seed: int) -> Cell:
        size = (self.model.defaults.height, self.model.defaults.width)
        given = load_pictures(pictures(made.name), size)
        if variant == WORD:
            return self._word(made, given.tensor(), seed)
        method, settings = self.method(variant)
        settings |= self.start(made, variant, seed)
        share = self.options.calls if method == "gfti" else self.options.calls // 2
        result = learn_concept(
            self.model,
            given,
            "<new>",
            subject=made.subject,
            method=method,
            budget=f"forwards={share}",
            seed=seed,
            out=self.options.out,
            **settings,
        )
        measured = self._measured(result.concept, given.tensor(), made, seed)
        return self._cell(made, variant, seed, measured, result)

    def start(self, made: Made, variant: str, seed: int) -> dict[str, str]:
        """The init of a variant, where it is known: the best start is found once a concept."""
        method, settings = self.method(variant)
        settled = make(method, settings).settled(self.model)
        first = self.known.get(self.key(made, "pca", seed))
        if first is None or (settled.loss, settled.init, settled.tokens) != (DRAWN, "best", 1):
            return {}
        return {"init": first.began[0] if len(first.began) == 1 else "clip"}

    def _word(self, made: Made, given: Tensor, seed: int) -> Cell:
        """The best plain word by the reconstruction that is reported.

        Of those among which a search chooses its start, and of the one that was chosen by eye.
        """
        sentence = templates.training(made.subject, emoji=is_emoji(self.model))[0]
        words = words_of(self.model)
        _, near = similarities(tower_for(EMOJI, given), given, words, sentence, NEAREST)
        tower = tower_for(EMOJI_HELD_OUT, given)
        wanted = tower.embed_images(given)
        first = UNSEEN * (seed + 1)
        seeds = range(first, first + self.options.images)

        def likeness(word: str) -> float:
            told = told_by(self.model, [templates.filled(sentence, word)])
            drawn = sample(self.model, told, seeds, at_once=len(seeds))
            return float((tower.embed_images(drawn) @ wanted.T).mean())

        with torch.no_grad():
            best = max(dict.fromkeys([made.word, *near]), key=likeness)
        return self._cell(made, WORD, seed, self._measured(best, given, made, seed), None)

    def _measured(self, concept: Any, given: Tensor, made: Made, seed: int) -> Measured:
        return evaluate(
            self.model,
            concept,
            given,
            subject=made.subject,
            images=self.options.images,
            seed=UNSEEN * (seed + 1),
            clips=["emoji-heldout"],
        )

    def _cell(
        self,
        made: Made,
        variant: str,
        seed: int,
        measured: Measured,
        result: ConceptResult | None,
    ) -> Cell:
        judge = {} if measured.judge is None else asdict(measured.judge)
        cost = None if result is None else result.cost
        return Cell(
            concept=made.name,
            variant=variant,
            seed=seed,
            reconstruction=measured.reconstruction,
            editability=measured.editability,
            judge=judge,
            loss=None if result is None else result.loss,
            start_loss=None if result is None else result.start_loss,
            model_calls=0 if cost is None else cost.model_calls,
            aside=0 if result is None else result.aside,
            seconds=0.0 if cost is None else cost.seconds,
            curve=[] if result is None else curve(result.run_dir),
            token=measured.token,
            began=[] if result is None else list(result.began),
            dtype=self.options.dtype,
        )


def compile_denoiser(model: FrozenModel) -> None:
    """Compile the denoiser's calls without a gradient, for the batches that searches make most.

    A graph for batches of any size is hardly quicker than none.
    """
    network: Any = model.unet  # type: ignore[attr-defined]  # the bundled model has one
    network.to(memory_format=torch.channels_last)
    eager = network.forward
    quick = torch.compile(eager, dynamic=False)

    def forward(latents: Tensor, t: Tensor, *args: Any, **named: Any) -> Any:
        often = len(latents) in COMPILED and not t.ndim and not torch.is_grad_enabled()
        return (quick if often else eager)(latents, t, *args, **named)

    network.forward = forward


def name_and_fields(method: str, settings: dict[str, Any]) -> list[Any]:
    """A method as a key has it: with all of its fields."""
    return [method, sorted(asdict(make(method, settings)).items())]


def curve(run: Path) -> list[tuple[int, float]]:
    """(model calls, lowest held-out loss) at each look of a run."""
    found: list[tuple[int, float]] = []
    for entry in read_run(run).entries:
        if entry.get("held_out") is None:
            continue
        cost = entry.get("cost") or {"forwards": 0, "backwards": 0}
        lowest = min([float(entry["held_out"]), *(loss for _, loss in found)])
        found.append((cost["forwards"] + cost["backwards"], lowest))
    return found
