"""Schedulers by name, and the few facts about them that a trajectory needs.

They are diffusers' own. Whether a step injects noise is found by asking its `step`, and the x0
estimate is the one the scheduler itself uses, where it shows it. Schedulers that draw their noise
themselves are given a generator of a known seed, and what they drew is exchanged for the
trajectory's own: a step is linear in its noise.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from tiller.core.errors import InvalidInput
from tiller.core.settings import meant

CLASSES = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
}
NAMES = tuple(CLASSES)

_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)

DRAWING = ("euler_a", "lcm")
"""Those whose step draws its noise itself."""


def class_of(name: str) -> Any:
    """diffusers' class of a scheduler; the library is imported when the first is asked for."""
    import diffusers

    return getattr(diffusers, CLASSES[name])


def name_of(scheduler: Any) -> str:
    """The name of a scheduler object.

    Raises:
        InvalidInput: it is not supported.
    """
    kind = type(scheduler)
    for name, cls in CLASSES.items():
        if kind.__name__ == cls and kind is class_of(name):
            return name
    raise InvalidInput(
        f"the scheduler {type(scheduler).__name__} is not supported, expected one of "
        f"{', '.join(NAMES)}; load the model with scheduler='ddim'"
    )


def named(template: Any, name: str) -> Any:
    """A fresh scheduler of that name on the noise schedule of `template`, which is left alone.

    Raises:
        InvalidInput: an unknown name, or settings that draw noise of their own.
    """
    if name not in CLASSES:
        raise InvalidInput(
            f"unknown {name=} of a scheduler; expected one of {', '.join(NAMES)}."
            f"{_meant(str(name))}"
        )
    cls = class_of(name)
    if type(template) is cls:
        made = copy.deepcopy(template)
    else:  # `from_config` leaves out what the template had by default, and defaults differ
        given = {key: template.config[key] for key in _SCHEDULE if key in template.config}
        made = cls.from_config(template.config, **given)
    if str(made.config.get("algorithm_type", "")).startswith("sde"):
        raise InvalidInput(
            f"the stochastic solver {made.config.algorithm_type!r} draws noise of its own, which "
            "is not an input of the trajectory; use scheduler='ddim' with eta > 0"
        )
    return made


def _meant(name: str) -> str:
    """The one that it begins, else one like it."""
    begun = [known for known in NAMES if name and known.startswith(name)]
    return f" Did you mean {begun[0]!r}?" if begun else meant(name, NAMES)


def prepared(template: Any, name: str, steps: int) -> Any:
    """A scheduler of that name with its tables for `steps` steps, on the CPU.

    Raises:
        InvalidInput: the schedule is not possible, e.g. more steps than training timesteps.
    """
    scheduler = named(template, name)
    try:
        scheduler.set_timesteps(steps, device="cpu")
        trial, x, t = copy.deepcopy(scheduler), torch.zeros(1, 1, 1, 1), scheduler.timesteps[0]
        known = {"generator": _known()} if name in DRAWING else {}
        trial.step(x, t, trial.scale_model_input(x, t), **known)
    except (ValueError, IndexError, NotImplementedError) as error:
        raise InvalidInput(
            f"scheduler {name!r} cannot sample this model in num_inference_steps={steps}: {error}"
        ) from error
    if name == "lms":
        # Numerical integrals over the fixed sigmas: the copies made for each run share them.
        scheduler.get_lms_coefficient = functools.cache(scheduler.get_lms_coefficient)
    if name in DRAWING:
        scheduler.deviations = {float(t): _drawn(scheduler, t) for t in scheduler.timesteps}
    return scheduler


def noisy_steps(scheduler: Any, eta: float) -> tuple[int, ...]:
    """The steps that inject noise of a standard deviation above zero, in order.

    Of DDIM none without `eta`; with it all but the last, which lands on alpha = 1; where the
    configuration says `set_alpha_to_one=False` the last step has a small noise too. Of the
    ancestral Euler and of LCM all but the last.
    """
    return tuple(
        i for i, t in enumerate(scheduler.timesteps) if deviation(scheduler, t, eta=eta) != 0
    )


def deviation(scheduler: Any, t: Tensor, *, eta: float) -> float:
    """The standard deviation of the noise that a prepared scheduler's step at timestep t adds."""
    name = name_of(scheduler)
    if name in DRAWING:
        return float(scheduler.deviations[float(t)])
    if eta == 0 or name != "ddim":
        return 0.0
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)

    def moved(noise: Tensor) -> Tensor:
        out: Tensor = scheduler.step(
            zero, t, zero, eta=eta, variance_noise=noise, return_dict=False
        )[0]
        return out

    return float(moved(one) - moved(zero))


def _drawn(scheduler: Any, t: Tensor) -> float:
    """The standard deviation of the noise that the scheduler draws itself at timestep t."""
    trial, zero = copy.deepcopy(scheduler), torch.zeros(1, 1, 1, 1)
    model_input = trial.scale_model_input(zero, t)
    moved = trial.step(zero, t, model_input, generator=_known(), return_dict=False)[0]
    return float(moved / _normal(zero))


def _normal(like: Tensor) -> Tensor:
    """What a scheduler draws from `_known`."""
    from diffusers.utils.torch_utils import randn_tensor

    drawn: Tensor = randn_tensor(like.shape, _known(), device=like.device, dtype=like.dtype)
    return drawn


def _known() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def step(
    scheduler: Any,
    prediction: Tensor,
    t: Tensor,
    latents: Tensor,
    model_input: Tensor,
    *,
    eta: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of the scheduler: (x at the next timestep, estimate of x0), [n, C, h, w] each.

    Args:
        scheduler: a prepared copy; multistep ones change.
        prediction: [n, C, h, w] the guided prediction.
        t: the timestep, one of the scheduler's.
        latents: [n, C, h, w] x_t in the scheduler's scaling.
        model_input: [n, C, h, w] what `scale_model_input` made of it: alpha_t x0 + sigma_t eps
            with alpha_t^2 + sigma_t^2 = 1.
        eta: of DDIM.
        noise: [n, C, h, w] standard normal, or None where the step has none.
    """
    extra: dict[str, Any] = {}
    name = name_of(scheduler)
    if name == "ddim":
        extra = {"eta": eta}
        if eta > 0:
            # The step adds std * noise; where std is zero the noise is multiplied by zero.
            extra["variance_noise"] = torch.zeros_like(latents) if noise is None else noise
    if name in DRAWING:
        extra = {"generator": _known()}
    out = scheduler.step(prediction, t, latents, return_dict=False, **extra)
    previous: Tensor = out[0]
    if name in DRAWING and scheduler.deviations[float(t)]:
        drawn = _normal(prediction)
        change = -drawn if noise is None else noise - drawn
        previous = previous + scheduler.deviations[float(t)] * change
    if len(out) > 1:
        estimate: Tensor = out[1]
    elif name == "dpmsolver++" and scheduler.config.algorithm_type == "dpmsolver++":
        estimate = scheduler.model_outputs[-1]
    else:
        estimate = closed_form(scheduler, prediction, t, model_input)
    return previous, estimate.to(latents.dtype)


def noise_level(scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of x_t = alpha_t x0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1."""
    alpha_squared: Tensor = scheduler.alphas_cumprod[t.long()]
    return alpha_squared**0.5, (1 - alpha_squared) ** 0.5


def closed_form(scheduler: Any, prediction: Tensor, t: Tensor, model_input: Tensor) -> Tensor:
    """x0 = (x_t - sigma_t eps) / alpha_t, or from v: x0 = alpha_t x_t - sigma_t v."""
    alpha, sigma = noise_level(scheduler, t)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (model_input - sigma * prediction) / alpha
    if kind == "v_prediction":
        return alpha * model_input - sigma * prediction
    return prediction


def tilted(scheduler: Any, prediction: Tensor, t: Tensor, gradient: Tensor) -> Tensor:
    """The prediction whose score, -eps / sigma_t, is larger by `gradient`, [n, C, h, w] each.

    At a fixed x_t, with g the gradient: eps falls by sigma_t g, v = (eps - sigma_t x_t) / alpha_t
    falls by sigma_t g / alpha_t, x0 = (x_t - sigma_t eps) / alpha_t rises by sigma_t^2 g / alpha_t.

    Source: Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", algorithm 2.
    """
    alpha, sigma = noise_level(scheduler, t)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        shift = -sigma * gradient
    elif kind == "v_prediction":
        shift = -sigma * gradient / alpha
    else:
        shift = sigma**2 * gradient / alpha
    return prediction + shift.to(prediction.dtype)
