"""A concept being learned, in step with its run folder.

The folder holds all that goes on needs: the pictures as they were cropped, the space (`e0`, W), the
search's state. What is learned lies there too, after every look that found better vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.concepts.base import DENOISING, ConceptMethod
from tiller.concepts.card import model_card
from tiller.concepts.drawing import sample, told_by, vocabulary
from tiller.concepts.drawn import DrawnLoss
from tiller.concepts.files import encoded
from tiller.concepts.initialize import clip_of
from tiller.concepts.objective import ConceptLoss, DenoisingLoss, Sampling
from tiller.concepts.watch import Look, Watch
from tiller.core.budget import Budget, metered
from tiller.core.errors import RunError
from tiller.core.search import Step
from tiller.learning import INTERRUPTED, Learned, learn
from tiller.models.base import FrozenModel
from tiller.models.concept_files import read_concept
from tiller.models.concepts import Concept
from tiller.runs.concept_report import CONCEPT
from tiller.runs.files import explained, write_atomically
from tiller.runs.journal import Entry
from tiller.runs.state_file import unshared
from tiller.runs.store import RunStore
from tiller.spaces.concept import ConceptSpace

KIND = CONCEPT  # of a run, in its spec
SPACE = "space.safetensors"
PREVIEWS, FINALS = 2, 4  # pictures of a sample drawing, and of the last one


@dataclass(frozen=True)
class Progress:
    """What a progress line shows after a round.

    Attributes:
        step: the round.
        start: the held-out loss of e0.
        best: the lowest so far.
        budget: the run's.
        run_dir: its folder.
        method: its name.
        drawn: the round's sample drawings, files.
    """

    step: Step
    start: float
    best: float
    budget: Budget
    run_dir: Path
    method: str
    drawn: tuple[Path, ...]


@dataclass(frozen=True)
class Material:
    """What a concept is learned from.

    Attributes:
        space: what may change.
        z: [1, k, d] where it is e0.
        pixels: [N, 3, H, W] in [0, 1], the pictures.
        latents: [views, N, C, h, w] of the pictures, the mirrored ones second where they are used.
        templates: the training sentences, the plainest first.
        places: how the sentences about each picture end.
    """

    space: ConceptSpace
    z: Tensor
    pixels: Tensor
    latents: Tensor
    templates: tuple[str, ...]
    places: tuple[str, ...] = ()

    def loss(
        self,
        model: FrozenModel,
        method: ConceptMethod,
        sampling: Sampling,
        rows: int = 128,
        *,
        whole: bool = False,
    ) -> ConceptLoss:
        """The method's loss of the pictures in these sentences, over the sampling.

        `whole`: drawings take all of the sampler's steps. Sketches are enough to search with, and
        too coarse to choose by.
        """
        if method.loss == DENOISING:
            return self.denoising(model, sampling, rows)
        return DrawnLoss(
            model,
            clip_of(model, method.clip),
            self.pixels,
            self.templates,
            sampling,
            steps=None if whole else method.sketch_steps,
            places=self.places,
            rows=rows,
        )

    def denoising(self, model: FrozenModel, sampling: Sampling, rows: int = 128) -> DenoisingLoss:
        """The denoising loss, whatever the method's."""
        return DenoisingLoss(
            model, self.latents, self.templates, sampling, places=self.places, rows=rows
        )

    def save(self, path: Path) -> None:
        """Keep the space, which may come from a CLIP or from random numbers."""
        from safetensors.torch import save

        tensors = {"start": self.space.start, "z": self.z}
        if self.space.basis is not None:
            tensors["basis"] = self.space.basis
        about = {"widths": json.dumps(self.space.widths), "spread": repr(self.space.spread)}
        write_atomically(path, save(unshared(tensors), about), "keep the concept's space")

    @classmethod
    def load(
        cls,
        path: Path,
        pixels: Tensor,
        latents: Tensor,
        templates: Sequence[str],
        places: Sequence[str],
    ) -> Material:
        """The material of a run's folder.

        Raises:
            RunError: the space is not there, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with explained(path, "read the concept's space"), safe_open(path, "pt") as file:
                # Copies lie where torch puts tensors: products round by where their factors lie.
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
                about = file.metadata()
            start = torch.split(found["start"], json.loads(about["widths"]), dim=1)
            space = ConceptSpace(start, found.get("basis"), float(about["spread"]))
            return cls(space, found["z"], pixels, latents, tuple(templates), tuple(places))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}); learn the concept again") from error


class ConceptRun:
    """One concept's run: its parts, its folder, and what it has found.

    Args:
        spec: all that repeats the run; see `learn.learn_concept`.
        model: the frozen model.
        method: how it searches.
        material: what it learns from.
        store: its folder.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        model: FrozenModel,
        method: ConceptMethod,
        material: Material,
        store: RunStore,
    ) -> None:
        self.spec, self.model, self.method, self.material = spec, model, method, material
        self.store = store
        self.budget = Budget.parse(spec["budget"])
        rows = int(spec["rows"])
        self.objective = material.loss(model, method, method.sampling(), rows)
        self._held_out = material.loss(model, method, method.held_out(), rows, whole=True)
        self._watch: Watch | None = None
        self._look: Look | None = None
        self._looked = 0  # forwards of the latest look
        self._drawn: list[str] = []  # what the latest round drew
        self._start = float("nan")

    def go(self, on_step: Callable[[Progress], None] | None = None) -> None:
        """Search to the end of the budget, from where the folder stands; then the last pictures.

        Raises:
            RunError: the folder cannot be read or written.
        """

        def shown(step: Step) -> None:
            if on_step is not None:
                name, best = self.spec["method"]["name"], self._watching().best
                drawn = tuple(self.store.path / file for file in self._drawn)
                found = (step, self._start, best, self.budget, self.store.path, name, drawn)
                on_step(Progress(*found))

        phases = self.method.build(self.material.space, self.material.z, self.objective)
        learned = learn(
            self.store,
            phases,
            self.budget,
            int(self.spec["seed"]),
            entry=self._entry,
            begin=self._begin,
            until=self._until,
            on_step=shown,
        )
        if learned.stopped != INTERRUPTED:
            with self.store:
                self._finish(learned)

    def _begin(self) -> Iterator[Entry]:
        """The journal's first line: e0, its held-out loss and what it draws."""
        with metered() as meter:
            look = self._new_watch().look(self.material.z)
        self._keep(look.z, 0)
        names = self._draw("sample-0000", PREVIEWS)
        yield {
            "kind": "baseline",
            "scores": {"held_out": -look.loss},
            "held_out": look.loss,
            "forwards": meter.cost.forwards,
            "image": names[0],
            "samples": names,
        }

    def _until(self, step: Step) -> str | None:
        """Look at the search's centre and the round's best on held-out trials, where it is due."""
        watch = self._watching()
        self._look = None
        if step.index % watch.every and step.stopped is None:
            return None
        best = step.evaluation.best
        centre = self.method.centre(step.state).to(step.z)
        with metered() as meter:
            self._look = watch.look(torch.cat([centre, step.z[best : best + 1]]))
        self._looked = meter.cost.forwards
        return watch.plateau()

    def _entry(self, step: Step) -> Entry:
        """What the journal says of a round besides the usual; the folder's files come first."""
        watch, look = self._watching(), self._look
        line: Entry = {"scores": {"held_out": -watch.best}}
        if look is not None:
            line |= {"held_out": look.loss, "kept": look.kept, "forwards": self._looked}
            if look.kept:
                self._keep(look.z, step.index)
        every = self.method.preview_every
        self._drawn = []
        if every and step.index % every == 0:
            names = self._drawn = self._draw(f"sample-{step.index:04d}", PREVIEWS)
            line |= {"image": names[0], "samples": names}
        return line

    def _finish(self, learned: Learned) -> None:
        """The pictures of what was learned, its losses on trials that chose nothing, its card."""
        lines = [entry for entry in self.store.entries() if entry["kind"] in ("step", "result")]
        if lines[-1]["kind"] == "result":
            return
        concept = self.concept()
        names = self._draw("final", FINALS, best=True)
        vectors = tuple(v[None].to(self.material.z) for v in concept.vectors)
        with metered() as meter:
            losses = self._new_watch().report(self.material.space.decode(self.material.z), vectors)
        card = model_card(concept, self.spec, learned.state.round)
        write_atomically(self.store.path / "README.md", card.encode(), "write the concept's card")
        self.store.append(
            {
                "kind": "result",
                "step": learned.state.round,
                "losses": {"start": losses[0], "learned": losses[1]},
                "samples": names,
                "forwards": meter.cost.forwards,
            }
        )

    def concept(self) -> Concept:
        """What is learned so far, as the folder has it."""
        return read_concept(self.store.path, str(self.spec["token"]))

    def _keep(self, z: Tensor, round_: int) -> None:
        """Write the vectors of z [1, k, d] for other programs."""
        vectors = tuple(v[0].float().cpu() for v in self.material.space.decode(z))
        about = {
            "model": str(self.spec["model"] or ""),
            "method": str(self.spec["method"]["name"]),
            "subject": str(self.spec["subject"]),
            "round": str(round_),
        }
        concept = Concept(str(self.spec["token"]), vectors, about)
        for name, data in encoded(concept, "diffusers").items():
            write_atomically(self.store.path / name, data, "keep what was learned")

    def _draw(self, name: str, count: int, *, best: bool = False) -> list[str]:
        """Draw the concept in its plainest sentence; the files' names in the run's folder."""
        concept, seed = self.concept(), int(self.spec["seed"])
        text = vocabulary(self.model, [concept]).read(str(self.spec["prompt"]))
        seeds = range(seed, seed + count)
        pictures = sample(self.model, told_by(self.model, text), seeds, at_once=count)
        about = {key: self.spec[key] for key in ("prompt", "model", "versions")}
        about |= {**self.spec["sampler"], "method": self.spec["method"]["name"]}
        names = []
        for i, picture in enumerate(pictures):
            names.append(f"images/{name}-{i + 1}.png")
            self.store.save_image(f"{name}-{i + 1}", picture[None], {**about, "seed": seed + i})
        if best:
            self.store.save_image("best", pictures[:1], {**about, "seed": seed})
        return names

    def _new_watch(self) -> Watch:
        method, seed = self.method, int(self.spec["seed"])
        looks = {"every": method.check_every or 1, "patience": method.patience}
        return Watch(self.material.space, self._held_out, seed, **looks)

    def _watching(self) -> Watch:
        """The watch, standing where the journal stood when the search began or went on."""
        if self._watch is None:
            self._watch = self._new_watch()
            entries = self.store.entries()
            self._watch.recall(entries)
            first = next(entry for entry in entries if entry["kind"] == "baseline")
            self._start = float(first["held_out"])
        return self._watch
