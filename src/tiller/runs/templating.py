"""The templates that ship with the package: the report's pages and the redrawing script."""

from __future__ import annotations

import re
from typing import Any


def rendered(name: str, **values: Any) -> str:
    """Template `name` filled in; values are escaped in HTML, and `python` makes literals in code.

    A name that a template needs and `values` lacks is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = name.endswith(".html.j2")
    environment = Environment(
        loader=PackageLoader("tiller.runs", "templates"),
        autoescape=page,
        finalize=_shown if page else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["python"] = ascii
    return environment.get_template(name).render(**values)


def readable(text: str) -> str:
    """`text` as a page can show it: control characters by their pictures, no half characters.

    Example:
        >>> readable("bell \\x07")
        'bell ␇'
    """
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f]",
        lambda found: "␡" if found[0] == "\x7f" else chr(0x2400 + ord(found[0])),
        text.encode("utf-8", "replace").decode(),
    )


def _shown(value: Any) -> Any:
    """What a page prints for `value`; markup (a subclass of str) stays as it is."""
    return readable(value) if type(value) is str else value
