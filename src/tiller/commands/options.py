"""The options that searches share, declared once: `steer`, `attack` and `batch` take them all."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tiller.commands import AsJson, Quiet
from tiller.core.errors import InvalidInput

Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="A name of `tiller rewards`, NAME:WEIGHT or file.py:function; repeat for a sum. "
        "[clip]",
    ),
]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        help="A reward to report and not to optimize; repeatable. [clip_heldout, if that is not "
        "optimized]"
    ),
]
Model = Annotated[
    str, typer.Option(help="A bundled name, a hub id, a folder or a .safetensors file.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Of weights and latents: float32; bfloat16, for GPUs and processors with AMX; or "
        "float16, for GPUs. [float32]"
    ),
]
Variant = Annotated[
    str | None, typer.Option(help="Of its weight files, such as fp16. [the plain ones]")
]
Negative = Annotated[
    str, typer.Option("--negative", "--negative-prompt", help="What to keep away from.")
]
Limits = Annotated[
    str | None,
    typer.Option(help="When to stop: steps=30,images=64,forwards=4000,seconds=60. [method's]"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="A field of `tiller methods NAME`; repeatable."
    ),
]
Affix = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:WEIGHT]",
        help="Learned tokens around the prompt (`tiller affix train`); repeatable, the first next "
        "to it.",
    ),
]
Concepts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[=TOKEN]",
        help="A learned word that the prompt names (`tiller concept learn`); repeatable.",
    ),
]
Out = Annotated[Path, typer.Option(help="The folder that gets the run's folder.")]


@dataclass(frozen=True)
class Options:
    """What every search takes on the command line: a field is an option."""

    reward: Rewards = None
    held_out: HeldOut = None
    model: Model = "emoji"
    dtype: Dtype = None
    variant: Variant = None
    negative: Negative = ""
    budget: Limits = None
    settings: Settings = None
    affix: Affix = None
    concept: Concepts = None
    out: Out = Path("runs")
    as_json: AsJson = False
    quiet: Quiet = False

    @property
    def fields(self) -> dict[str, Any]:
        """The method's fields, as texts.

        Raises:
            InvalidInput: a text of `--set` or `--affix` cannot be used.
        """
        return with_affixes(field_values(self.settings or []), self.affix or [])

    def load(self, *prompts: str) -> Any:
        """What `tiller.api.steer` takes as its model: its name, or it loaded as it was asked for.

        A concept that none of the prompts names is told of, or that one names in other letters.
        """
        if not (self.concept or self.dtype or self.variant):
            return self.model
        from tiller.models import load_model
        from tiller.models.concept_files import read_named
        from tiller.models.concepts import notice_capitals, notice_unnamed
        from tiller.rewards.parse import check_names

        check_names(self.reward, self.held_out)  # a typing error should not cost loading a model
        words = self.concept or []
        found, texts = [read_named(one) for one in words], [*prompts, self.negative]
        notice_unnamed(found, texts)
        notice_capitals(found, texts)
        return load_model(self.model, dtype=self.dtype, variant=self.variant, concepts=words)

    def arguments(self, *prompts: str) -> dict[str, Any]:
        """Keyword arguments of `tiller.api.steer`, the method's fields included.

        Raises:
            InvalidInput: an option or a prompt that is wrong by itself.
        """
        check_encoding(*prompts, self.negative)
        return {
            "reward": self.reward or "clip",
            "held_out": self.held_out,
            "negative_prompt": self.negative,
            "budget": self.budget,
            **self.fields,
        }


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `options: Options` is an option for each field."""
    hints = get_type_hints(command, include_extras=True)
    fields = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=fields[field.name],
        )
        for field in dataclasses.fields(Options)
    ]
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        own = [parameter.replace(annotation=hints[name])]
        parameters += shared if name == "options" else own

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = Options(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, options=options)

    del run.__wrapped__  # what is read off the function is what it takes
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


def field_values(settings: list[str]) -> dict[str, Any]:
    """`["lr=0.1"]` as fields; the method converts the texts.

    Raises:
        InvalidInput: a text is no assignment, or a field is there twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not (equals and name.isidentifier()):
            raise InvalidInput(f"expected --set field=value, such as lr=0.05; got {setting!r}")
        if name in found:
            raise InvalidInput(f"--set {name} was given twice; give it once")
        found[name] = value.strip()
    return found


def with_affixes(fields: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """The method's fields with the affix files in them."""
    if not files:
        return fields
    if "affix" in fields:
        raise InvalidInput("got --affix and --set affix; give one of them")
    if any("," in file for file in files):
        raise InvalidInput(f"a comma in an affix's path cannot be told from the next file: {files}")
    return fields | {"affix": ",".join(files)}


def check_encoding(*texts: str) -> None:
    """Refuse bytes that are no text: the shell hands them over as unpaired surrogates."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"expected the prompt in UTF-8, got bytes that are not, at character "
                f"{error.start}: {text!r}; check the terminal's encoding"
            ) from None
