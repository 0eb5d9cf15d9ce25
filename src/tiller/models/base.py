"""What a frozen text-to-image model is: three functions and a few plain attributes.

encode: words -> conditioning, denoise: (x_t, t, conditioning) -> prediction, decode: latents ->
images. Sampling is written once over these three, in `trajectory`; a new family of models is one
more subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.models.pieces import Text

if TYPE_CHECKING:
    from tiller.models.replay import Replays


@dataclass(frozen=True)
class SamplerSettings:
    """How a trajectory is sampled; the names mean what diffusers means by them.

    Args:
        num_inference_steps: T, the number of sampling steps.
        guidance_scale: s of epsilon = epsilon_u + s (epsilon_c - epsilon_u); at most 1 runs the
            conditional branch alone. (The papers' w is s - 1.)
        eta: 0 for the deterministic DDIM, 1 for the stochastic one (equation 16 of the DDIM paper);
            only DDIM uses it.
        height: of the image, in pixels.
        width: of the image, in pixels.
        scheduler: one of `tiller.models.schedulers.NAMES`.

    Raises:
        InvalidInput: a number is out of range.

    Example:
        >>> SamplerSettings(20, 4.0, height=64, width=64).scheduler
        'ddim'
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    height: int = 512
    width: int = 512
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name} must be a positive whole number, got {value!r}")
        if not 0 <= self.guidance_scale < float("inf"):
            raise InvalidInput(
                f"guidance_scale must be a number from 0 up, got {self.guidance_scale!r}"
            )
        if not 0 <= self.eta <= 1:
            raise InvalidInput(f"eta must lie in [0, 1], got {self.eta!r}")


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told, for `n` candidates.

    Attributes:
        prompt_embeds: [n, L, D] the text encoder's output states.
        negative_prompt_embeds: [n, L, D] of the unconditional branch; None where there is none.
        pooled_prompt_embeds: [n, P], for models that take a pooled state as well (SDXL).
        negative_pooled_prompt_embeds: [n, P].
        time_ids: [n, 6] sizes and crops, the same in both branches (SDXL); by default the drawn
            picture's size, uncropped.
        token_mask: [n, L] 1 for a token that is read, 0 for one that only fills the row up, the
            same in both branches; None where all are read.
        weights: [n, d] each candidate's own, for copies whose denoiser takes some of its weights
            as an input (methods that train them).
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    time_ids: Tensor | None = None
    token_mask: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.prompt_embeds)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != n:
                raise InvalidInput(
                    f"expected {n} rows in {field.name}, as in prompt_embeds, got {len(value)}"
                )
        if self.prompt_embeds.ndim != 3:
            raise InvalidInput(
                f"prompt_embeds must be [n, L, D], got {list(self.prompt_embeds.shape)}"
            )
        negative = self.negative_prompt_embeds
        if negative is not None and negative.shape != self.prompt_embeds.shape:
            raise InvalidInput(
                "both branches run as one batch, so negative_prompt_embeds must have the shape of "
                f"prompt_embeds, {list(self.prompt_embeds.shape)}; got {list(negative.shape)}. "
                'Pad the encoding of "" to the same length'
            )

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def _map(self, function: Any) -> Conditioning:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if v is not None})

    def expand(self, n: int) -> Conditioning:
        """One row repeated for n candidates (a view: no copy); n rows stay as they are."""
        if len(self) == n:
            return self
        if len(self) != 1:
            raise InvalidInput(f"expected conditioning for 1 or {n} candidates, got {len(self)}")
        return self._map(lambda v: v.expand(n, *v.shape[1:]))

    def index(self, rows: slice | Sequence[int] | Tensor) -> Conditioning:
        """The chosen rows, in that order."""
        chosen = rows if isinstance(rows, (slice, Tensor)) else list(rows)
        return self._map(lambda v: v[chosen])

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Every tensor moved or cast, as by `Tensor.to`."""
        return self._map(lambda v: v.to(*args, **kwargs))

    def detach(self) -> Conditioning:
        """The same numbers without a graph."""
        return self._map(torch.Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, one after another."""
        merged: dict[str, Tensor | None] = {}
        for field in fields(Conditioning):
            values = [getattr(part, field.name) for part in parts]
            present = [v for v in values if v is not None]
            if present and len(present) != len(values):
                raise InvalidInput(f"{field.name} is set in some of the conditionings only")
            merged[field.name] = torch.cat(present) if present else None
        return Conditioning(**merged)  # type: ignore[arg-type]  # prompt_embeds is never None

    def filled(self, length: int) -> Conditioning:
        """The same with rows of `length` tokens, those that are added masked out."""
        n, own = self.prompt_embeds.shape[:2]
        negative, mask = self.negative_prompt_embeds, self.token_mask
        added = (0, length - own)
        read = self.prompt_embeds.new_ones(n, own) if mask is None else mask
        return replace(
            self,
            prompt_embeds=F.pad(self.prompt_embeds, (0, 0, *added)),
            negative_prompt_embeds=None if negative is None else F.pad(negative, (0, 0, *added)),
            token_mask=F.pad(read, added),
        )

    @staticmethod
    def side_by_side(parts: Sequence[Conditioning]) -> Conditioning:
        """`cat`, where the shorter ones are filled up to the longest."""
        lengths = [part.prompt_embeds.shape[1] for part in parts]
        if len(set(lengths)) > 1:
            parts = [part.filled(max(lengths)) for part in parts]
        return Conditioning.cat(parts)


class FrozenModel(ABC):
    """A text-to-image model whose weights never change: a function of what it is fed.

    Attributes:
        name: what the user asked for, for messages.
        source: what `load_model` can load again (a bundled name, a hub id, an absolute path), for
            run records; None for a pipeline object.
        options: what else `load_model` was given, as plain data.
        defaults: the settings the model was made for.
        latent_shape: (C, h, w) of one candidate at the default size.
        latent_scale: pixels per latent, along each side.
        device: where the weights are.
        dtype: of the weights and latents.
        scheduler: the diffusers scheduler that the model came with; a template, never stepped.
        pipeline_class: the diffusers pipeline that draws what this draws, for exports; "" if none.
        guidance_input: whether the network takes the guidance scale as an input (latent
            consistency models), so that there is no unconditional branch.
        masks_tokens: whether `denoise` takes a token mask, so that prompts of several lengths can
            be drawn as one batch.
        taught: whether it reads learned words, which a plain pipeline of diffusers does not know.
        replays: recordings of `denoise`, where it depends on its arguments alone and on a GPU;
            see `models.replay`.
    """

    name: str
    source: str | None
    options: dict[str, Any]
    defaults: SamplerSettings
    latent_shape: tuple[int, int, int]
    latent_scale: int
    device: torch.device
    dtype: torch.dtype
    scheduler: Any
    pipeline_class: str = ""
    guidance_input: bool = False
    masks_tokens: bool = False
    taught: bool = False
    replays: Replays | None = None

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None
    ) -> Conditioning:
        """The conditioning of n prompts; without negative prompts each gets the empty one."""

    @abstractmethod
    def denoise(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        token_mask: Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The network's raw prediction [m, C, h, w] (epsilon, v or x0) of latents at timestep t.

        Args:
            latents: [m, C, h, w], already scaled by the scheduler.
            t: the timestep, no dimension; the networks of diffusers also take one a row, [m].
            prompt_embeds: [m, L, D].
            pooled_prompt_embeds: [m, P], where the model takes one.
            time_ids: [m, 6], where the model takes them; by default those of the latents' size.
            token_mask: [m, L], where the model takes one (`masks_tokens`).
            guidance_scale: s, where the model takes it as an input.
        """

    def encode_pieces(
        self, prompts: Sequence[Text], negative_prompts: Sequence[Text] | None = None
    ) -> Conditioning:
        """The conditioning of n texts made of pieces, with gradients to weights and vectors.

        All of them go through the text encoder as one batch. A text of fixed pieces alone is
        encoded as `encode` encodes them joined by spaces.

        Args:
            prompts: n texts, lists of words, `Choice` and `Tokens`.
            negative_prompts: n texts, or one for all; by default empty.

        Raises:
            InvalidInput: the model takes no pieces, or a piece is not for it.

        Example:
            >>> import tiller, torch
            >>> from tiller.models import Choice
            >>> model = tiller.load_model("emoji")
            >>> logits = torch.zeros(2, requires_grad=True)
            >>> colour = Choice(("red", "green"), logits.softmax(0))
            >>> states = model.encode_pieces([["a", colour, "cat"]]).prompt_embeds
            >>> states.square().mean().backward()
            >>> bool(logits.grad.abs().sum() > 0)
            True
        """
        raise InvalidInput(
            f"the model {self.name!r} takes no pieces, got {len(prompts)} texts made of them; "
            "expected a model with a CLIP text encoder, e.g. Stable Diffusion"
        )

    def token_counts(self, prompts: Sequence[str], *, cut: bool = True) -> list[int]:
        """How many tokens of each text the encoder reads, its ends included.

        With `cut=False` how many the text has, also where that is more than are read.
        """
        raise InvalidInput(f"the model {self.name!r} reads no tokens; use one with a text encoder")

    def branches(self, guidance_scale: float) -> int:
        """Rows of a denoiser's call for a candidate: 2 where the unconditional branch runs too."""
        return 2 if guidance_scale > 1 and not self.guidance_input else 1

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizer of each text encoder."""
        raise InvalidInput(f"the model {self.name!r} has no tokenizer; use one with a text encoder")

    @property
    def token_embeddings(self) -> tuple[Tensor, ...]:
        """[V, D_e] the frozen input embeddings of each text encoder's vocabulary."""
        raise InvalidInput(
            f"the model {self.name!r} has no token embeddings; use one with a text encoder"
        )

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [n, C, h, w], scaled as `denoise` reads them, of images [n, 3, H, W] in [0, 1].

        Where the encoder gives a distribution this is its mean. Without a graph.
        """
        raise InvalidInput(
            f"the model {self.name!r} cannot encode images; use one with a VAE, e.g. Stable "
            f"Diffusion, got {len(images)} images"
        )

    def fingerprint(self) -> str:
        """A short text that changes when the weights, their precision or learned words do."""
        return f"{self.dtype}"

    def weights_fingerprint(self) -> str:
        """The same of the weights and their precision alone, whatever words it was taught."""
        return self.fingerprint()

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [0, 1] of latents [n, C, h, w]; differentiable."""
