"""The command line: thin and lazy. Commands call the library's own functions and show the answer.

`tiller --help` and `tiller --version` load neither torch nor diffusers: what is heavy is imported
inside the commands.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from tiller import __version__
from tiller.commands import affix, concept, lists, look, steering
from tiller.session import INPUT, Session

app = typer.Typer(
    name="tiller",
    help="Steer a frozen text-to-image model by searching what goes into it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _tiller(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"tiller {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    steering.steer,
    steering.attack,
    steering.batch,
    steering.resume,
    look.report,
    look.export,
    lists.methods,
    lists.rewards,
    lists.models,
    lists.doctor,
):
    app.command()(command)


app.add_typer(affix.app)
app.add_typer(concept.app)


_USAGE: type[Exception] = typer.BadParameter.__bases__[0]  # click's, which typer may carry inside


def main() -> None:
    """The `tiller` command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # no emoji in the terminal's encoding
    try:
        code = app(prog_name="tiller", standalone_mode=False)
    except _USAGE as error:
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> int:
    """A command line that cannot be read: one line, and where to read on."""
    path = getattr(error.ctx, "command_path", "tiller") if error.ctx else "tiller"
    text = error.format_message().rstrip(".")
    if "unexpected extra argument" in text:
        text += "; put quotes around a text of several words"
    dashed = (word for word in sys.argv[1:] if word.startswith("-"))
    if "No such option" in text and any(" " in w or w[1:2].isdigit() for w in dashed):
        text += "; put -- before a prompt that begins with a dash"
    text += f"{'' if text.endswith('?') else '.'} See `{path} --help`."
    now = Session(as_json="--json" in sys.argv[1:])
    now.fail(text, INPUT)
    if now.as_json:
        print(json.dumps(now.answered))
    return INPUT
