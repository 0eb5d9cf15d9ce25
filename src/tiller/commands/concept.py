"""`concept learn`, `draw`, `convert`, `evaluate`: new words from a few pictures."""

from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiller.commands import AsJson, Quiet
from tiller.commands.concept_inputs import inputs_of, model_of, spec_of
from tiller.commands.concept_view import ConceptLine, compared, summary
from tiller.commands.options import (
    Dtype,
    Limits,
    Model,
    Negative,
    Out,
    Settings,
    Variant,
    check_encoding,
    field_values,
)
from tiller.core.errors import InvalidInput
from tiller.session import INTERRUPTED, Session, quiet_libraries, session
from tiller.session import told_on_interrupt as told
from tiller.terminal import clean, shown

if TYPE_CHECKING:
    from tiller.concepts.learn import ConceptResult
    from tiller.concepts.run import Progress
    from tiller.models.concepts import Concept

app = typer.Typer(
    name="concept",
    help="Teach a model a new word from a few pictures, and use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Pictures = Annotated[
    list[Path], typer.Argument(metavar="PICTURES", help="3 to 5 of one thing or one style.")
]
Kind = Annotated[str, typer.Option("--kind", help="object or style.")]
Crop = Annotated[str, typer.Option(help="centre fills the model's picture, pad shows all of it.")]
Ground = Annotated[
    str, typer.Option("--background", help="What shows through transparency and beside padding.")
]
Skip = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out what is no picture, and go on.")
]
Learned = Annotated[
    list[str] | None,
    typer.Option(
        "--concept",
        metavar="FILE[=TOKEN]",
        help="A learned word: a file or a run's folder; repeatable.",
    ),
]
AnyModel = Annotated[
    str | None, typer.Option("--model", help="As for `tiller steer`. [the concept's own]")
]


@app.command()
def learn(
    pictures: Pictures,
    token: Annotated[str, typer.Option(help='The new word, such as "<duck>".')],
    kind: Kind = "object",
    method: Annotated[str, typer.Option(help="gfti, without gradients, or ti, with.")] = "gfti",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Where to begin: best, clip, random, or words, a vector each: 'a pink dog'.",
        ),
    ] = None,
    crop: Crop = "centre",
    background: Ground = "white",
    skip_broken: Skip = False,
    model: Model = "emoji",
    dtype: Dtype = None,
    variant: Variant = None,
    budget: Limits = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    settings: Settings = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn a word from PICTURES; prompts then say it by its token.

    --set takes the fields of `tiller methods gfti` or `tiller methods ti`. `tiller resume RUN`
    continues a search that was stopped.
    """
    quiet_libraries()
    with session(as_json) as now:
        check_encoding(token)
        fields = field_values(settings or [])
        if init is not None:
            fields = _with_init(fields, init)
        line = ConceptLine(now.console, quiet=quiet)

        def watched(progress: Progress) -> None:
            now.run_dir = progress.run_dir  # what is named where something goes wrong
            line.update(progress)

        with told(now.notice):
            from tiller.concepts.learn import learn_concept, make
            from tiller.concepts.pictures import check_crop, load_pictures
            from tiller.concepts.templates import training
            from tiller.core.budget import Budget
            from tiller.models import load_model
            from tiller.models.concepts import check_new

            make(method, fields)  # a typing error should not cost the loading of a model
            check_crop(crop)
            training(kind)
            if budget is not None:
                Budget.parse(budget)
            loaded = load_model(model, dtype=dtype, variant=variant)
            size = (loaded.defaults.height, loaded.defaults.width)
            found = load_pictures(
                pictures, size, crop=crop, background=background, skip_broken=skip_broken
            )
            check_new(token, loaded.tokenizers)  # before the line that says what goes on
            line.begin(len(found))
            result = learn_concept(
                loaded,
                found,
                token,
                subject=kind,
                method=method,
                budget=budget,
                seed=seed,
                out=out,
                on_step=watched,
                **fields,
            )
        _finish(now, result)


def resume_into(now: Session, folder: Path, budget: str | None, quiet: bool) -> None:
    """Continue the search in a run's folder: `tiller resume` of such a run."""
    line = ConceptLine(now.console, quiet=quiet)
    with told(now.notice):
        from tiller.concepts.learn import resume_concept

        result = resume_concept(folder, budget=budget, on_step=line.update)
    _finish(now, result)


def _finish(now: Session, result: ConceptResult) -> None:
    """The page and the answer."""
    from tiller.runs.report import write_report

    now.run_dir = result.run_dir
    if result.stopped == "interrupted":
        now.code = INTERRUPTED
    page = write_report([result.run_dir], result.run_dir / "report.html")
    data = {
        "run": str(result.run_dir),
        "token": result.concept.token,
        "method": result.method,
        "file": str(result.run_dir / "learned_embeds.safetensors"),
        "prompt": result.prompt,
        "began": list(result.began),
        "vectors": len(result.concept),
        "images": [str(path) for path in result.pictures],
        "loss": result.loss,
        "start_loss": result.start_loss,
        "cost": dataclasses.asdict(result.cost),
        "aside": result.aside,
        "stopped": result.stopped,
        "report": str(page),
    }
    now.answer(data, *summary(result, page))


@app.command()
def draw(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to draw, the tokens among its words.")
    ],
    concept: Learned = None,
    number: Annotated[int, typer.Option("-n", "--number", help="How many pictures.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first; the next ones count on.")] = 0,
    model: AnyModel = None,
    dtype: Dtype = None,
    variant: Variant = None,
    negative: Negative = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Of the sampler; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("drawn"),
    as_json: AsJson = False,
) -> None:
    """Draw a prompt that names learned words.

    A plain diffusers pipeline of the same precision that has loaded them draws the same for the
    same seed.
    """
    quiet_libraries()
    with session(as_json) as now:
        check_encoding(prompt, negative)
        fields = field_values(settings or [])
        if number < 1:
            raise InvalidInput(f"expected at least one picture, got -n {number}")
        with told(now.notice):
            from tiller.concepts.drawing import draw as run
            from tiller.core.settings import settled
            from tiller.models.base import SamplerSettings
            from tiller.models.concept_files import read_named, split_named
            from tiller.runs.png import encode_png

            known = [read_named(one) for one in concept or []]
            files_of = [split_named(one)[0] for one in concept or []]
            loaded = model_of(known, files_of, model, dtype=dtype, variant=variant)
            own = dataclasses.asdict(loaded.defaults)
            sampler = dataclasses.asdict(settled(SamplerSettings, own | fields, "the sampler"))
            seeds = range(seed, seed + number)
            about = {
                "prompt": prompt,
                "negative_prompt": negative,
                "model": loaded.source,
                **sampler,
                "concepts": [one.token for one in known],
            }
            files: list[Path] = []

            def keep(own: int, image: Any) -> None:
                data = encode_png(image, {**about, "seed": own})
                files.append(_write(out, f"{_stem(prompt)}-{own}", data))
                if number > 1:
                    now.notice(f"{len(files)}/{number}: {shown(files[-1])}")

            run(
                loaded, prompt, concepts=known, seeds=seeds, negative_prompt=negative,
                on_picture=keep, **sampler,
            )  # fmt: skip
        data = {"prompt": prompt, "model": loaded.name, "images": [str(path) for path in files]}
        now.answer(data, *(clean(shown(path)) for path in files))


@app.command()
def convert(
    concept: Annotated[str, typer.Argument(metavar="CONCEPT", help="A file or a run's folder.")],
    to: Annotated[str, typer.Option(help="diffusers, a1111 or comfyui.")],
    token: Annotated[str | None, typer.Option(help="Another word for it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder. [beside CONCEPT]")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a concept for another program."""
    quiet_libraries()
    with session(as_json) as now:
        from tiller.concepts.files import write_concept
        from tiller.core.paths import located
        from tiller.models.concept_files import read_concept

        found = read_concept(concept, token)
        given = located(concept)
        beside = given if given.is_dir() else given.parent
        files = write_concept(found, beside / to if out is None else out, to)
        data = {"token": found.token, "to": to, "files": [str(path) for path in files]}
        now.answer(data, *(clean(shown(path)) for path in files))


@app.command()
def evaluate(
    concept: Annotated[str, typer.Argument(metavar="CONCEPT", help="A file or a run's folder.")],
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PICTURES", help="What it was learned from. [the run's]"),
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="object or style. [the run's]")] = None,
    images: Annotated[int, typer.Option(help="Pictures drawn of each prompt.")] = 64,
    word: Annotated[
        list[str] | None, typer.Option(help="A plain word to compare with; repeatable.")
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(
            help="A CLIP that compares; repeatable, the first decides. [the "
            "bundled ones, of the bundled model alone]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture's noise.")] = 1000,
    crop: Annotated[str | None, typer.Option(help="As for learn. [the run's]")] = None,
    background: Annotated[str | None, typer.Option(help="As for learn. [the run's]")] = None,
    skip_broken: Skip = False,
    model: AnyModel = None,
    dtype: Dtype = None,
    variant: Variant = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a concept: whether it comes back, and whether it can be put elsewhere."""
    quiet_libraries()
    with session(as_json) as now:
        with told(now.notice):
            from tiller.concepts.metrics import evaluate as run
            from tiller.concepts.metrics import grounds_of
            from tiller.concepts.pictures import load_pictures
            from tiller.concepts.templates import edits
            from tiller.concepts.vocabulary import notice_untaught
            from tiller.core.paths import located
            from tiller.models.concept_files import read_concept
            from tiller.models.loader import is_emoji

            found = read_concept(concept)
            every: list[Concept | str] = [found, *(word or [])]
            if any(isinstance(one, str) and not one.strip() for one in every):
                raise InvalidInput("expected a word to compare with, got an empty --word")
            place = located(concept)
            loaded = model_of([found], [place], model, dtype=dtype, variant=variant)
            notice_untaught(loaded, word or [])
            size, spec = (loaded.defaults.height, loaded.defaults.width), spec_of(place)
            given = load_pictures(
                pictures or inputs_of(place),
                size,
                crop=crop or spec.get("crop", "centre"),
                background=background or spec.get("background", "white"),
                skip_broken=skip_broken,
            )
            for line in given.left_out:
                now.notice(f"left out: {line}")
            subject = kind or found.about.get("subject", "object")
            alike = 1 + len(edits(subject, emoji=is_emoji(loaded)))
            pixels = given.tensor()
            asked = sum(alike + len(grounds_of(loaded, one, pixels, subject)) for one in every)
            turns = iter(range(1, asked + 1))

            def drawing(text: str, count: int) -> None:
                now.notice(f"{next(turns)}/{asked}: drawing {count} of {text!r}")

            measured = [
                run(
                    loaded,
                    one,
                    pixels,
                    subject=subject,
                    images=images,
                    seed=seed,
                    clips=clip,
                    on_prompt=None if quiet else drawing,
                )
                for one in every
            ]
        data = {"concept": measured[0].plain(), "words": [one.plain() for one in measured[1:]]}
        now.answer(data, *compared(measured))


def _with_init(fields: dict[str, Any], init: str) -> dict[str, Any]:
    if "init" in fields:
        raise InvalidInput("got --init and --set init; give one of them")
    return fields | {"init": init}


def _stem(prompt: str) -> str:
    """A prompt as the beginning of a file's name."""
    safe = "".join(c if c.isalnum() else "-" for c in prompt.lower())
    return "-".join(filter(None, safe.split("-")))[:60].rstrip("-") or "picture"


def _write(folder: Path, stem: str, data: bytes) -> Path:
    """Save a picture beside others, whose prompts may give the same name: `<duck>` and `duck`."""
    from tiller.core.paths import located
    from tiller.runs.files import explained, write_atomically

    target = located(folder).absolute()
    file = target / f"{stem}.png"
    with explained(target, "make the folder of pictures"):
        target.mkdir(parents=True, exist_ok=True)
        for i in count(2):
            if not file.exists() or file.read_bytes() == data:
                break
            file = target / f"{stem}-{i}.png"
    write_atomically(file, data, "save the picture")
    return file
