"""`path/to/file.py:function`: a user's file, run by its path and seen by nothing else."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

from tiller.core.errors import InvalidInput
from tiller.rewards._callable import line_of
from tiller.rewards._compose import describe


def load_function(path: Path, name: str) -> Any:
    """The object called `name` of the Python file at `path`.

    The file is run under a name of its own, so it may be called like any module; nothing is
    written beside it and its folder does not become importable.

    Raises:
        InvalidInput: there is no such file, it does not run, or it has no such function.
    """
    module = _run(path)
    found = getattr(module, name, None)
    if callable(found):
        return found
    public = [
        key
        for key, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
    ]
    have = f"its functions are {', '.join(public)}" if public else "it defines no function"
    what = "is not callable" if found is not None else "does not exist"
    raise InvalidInput(f"expected a reward function {name!r} in {path}; {name!r} {what}, {have}")


def _run(path: Path) -> types.ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"cannot read the reward file {path}: {error.strerror or error}; expected "
            "path/to/file.py:function, relative to the current folder or absolute"
        ) from error
    file = str(path)
    digest = hashlib.blake2b(file.encode() + b"\0" + source, digest_size=8).hexdigest()
    module = types.ModuleType(f"tiller_reward_{digest}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look their own module up
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module.__name__, None)
        hint = ". It can import installed packages only" if isinstance(error, ImportError) else ""
        raise InvalidInput(
            f"the reward file {_place(error, file)} does not import: {describe(error)}{hint}"
        ) from error
    return module


def _place(error: BaseException, file: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno}"
    return line_of(error, file) or file
