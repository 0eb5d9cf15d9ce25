"""The templates that ship with the package: the report's pages and the redrawing script."""

from __future__ import annotations

from typing import Any


def rendered(name: str, **values: Any) -> str:
    """Template `name` filled in; values are escaped in HTML, and `python` makes literals in code.

    A name that a template needs and `values` lacks is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tiller.runs", "templates"),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["python"] = ascii
    return environment.get_template(name).render(**values)
