"""A concept's model card: `README.md` with the header that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiller.concepts.files import file_name, shareable
from tiller.models.concepts import Concept
from tiller.runs.templating import rendered


def model_card(concept: Concept, spec: Mapping[str, Any], rounds: int) -> str:
    """The card's text: what the concept is, how others load it, how it was learned.

    A path of this machine is none of a reader's business: the model is named by its hub id, or by
    its folder's name.

    Args:
        concept: what was learned.
        spec: of the run.
        rounds: of the search.
    """
    model = str(spec["model"] or "")
    path = not shareable(model)
    return rendered(
        "concept_card.md.j2",
        base_model=model if "/" in model and not path else None,
        model=model.replace("\\", "/").rstrip("/").split("/")[-1] if path else model,
        title=file_name(concept.token),
        token=concept.token,
        subject=spec["subject"],
        prompt=spec["prompt"],
        pictures=len(spec["pictures"]),
        vectors=len(concept),
        widths=concept.widths,
        method=spec["method"]["name"],
        settings=spec["method"]["settings"],
        citation=spec["citation"],
        rounds=rounds,
        seed=spec["seed"],
        began=spec["init"],
        version=spec["versions"]["tiller"],
    )
