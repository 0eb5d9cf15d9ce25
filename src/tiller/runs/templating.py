"""The templates that ship with the package: the report's pages and the redrawing script."""

from __future__ import annotations

import json
import re
from typing import Any


def rendered(name: str, **values: Any) -> str:
    """Template `name` filled in; values are escaped in HTML.

    The filters `python` and `quoted` make literals of code, and of JSON or YAML.

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
    environment.filters["quoted"] = _quoted
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


def shortened(text: str, most: int = 40) -> str:
    """The beginning of a text, on one line and readable, for where there is little room."""
    text = " ".join(readable(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float) -> str:
    """Four digits that matter.

    Example:
        >>> number(0.87341), number(12345.6)
        ('0.8734', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")


def changed(by: float) -> str:
    """A change with its sign, three digits that matter.

    Example:
        >>> changed(0.12345), changed(-0.5)
        ('+0.123', '−0.500')
    """
    return f"{by:+#.3g}".rstrip(".").replace("-", "−")


def direction(by: float, *, lowers: bool) -> str:
    """Whether a change goes the way that the search wants: `good`, `bad`, or nothing for none.

    Example:
        >>> direction(0.1, lowers=False), direction(0.1, lowers=True), direction(0, lowers=True)
        ('good', 'bad', '')
    """
    wanted = -by if lowers else by
    return "good" if wanted > 0 else "bad" if wanted < 0 else ""


def _quoted(value: Any) -> str:
    """A value as JSON, which YAML reads as well."""
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> Any:
    """What a page prints for `value`; markup (a subclass of str) stays as it is."""
    return readable(value) if type(value) is str else value
