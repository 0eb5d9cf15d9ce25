"""The model card's text, filled in from the measured metrics."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

ENOUGH = 0.9  # one-subject prompts with the right subject: the aim
UNFINISHED = """
**The denoiser is not trained to the end.** Colours, backgrounds and which colour stands in which
place follow the prompt; many shapes cannot be told yet. The first table says how many can.
"""

SHIPPED = """
On two CPU cores in bfloat16 autocast, alongside other work, in about four hours in all:
autoencoder 28 minutes, the first CLIP 13, the second 6, judge 8, the denoiser the rest.
""".strip()


def card(metrics: dict[str, Any], again: dict[str, Any] | None = None) -> str:
    """`MODEL_CARD.md` for these metrics, see `evaluate.evaluate`.

    `again` are those of a second training, which stand beside them.
    """
    p = metrics["prompts"]
    steps = ", ".join(f"{name} {count:,}" for name, count in metrics["steps"].items())

    unfinished = UNFINISHED if p["one_subjects_right"] < ENOUGH else ""

    note = "\n" + textwrap.fill(metrics["note"], 100) + "\n" if metrics["note"] else ""

    return f"""# The bundled model

A small text-to-image diffusion model in Stable Diffusion's layout, trained by this project and
shipped with it, so that every method of Tiller runs without a download. It draws 64x64 scenes of
emoji: one or two of 32 subjects, natural or in one of 11 colours, on one of 8 plain backgrounds.
Ask with an article, as its captions do: of "a sailboat" it draws one, of the bare word anything
(the judge sees the subject in 14 of 16 pictures, and in 3 of 16).

![Samples for unseen prompts](samples.png)

The first 20 pictures above have one subject, the other 12 two; no prompt was seen in training.

## Measured

`python -m tiller.models.bundled evaluate` measures this over {p["one_prompts"]} one-subject and
{p["two_prompts"]} two-subject prompts that were never trained on (whole combinations of subject,
colour and background, or whole pairs, are held out by hash), one picture each, DDIM with 20 steps
and guidance 4. The judge decides.

{_prompts_table(metrics, again)}

{_parts_table(metrics, again)}
{_compared(again) if again else ""}
## Parts

- **VAE**: `AutoencoderTiny`, 4 times down, latents [4, 16, 16], no normalisation layers.
- **Text encoder**: the text tower of the first CLIP, 3 layers of width 192, 40 tokens; a byte-level
  BPE tokenizer in CLIP's form in which every word of the captions is one token.
- **UNet**: `UNet2DConditionModel`, widths 64, 128, 192, cross attention at 8x8 and in the middle;
  trained with Muon on scenes that lie on the autoencoder's 4-pixel grid.
- **Scheduler**: DDIM, scaled-linear betas up to .02, v-prediction.
- **clip, clip_heldout**: two CLIP models from different seeds, widths and divisions of the data.
  Optimize the first; watch the second. Pictures that no caption describes were negatives for both.
- **preference**: imitates a *synthetic* rating (large, centred, contrasting with the background).
  It is a stand-in for a human-preference model and knows nothing of anyone's taste.
- **judge**: a convolutional classifier of subjects, colours and background. It only evaluates.

## How it was trained

{_spent(metrics)}
Steps taken: {steps}.
Everything is drawn from fixed seeds; the data are composed by `scenes.py`, wholly synthetic. To
train it again (the Debian package `fonts-noto-color-emoji` is needed, for this only):

    python -m tiller.models.bundled all

Each stage resumes from its checkpoint when the command is run again; `unet --steps N` with a larger
N trains the denoiser further.
{note}
## Limits
{unfinished}
It knows its 32 subjects, its colours and its backgrounds, and little else: other words change the
picture in no meaningful way. Tails, feet and faces of small subjects come out smeared. Two subjects
are harder than one, and rare words (*bunny*, *crimson*) are drawn less reliably than common ones.

## Licence

The weights: Apache-2.0, like the package. The pictures it learned from are composed from Noto Color
Emoji (SIL Open Font License 1.1). The word list is drawn from WordNet 3.0 (Princeton University;
WordNet licence).
"""


def _spent(metrics: dict[str, Any]) -> str:
    """On what the weights were trained, and how long each part took."""
    if "seconds" not in metrics:  # the shipped weights: their checkpoints did not count the time
        return SHIPPED
    took = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in metrics["seconds"].items())
    return textwrap.fill(
        f"On {metrics['device']}. Seconds that each part took, some of them side by side: {took}.",
        100,
    )


def _prompts_table(metrics: dict[str, Any], again: dict[str, Any] | None) -> str:
    """What the judge says of pictures of unseen prompts."""
    trained = {"": metrics} | ({", trained again": again} if again else {})
    counts = {"one": "one subject", "two": "two subjects"}
    columns = [(m["prompts"], c) for m in trained.values() for c in counts]
    rows = {
        "subjects right": "subjects_right",
        "colours right": "colours_right",
        "background right": "background_right",
        "all right, colour by subject": "faithful",
    }
    lines = [
        _line("", *(name + when for when in trained for name in counts.values())),
        _line(*["---"] * (1 + len(columns))),
    ]
    for label, key in rows.items():
        lines.append(_line(label, *(_percent(found[f"{c}_{key}"]) for found, c in columns)))
    return "\n".join(lines)


def _parts_table(metrics: dict[str, Any], again: dict[str, Any] | None) -> str:
    """What is measured of the other parts."""
    trained = [metrics, *([again] if again else [])]
    lines = [_line("part", "measure", "value", *(["trained again"] if again else []))]
    lines.append(_line(*["---"] * (2 + len(trained))))

    def add(part: str, measure: str, value: Callable[[dict[str, Any]], str]) -> None:
        lines.append(_line(part, measure, *(value(m) for m in trained)))

    def shares(part: str, key: str, **measures: str) -> None:
        for name, measure in measures.items():
            lines.append(_line(part, measure, *(_percent(m[key][name]) for m in trained)))
            part = ""

    shares(
        "judge, on 2,000 unseen true scenes",
        "judge",
        count="how many subjects",
        subject="subject",
        colour="colour",
        background="background",
        all="all at once",
    )
    add("autoencoder", "L1 on pixels in [-1, 1], unseen scenes", lambda m: f"{m['vae_l1']:.4f}")
    for key, part in {"clip": "first CLIP", "clip_heldout": "second CLIP (held out)"}.items():
        shares(
            part,
            key,
            text_to_image="caption finds its scene among 256",
            image_to_text="scene finds its caption among 256",
            bound="right pairing of two colours scores higher",
        )
    told = "correlation with its rating"
    add("preference head", told, lambda m: f"{m['preference_correlation']:.3f}")
    add("sampling", "seconds a picture", _sampling)
    add("weights", "MB", lambda m: f"{m['megabytes']:.1f}")
    return "\n".join(lines)


def _sampling(metrics: dict[str, Any]) -> str:
    """Seconds a picture, and where."""
    sampling = metrics["sampling"]
    where = sampling.get("device", "CPU")
    where = f"{sampling['threads']:.0f} threads" if where == "CPU" else where
    return f"{sampling['seconds']:.2f}, {where}"


def _line(*cells: str) -> str:
    """A line of a table."""
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _compared(again: dict[str, Any]) -> str:
    """What the second training was."""
    took = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in again["seconds"].items())
    text = (
        f"*Trained again*: from nothing by the command below, on one {again['device']}, "
        f"{again['date']}, in {again['minutes']:.1f} minutes, measuring included. Seconds that "
        f"each part took, some of them side by side: {took}. With 95 % confidence a share of some "
        "94 % of 400 prompts is uncertain by 2.4 points, one of 62 % of 200 by 6.7, one of the 100 "
        "pairings of colours by 9. Within that both trainings agree in all but the shapes of two "
        "subjects, which the second draws better: the first was not done in one go, as told below."
    )
    return "\n" + textwrap.fill(text, 100, break_on_hyphens=False) + "\n"
