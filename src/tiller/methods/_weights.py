"""A copy of a frozen model's denoiser that takes some of its weights as an input.

The loaded model is never touched. The copy is a second tree of modules over the same tensors, peft
puts its adapters into that tree, and each call is handed the weights to draw with
(`torch.func.functional_call`): nothing is ever loaded into anything, so there is nothing to undo
after an error, and a trained adapter costs its own numbers and no second model.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tiller.core.budget import count
from tiller.core.errors import InvalidInput, MissingDependency
from tiller.models.base import FrozenModel
from tiller.models.checkpointing import Plan, recomputed
from tiller.spaces.lora import Layout

TARGETS = "to_q,to_k,to_v,to_out.0"
"""The UNet's attention projections, where diffusers' own LoRA scripts put their adapters."""

_ADAPTER = "tiller"  # peft's name of the adapter; diffusers' files leave such names out


@dataclass(frozen=True)
class Adaptable:
    """A frozen model whose denoiser can be called with other weights.

    Attributes:
        model: the loaded model, unchanged.
        denoiser: the copied tree; its own tensors are the model's, and adapters' placeholders.
        names: the parameters of `denoiser` that are an input, in the order of the layout.
        layout: how the input is cut.
        start: [d] the model's own values where these weights are its own; None for adapters.
        dtype: of the input, float32 at least.
        by_row: each candidate of a batch may have weights of its own.
    """

    model: FrozenModel
    denoiser: torch.nn.Module
    names: tuple[str, ...]
    layout: Layout
    start: Tensor | None
    dtype: torch.dtype
    by_row: bool = False

    def fed(self) -> FrozenModel:
        """The model, drawing each candidate with the weights that its conditioning has.

        For adaptables `by_row`. The denoiser depends on its arguments alone, so that a GPU's calls
        can be recorded.
        """
        view: Any = copy.copy(self.model)

        def denoise(latents: Tensor, t: Tensor, *, weights: Tensor, **told: Any) -> Tensor:
            return self.drawing_with(weights).denoise(latents, t, **told)

        view.denoise = denoise
        view.replays = None if self.model.replays is None else self.model.replays.another()
        made: FrozenModel = view
        return made

    def drawing_with(self, weights: Tensor, plan: Plan = Plan(0, 0)) -> FrozenModel:  # noqa: B008  # frozen
        """The model, its denoiser called with weights; a gradient goes back to them.

        Args:
            weights: [d] the numbers of `layout`, or with `by_row` [n, d], each candidate's own.
            plan: which of the calls that carry a gradient are recomputed: the first so many.
        """
        view: Any = copy.copy(self.model)
        view.replays = None  # a gradient goes to its weights
        view.unet = _Called(self, weights.to(self.model.device), plan)
        made: FrozenModel = view
        return made


class _Low(torch.nn.Module):
    """Half of an adapter: x W^T with one W [out, in], or with each candidate's own [n, out, in].

    A batch holds the n candidates of one branch of the guidance, then those of the other.
    """

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """[m, ..., in] -> [m, ..., out]."""
        if self.weight.ndim == 2:
            return F.linear(x, self.weight)
        own = self.weight.repeat(len(x) // len(self.weight), 1, 1)
        out = x.reshape(len(x), -1, x.shape[-1]) @ own.mT
        return out.reshape(*x.shape[:-1], out.shape[-1])


class _Called:
    """Stands in for a UNet module: calls the copy with the weights that it was given."""

    def __init__(self, adaptable: Adaptable, weights: Tensor, plan: Plan) -> None:
        self._denoiser, self._names = adaptable.denoiser, adaptable.names
        self._layout, self._weights, self._plan = adaptable.layout, weights, plan
        parameters = dict(adaptable.denoiser.named_parameters())
        self._dtypes = [parameters[name].dtype for name in adaptable.names]
        self._with_graph = 0  # calls so far

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, latents: Tensor, *inputs: Any, **named: Any) -> tuple[Tensor]:
        """What the UNet returns with `return_dict=False`."""

        def function(latents: Tensor, weights: Tensor) -> Tensor:
            parts = self._layout.cut(weights).values()
            tensors = {
                name: part.to(dtype)
                for name, part, dtype in zip(self._names, parts, self._dtypes, strict=True)
            }
            out: Tensor = functional_call(self._denoiser, tensors, (latents, *inputs), named)[0]
            return out

        self._with_graph += torch.is_grad_enabled()
        if not torch.is_grad_enabled() or self._with_graph > self._plan.recomputed:
            return (function(latents, self._weights),)
        context, amount = contextvars.copy_context(), len(latents)
        again = recomputed(
            function, latents, (self._weights,), lambda: context.run(count, recomputes=amount)
        )
        return (again,)


def with_lora(model: FrozenModel, rank: int, targets: Sequence[str]) -> Adaptable:
    """The model with low-rank adapters on its UNet's linear maps, W + B A, as peft makes them.

    Args:
        model: left as it is.
        rank: r of A [r, in] and B [out, r]; peft's scale alpha / r is 1.
        targets: the ends of the names of the modules that get one.

    Raises:
        InvalidInput: a rank below 1, targets that the UNet does not have, or a model without UNet.
        MissingDependency: peft is not installed.
    """
    if rank < 1:
        raise InvalidInput(f"rank must be at least 1, got {rank=}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency(
            "training an adapter needs peft, which is not installed; run: pip install peft"
        ) from error
    denoiser = _shared_copy(model)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
    try:
        with torch.random.fork_rng(devices=[]):  # peft draws placeholders that nobody uses
            inject_adapter_in_model(config, denoiser, adapter_name=_ADAPTER)
    except ValueError as error:
        raise InvalidInput(
            f"no adapters can be put on {list(targets)} of {model.name!r}'s UNet; expected names "
            f"like {TARGETS!r}. peft says: {error}"
        ) from error
    dtype = torch.promote_types(model.dtype, torch.float32)
    names = tuple(name for name, _ in denoiser.named_parameters() if f".{_ADAPTER}." in name)
    parameters = dict(denoiser.named_parameters())
    for name in names:
        parameters[name].data = parameters[name].data.to(dtype)
    by_row = _by_row(denoiser)
    denoiser.requires_grad_(False).eval()
    plain = tuple(name.replace(f".{_ADAPTER}.", ".") for name in names)
    layout = Layout(plain, tuple(tuple(parameters[name].shape) for name in names))
    return Adaptable(model, denoiser, names, layout, None, dtype, by_row)


def _by_row(denoiser: torch.nn.Module) -> bool:
    """Let adapters of linear maps take weights by row; False where there are others as well."""
    halves = [
        getattr(module, name)
        for module in denoiser.modules()
        for name in ("lora_A", "lora_B")
        if _ADAPTER in getattr(module, name, ())
    ]
    if not all(type(half[_ADAPTER]) is torch.nn.Linear for half in halves):
        return False
    for half in halves:
        half[_ADAPTER] = _Low(half[_ADAPTER].weight)
    return True


def with_all_weights(model: FrozenModel) -> Adaptable:
    """The model with every weight of its UNet as an input; the input is the only copy of them.

    Raises:
        InvalidInput: a model without UNet.
    """
    denoiser = _shared_copy(model)
    parameters = dict(denoiser.named_parameters())
    layout = Layout(tuple(parameters), tuple(tuple(p.shape) for p in parameters.values()))
    dtype = torch.promote_types(model.dtype, torch.float32)
    start = layout.flat(parameters, dtype)
    return Adaptable(model, denoiser, layout.names, layout, start, dtype)


def _shared_copy(model: FrozenModel) -> torch.nn.Module:
    """A second tree of the UNet's modules, whose tensors are the very same."""
    unet = getattr(model, "unet", None)
    if not isinstance(unet, torch.nn.Module):
        raise InvalidInput(
            f"methods that train weights need a model with a UNet, got {model.name!r}; load a "
            "Stable Diffusion model, or use a method that leaves weights alone, e.g. dno"
        )
    if getattr(unet, "peft_config", None):
        raise InvalidInput(
            f"{model.name!r} has adapters already, and training would mix with them; call "
            "pipe.fuse_lora() and pipe.unload_lora_weights() first"
        )
    tensors = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})
