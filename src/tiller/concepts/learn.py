"""`learn_concept`, `resume_concept`, `open_concept`: what the command line and scripts call."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tiller.concepts import initialize, templates
from tiller.concepts.base import DENOISING, LONGEST, ConceptMethod
from tiller.concepts.drawing import check_seeds
from tiller.concepts.files import check_small, notice_inside
from tiller.concepts.grounds import place_of
from tiller.concepts.objective import Sampling, rows_that_fit
from tiller.concepts.pictures import Given, Pictures, load_pictures, to_tensor
from tiller.concepts.run import FINALS, KIND, SPACE, ConceptRun, Material, Progress
from tiller.concepts.vocabulary import Words, notice_untaught, words_of
from tiller.core.budget import Budget, Cost, metered
from tiller.core.discovery import discover
from tiller.core.errors import InvalidInput, RunError, TillerNotice
from tiller.core.rng import keyed_generator
from tiller.core.settings import settled, unknown
from tiller.models.base import FrozenModel
from tiller.models.concept_files import read_concept
from tiller.models.concepts import Concept, check_new
from tiller.models.loader import is_emoji, load_model
from tiller.runs.concept_report import forwards_aside
from tiller.runs.record import Record, read_run
from tiller.runs.store import RunStore, versions


@dataclass(frozen=True)
class ConceptResult:
    """What a concept's run ended with, or stands with.

    Attributes:
        concept: the learned word; `learned_embeds.safetensors` in the run's folder holds it.
        method: the method's name.
        prompt: the plainest sentence about it, which the sample drawings are of.
        began: the words that e0 was made of, the heaviest first; none of a random start.
        stopped: why the search ended.
        cost: what the search used.
        aside: forwards that are not in it: the choice of the start, the looks at held-out trials
            and the losses below; sample drawings are nowhere.
        start_loss: the loss of e0 on trials that chose nothing; None before the end.
        loss: the same of the concept.
        pictures: the last drawings, files.
        run_dir: the run's folder.
    """

    concept: Concept
    method: str
    prompt: str
    began: tuple[str, ...]
    stopped: str
    cost: Cost
    aside: int
    start_loss: float | None
    loss: float | None
    pictures: tuple[Path, ...]
    run_dir: Path


def methods() -> dict[str, type[ConceptMethod]]:
    """Every method of learning a concept, by its command line name."""
    return discover("tiller.concepts", ConceptMethod)  # type: ignore[type-abstract]  # what it finds is concrete


def make(name: str, settings: dict[str, Any]) -> ConceptMethod:
    """The method called `name` with `settings`; texts are converted.

    Raises:
        InvalidInput: unknown name or field, or a value that does not fit.
    """
    known = methods()
    if name not in known:
        raise InvalidInput(unknown("method of learning a concept", name, [*known]))
    return settled(known[name], settings, f"method {name}")


def learn_concept(
    model: str | Path | FrozenModel | Any,
    pictures: Sequence[Given] | Pictures,
    token: str,
    *,
    subject: str = "object",
    method: str = "gfti",
    budget: Budget | str | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    on_step: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> ConceptResult:
    """Teach a frozen model a new word from a few pictures.

    Args:
        model: what `load_model` takes or returns.
        pictures: 3 to 5 files or PIL pictures of one thing or one style, or what `load_pictures`
            made of them.
        token: the new word, such as `<duck>`.
        subject: `object` for a thing, `style` for a way of drawing.
        method: `gfti` without gradients, `ti` with.
        budget: when to stop, a `Budget` or text such as "steps=300"; None takes the method's own.
        seed: of everything random; the same seed gives the same run.
        out: the folder that gets the run's folder.
        on_step: called after each round.
        settings: the method's fields.

    Raises:
        InvalidInput: something in the arguments is unusable; nothing has been searched.

    Example:
        >>> import tiller
        >>> photos = ["one.jpg", "two.jpg", "three.jpg"]
        >>> found = tiller.concepts.learn_concept("emoji", photos, "<duck>")    # doctest: +SKIP
        >>> tiller.load_model("emoji", concepts=[found.run_dir])                # doctest: +SKIP
    """
    chosen = make(method, settings)
    limits = Budget.parse(budget) if isinstance(budget, str) else budget or chosen.default_budget
    templates.training(subject)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidInput(f"seed must be a whole number, got {seed!r}")
    check_seeds([seed, seed + FINALS - 1])
    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    chosen = chosen.settled(loaded)
    _check_budget(limits, chosen)
    check_new(token, loaded.tokenizers)
    check_small(token, chosen.vectors)
    size = (loaded.defaults.height, loaded.defaults.width)
    found = pictures if isinstance(pictures, Pictures) else load_pictures(pictures, size)
    sizes = {item.image.size for item in found.items} - {size[::-1]}
    if sizes:
        raise InvalidInput(
            f"expected pictures of {size[1]} x {size[0]} pixels, as the model draws, got "
            f"{sorted(sizes)}; load_pictures(files, {size}) makes them so"
        )
    notice_inside(token)
    _say_how_many(found)
    material, began = _material(loaded, chosen, found, subject, seed)
    probe = material.denoising(loaded, chosen.sampling())
    rows = rows_that_fit(probe, material.space.decode(material.z))
    with metered() as meter:
        if chosen.init == "best":
            material, began = _best(loaded, chosen, material, began, subject, seed, rows)
    spec = {
        "kind": KIND,
        "token": token,
        "subject": subject,
        "prompt": templates.filled(material.templates[0], token),
        "method": {"name": method, "settings": dataclasses.asdict(chosen)},
        "citation": chosen.citation,
        "model": loaded.source,
        "model_options": loaded.options,
        "model_fingerprint": loaded.fingerprint(),
        "pictures": [
            _about(item) | {"place": place}
            for item, place in zip(found.items, material.places, strict=True)
        ],
        "left_out": list(found.left_out),
        "crop": found.crop,
        "background": found.background,
        "init": began,
        "start_forwards": meter.cost.forwards,
        "budget": str(limits),
        "seed": seed,
        "rows": rows,
        "sampler": dataclasses.asdict(loaded.defaults),
        "versions": versions(),
    }
    with RunStore.create(out, spec, method) as store:
        for i, item in enumerate(found.items):
            store.save_image(f"input-{i + 1:02d}", item.image, {"picture": item.name})
        material.save(store.path / SPACE)
    ConceptRun(store.spec, loaded, chosen, material, store).go(on_step)
    return open_concept(store.path)


def resume_concept(
    run_dir: str | Path,
    *,
    model: FrozenModel | None = None,
    budget: Budget | str | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> ConceptResult:
    """Continue a concept's run bit-exactly from its last saved round.

    Args:
        run_dir: the run's folder.
        model: needed if the run was made with a pipeline object.
        budget: a larger budget, to go on after the end; None keeps the run's own.
        on_step: called after each round.

    Raises:
        RunError: no run there, not a concept's, damaged, or made with other weights.
    """
    store = RunStore.open(run_dir)
    spec = store.spec
    if spec.get("kind") != KIND:
        raise RunError(f"{store.path} is no run that learns a concept; `tiller resume` knows it")
    if not (store.path / SPACE).is_file():  # it is written last, before the search begins
        raise RunError(f"{store.path} was cut off before its search began; learn it again")
    if model is None and spec["model"] is None:
        raise RunError(f"{store.path} was made with a pipeline object; pass it: model=...")
    loaded = model or load_model(spec["model"], **spec["model_options"])
    if loaded.fingerprint() != spec["model_fingerprint"]:
        raise RunError(
            f"{store.path} was made with other weights than {loaded.name} has now; install the "
            f"version that made it ({spec['versions']}), or learn the concept again"
        )
    if versions() != spec["versions"]:
        warnings.warn(
            f"the run was made with {spec['versions']}, this is {versions()}; the continuation may "
            "differ in the last digits",
            TillerNotice,
            stacklevel=2,
        )
    chosen = make(spec["method"]["name"], spec["method"]["settings"])
    limits = Budget.parse(budget) if isinstance(budget, str) else budget
    if limits is not None:
        _check_budget(limits, chosen)
    names = range(1, len(spec["pictures"]) + 1)
    images = [store.load_image(f"input-{i:02d}")[0] for i in names]
    latents = _latents(loaded, chosen, images)
    places = [one.get("place", "") for one in spec["pictures"]]  # runs before them have none
    said = _sentences(loaded, spec["subject"], chosen.vectors, places)
    pixels = torch.stack([to_tensor(image) for image in images])
    material = Material.load(store.path / SPACE, pixels, latents, said, places)
    with store:
        if limits is not None:
            store.set_budget(str(limits))
    ConceptRun(store.spec, loaded, chosen, material, store).go(on_step)
    return open_concept(store.path)


def open_concept(run_dir: str | Path) -> ConceptResult:
    """Read a concept's run back.

    Raises:
        RunError: no run there, or nothing kept yet.
    """
    record = read_run(run_dir)
    drawn = [e for e in record.entries if e.get("samples") and e["kind"] != "result"]
    latest = record.result or (drawn[-1] if drawn else None)
    if latest is None:
        raise RunError(f"{record.path} has nothing learned yet; continue it with `tiller resume`")
    losses = record.result.get("losses", {})
    return ConceptResult(
        concept=read_concept(record.path),
        method=record.method,
        prompt=record.prompt,
        began=tuple(record.spec.get("init", ())),
        stopped=record.stopped or "not finished",
        cost=_cost(record),
        aside=forwards_aside(record),
        start_loss=losses.get("start"),
        loss=losses.get("learned"),
        pictures=tuple(record.path / name for name in latest["samples"]),
        run_dir=record.path,
    )


def _cost(record: Record) -> Cost:
    cost = record.last.get("cost")
    return Cost() if cost is None else Cost(**cost)


def _material(
    model: FrozenModel, method: ConceptMethod, pictures: Pictures, subject: str, seed: int
) -> tuple[Material, list[str]]:
    """What is learned from, and the words that e0 was made of, the heaviest first.

    Of `init=best` it begins at the mix, and the words are those that may be better.
    """
    images = [item.image for item in pictures.items]
    places = tuple(place_of(to_tensor(image)) if method.ground else "" for image in images)
    try:
        said = _sentences(model, subject, method.vectors, places)
    except InvalidInput:  # a text encoder of few places
        places = ("",) * len(images)
        said = _sentences(model, subject, method.vectors, places)
    words = words_of(model)
    start, began = _start(model, method, pictures, words, said[0], seed)
    latents = _latents(model, method, images)
    space, z = method.space(start, words, seed)
    return Material(space, z, pictures.tensor(), latents, said, places), began


def _best(
    model: FrozenModel,
    method: ConceptMethod,
    material: Material,
    near: Sequence[str],
    subject: str,
    seed: int,
    rows: int,
) -> tuple[Material, list[str]]:
    """The same material from the start that has the lowest loss, and the words of that start.

    Args:
        model: the frozen model.
        method: with nothing left open.
        material: as it begins at the mix.
        near: words that fit the pictures, the nearest first.
        subject: object or style.
        seed: of the run.
        rows: of one denoiser call at most.
    """
    trials = Sampling(initialize.TRIALS, initialize.TRIALS)

    def begun(phrase: str) -> list[Tensor]:
        return initialize.of_words(model, phrase, method.vectors)

    named = {name: begun(name) for name in near[: initialize.NEAREST]}
    if method.vectors > 1:
        tower, thing = initialize.clip_of(model, method.clip), subject == "object"
        length, said = min(method.vectors, LONGEST), material.templates[0]
        phrases = initialize.nearest_phrases(
            tower, material.pixels, near, said, length, thing=thing
        )
        starts = [begun(phrase) for phrase in phrases]
        sketches = material.loss(model, method, trials, rows)
        named = {phrases[i]: starts[i] for i in initialize.promising(sketches, starts, seed)}
    mixed = [vectors[0] for vectors in material.space.decode(material.z)]
    whole = material.loss(model, method, trials, rows, whole=True)
    best = initialize.lowest(whole, [mixed, *named.values()], seed)
    if best == 0:
        return material, list(near[:5])
    name = list(named)[best - 1]
    space, z = method.space(named[name], words_of(model), seed)
    return replace(material, space=space, z=z), [name]


def _sentences(
    model: FrozenModel, subject: str, tokens: int, places: Sequence[str]
) -> tuple[str, ...]:
    """The training sentences that the text encoders read whole, the word's vectors included.

    Args:
        model: the frozen model.
        subject: object or style.
        tokens: of the word.
        places: what follows the sentences.

    Raises:
        InvalidInput: none is read whole.
    """
    longest = max(places, key=len, default="")
    found = tuple(
        sentence
        for sentence in templates.training(subject, emoji=is_emoji(model))
        if templates.fits(f"{sentence} {longest}", model.tokenizers, tokens)
    )
    if not found:
        limit = min(int(tokenizer.model_max_length) for tokenizer in model.tokenizers)
        raise InvalidInput(f"a prompt of this model has {limit} places; got {tokens=} for one word")
    return found


def _start(
    model: FrozenModel,
    method: ConceptMethod,
    pictures: Pictures,
    words: Words,
    sentence: str,
    seed: int,
) -> tuple[list[Tensor], list[str]]:
    """e0 [k, D_e] for each text encoder, and the words that it is near."""
    if method.init == "random":
        return initialize.at_random(words, method.vectors, keyed_generator(seed, "start")), []
    if method.init not in ("clip", "best"):
        notice_untaught(model, [method.init])
        return initialize.of_words(model, method.init, method.vectors), method.init.split()
    try:
        tower = initialize.clip_of(model, method.clip)
    except InvalidInput as error:
        raise InvalidInput(
            f"{error}. Or begin at a word that you choose: --init duck (init='duck')"
        ) from error
    most = initialize.POOL if method.init == "best" else 5
    similarity, near = initialize.similarities(tower, pictures.tensor(), words, sentence, most)
    mixed = initialize.attended(similarity, words.tables, method.temperature)
    return [e.expand(method.vectors, -1).clone() for e in mixed], near


def _latents(model: FrozenModel, method: ConceptMethod, images: Sequence[Image.Image]) -> Tensor:
    """[views, N, C, h, w]: the pictures, and their mirrored ones where a round may draw these."""
    pixels = torch.stack([to_tensor(image) for image in images])
    views = [pixels, pixels.flip(-1)] if method.flip else [pixels]
    # One at a time: the latents of a picture do not depend on how many there are.
    return torch.stack([torch.cat([model.encode_images(p[None]) for p in view]) for view in views])


def _about(item: Any) -> dict[str, Any]:
    return {"name": item.name, "size": list(item.size), "notes": list(item.notes)}


def _check_budget(limits: Budget, method: ConceptMethod) -> None:
    """Refuse a limit that this search never reaches."""
    if limits.images is not None and method.loss == DENOISING:
        raise InvalidInput(
            f"the denoising loss draws no images, so images={limits.images} would never end the "
            "search; expected a budget of steps, forwards or seconds"
        )


def _say_how_many(pictures: Pictures) -> None:
    """What people should know about their pictures, and what stops nothing."""
    for line in pictures.left_out:
        warnings.warn(f"left out: {line}", TillerNotice, stacklevel=3)
    if len(pictures) < 3:
        warnings.warn(
            f"3 to 5 pictures teach a word best, got {len(pictures)}: what they share beside the "
            "subject may be learned with it",
            TillerNotice,
            stacklevel=3,
        )
