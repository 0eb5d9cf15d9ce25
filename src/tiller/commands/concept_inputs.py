"""What `concept draw` and `evaluate` read of a concept: its model, its run, its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiller.core.errors import InvalidInput

if TYPE_CHECKING:
    from tiller.models import FrozenModel
    from tiller.models.concepts import Concept


def model_of(
    concepts: Sequence[Concept], places: Sequence[Path], asked: str | None, **how: Any
) -> FrozenModel:
    """The model that was asked for, else the one that the first concept was learned on.

    A concept's file names no model of one machine alone; the record of its run does.

    Args:
        concepts: what was read.
        places: their files or folders.
        asked: for.
        how: it is loaded: `dtype` and `variant`.

    Raises:
        InvalidInput: that model cannot be loaded, or none is named and it is not the bundled one.
    """
    from tiller.models import load_model

    if asked or not concepts:
        return load_model(asked or "emoji", **how)
    for one, place in zip(concepts, places, strict=True):
        if name := spec_of(place).get("model") or one.about.get("model"):
            try:
                return load_model(name, **how)
            except InvalidInput as error:
                raise InvalidInput(
                    f"{one.token} was learned on {name!r}, says {place.name}, and that cannot be "
                    f"loaded here: {error}. Name the model: --model MODEL"
                ) from error
    loaded = load_model("emoji", **how)
    widths = tuple(table.shape[1] for table in loaded.token_embeddings)
    if foreign := [one.token for one in concepts if one.widths != widths]:
        raise InvalidInput(
            f"the file of {foreign[0]} names no model that it was learned on, and it is not the "
            "bundled one; name it: --model MODEL"
        )
    return loaded


def spec_of(place: Path) -> Mapping[str, Any]:
    """What the run that learned a concept was told; nothing where a file is no run's."""
    from tiller.concepts.run import KIND
    from tiller.core.errors import RunError
    from tiller.models.concept_files import FIRST
    from tiller.runs.record import read_run

    folder = place.parent if place.name == FIRST else place
    try:
        spec = read_run(folder).spec if folder.is_dir() else {}
    except RunError:
        return {}
    return spec if spec.get("kind") == KIND else {}


def inputs_of(run: Path) -> list[Path]:
    """The pictures that a run's concept was learned from.

    Raises:
        InvalidInput: there are none.
    """
    found = sorted(run.glob("images/input-*.png")) if run.is_dir() else []
    if not found:
        raise InvalidInput(
            f"expected the pictures that {run.name} was learned from, got none; name them behind it"
        )
    return found
