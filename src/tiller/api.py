"""`steer`, `steer_many`, `resume`, `open_run`: what the command line, the page and scripts call."""

from __future__ import annotations

import dataclasses
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from tiller.core.budget import Budget, Cost, metered
from tiller.core.errors import InvalidInput, RunError, TillerNotice
from tiller.driver import Progress as Progress
from tiller.driver import drive
from tiller.methods._catalog import make_method
from tiller.methods.base import Method, Task
from tiller.models.base import FrozenModel
from tiller.models.loader import is_emoji, load_model
from tiller.rewards import Reward, RewardSum, make_reward
from tiller.rewards._held_out import held_out_of, notice_bundled
from tiller.rewards.parse import check_names
from tiller.run import Picture, Run, picture_of
from tiller.runs.begun import check_rewards, check_settings
from tiller.runs.record import Record, read_run
from tiller.runs.store import STATE, RunStore, versions
from tiller.tasks.statistics import Estimated
from tiller.unseen import due

OneReward = str | Reward | Callable[..., Any]
RewardSpec = OneReward | Sequence[OneReward]


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        method: the method's name.
        prompt: the user's prompt.
        best: the best picture found; never worse than the baseline by the run's own score.
        baseline: the unsteered picture of the same seed and sampler.
        held_out: the names of the rewards that were reported and not optimized.
        cost: what the search used (the baseline is not charged).
        stopped: why it ended: a limit of the budget, the solver's own end, or `interrupted`.
        run_dir: the run's folder; `tiller.open_run` reads it back.
        probability: P(z) of the best picture's noise under the model's own, about .25 for a typical
            one and near 0 where the picture was forced; see `tiller.spaces.probability`.
        best_prompt: the words that the best picture was drawn with; the user's own where the method
            does not search words.
        best_negative_prompt: likewise.
        unseen: how much each reward changed on noises that the search did not see, for methods
            that measure it at the end.
    """

    method: str
    prompt: str
    best: Picture
    baseline: Picture
    held_out: tuple[str, ...]
    cost: Cost
    stopped: str
    run_dir: Path
    probability: float
    best_prompt: str
    best_negative_prompt: str
    unseen: Mapping[str, Estimated]


def steer(
    model: str | Path | FrozenModel | Any,
    prompt: str,
    *,
    method: str = "auto",
    reward: RewardSpec = "clip",
    held_out: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    budget: Budget | str | None = None,
    seed: int = 0,
    out: str | Path = "runs",
    on_step: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Result:
    """Search the frozen model's inputs for the picture of `prompt` that `reward` likes best.

    Args:
        model: what `load_model` takes or returns.
        prompt: what the picture should show.
        method: a name from `tiller methods`, or `auto`, which picks by what the reward allows.
        reward: a name, `"name:weight"`, a callable images [n, 3, H, W] in [0, 1] (and prompts) to
            scores [n], `"file.py:function"`, or a list of these (their weighted sum).
        held_out: rewards to report and not to optimize; None chooses one that is not optimized.
        negative_prompt: what guidance steers away from.
        budget: when to stop, a `Budget` or text such as "steps=30"; None takes the method's own.
        seed: of everything random; the same seed gives the same run.
        out: the folder that gets the run's folder.
        on_step: called after each round.
        settings: the method's fields.

    Raises:
        InvalidInput: something in the arguments is unusable; nothing has been drawn.
        Incompatible: the method cannot work with this reward.
        RewardError: the reward failed during the run; the run folder keeps the best so far.

    Example:
        >>> result = tiller.steer("emoji", "a purple owl", budget="steps=10")   # doctest: +SKIP
        >>> result.best.scores["clip"] >= result.baseline.scores["clip"]        # doctest: +SKIP
        True
    """
    _check_calls(out, on_step)
    run = plan(
        model,
        prompt,
        method=method,
        reward=reward,
        held_out=held_out,
        negative_prompt=negative_prompt,
        budget=budget,
        seed=seed,
        **settings,
    )
    return carry_out(run, out, on_step)


def plan(
    model: str | Path | FrozenModel | Any,
    prompt: str,
    *,
    method: str = "auto",
    reward: RewardSpec = "clip",
    held_out: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    budget: Budget | str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Run:
    """What `steer` with the same arguments would do; nothing is drawn, and no folder made.

    Raises:
        InvalidInput, Incompatible: as `steer`.

    Example:
        >>> run = plan("emoji", "a purple owl", method="dpo_diff")               # doctest: +SKIP
        >>> print(run.phases[0].build(None).space.describe())                     # doctest: +SKIP
    """
    (run,) = _planned(
        model,
        [_checked(prompt, seed)],
        method=method,
        reward=reward,
        held_out=held_out,
        negative_prompt=negative_prompt,
        budget=budget,
        settings=settings,
    )
    return run


def carry_out(
    run: Run, out: str | Path = "runs", on_step: Callable[[Progress], None] | None = None
) -> Result:
    """Do what was planned, in a new folder in `out`.

    Raises:
        RewardError: as `steer`.
    """
    _check_calls(out, on_step)
    store = RunStore.create(out, run.spec, run.spec["method"]["name"])
    drive([(run, store)], on_step)
    return open_run(store.path)


def steer_many(
    model: str | Path | FrozenModel | Any,
    prompts: Iterable[str],
    *,
    seeds: Iterable[SupportsIndex] = (0,),
    method: str = "auto",
    reward: RewardSpec = "clip",
    held_out: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    budget: Budget | str | None = None,
    out: str | Path = "runs",
    on_step: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> list[Result]:
    """`steer` for every prompt with every seed, side by side: one batch through the sampler.

    Each run has its own folder, solver and budget, and finds what it finds alone, up to rounding.
    As many are drawn at once as the free memory takes. Called again with the same arguments, it
    returns what is finished and continues what is not.

    Args:
        prompts: what the pictures should show.
        seeds: each prompt is steered once with each.
        out: the folder of the runs' folders.
        on_step: called after each round of each run; `Progress.run_dir` says which.
        settings: the method's fields; the other arguments are `steer`'s, for all runs.

    Returns:
        One result for each prompt and seed: all seeds of the first prompt, then of the second. A
        prompt that is there twice is steered once.

    Raises:
        InvalidInput, Incompatible: as `steer`.
        RewardError: the reward failed; the runs in which it did not are finished first.

    Example:
        >>> animals = ["a purple owl", "a red cat"]                               # doctest: +SKIP
        >>> results = tiller.steer_many("emoji", animals, seeds=range(4))         # doctest: +SKIP
        >>> [result.best.scores["clip"] for result in results]                    # doctest: +SKIP
    """
    _check_calls(out, on_step)
    if isinstance(prompts, str):
        raise InvalidInput(f"prompts must be a list of texts, got one text; write [{prompts!r}]")
    if isinstance(seeds, int):
        raise InvalidInput(f"seeds must be a list of numbers, got {seeds}; write range({seeds})")
    for name, given in (("prompts", prompts), ("seeds", seeds)):
        if not isinstance(given, Iterable):
            raise InvalidInput(f"{name} must be a list, got {given!r}")
    prompts, seeds = list(prompts), list(seeds)
    if not prompts or not seeds:
        raise InvalidInput(f"expected prompts and seeds, got {len(prompts)} and {len(seeds)}")
    wanted = [_checked(prompt, seed) for prompt in prompts for seed in seeds]
    different = list(dict.fromkeys(wanted))  # a line that is there twice is one run
    runs = _planned(
        model,
        different,
        method=method,
        reward=reward,
        held_out=held_out,
        negative_prompt=negative_prompt,
        budget=budget,
        settings=settings,
    )
    name = runs[0].spec["method"]["name"]
    known = runs[0].spec["reward"] is not None  # a Python callable has no name to be found by
    stores = []
    for run in runs:
        kept = RunStore.find(out, run.spec) if known else None
        if kept is not None:
            check_rewards(kept, run.reward_files)
        stores.append(kept or RunStore.create(out, run.spec, name))
    both = list(zip(runs, stores, strict=True))
    todo = [(run, store) for run, store in both if due(run, store) or not _finished(store)]
    if todo:
        drive(todo, on_step)
    found = dict(zip(different, stores, strict=True))
    return [open_run(found[one].path) for one in wanted]


def _finished(store: RunStore) -> bool:
    stopped = read_run(store.path).stopped
    return stopped is not None and stopped != "interrupted"


def _planned(
    model: str | Path | FrozenModel | Any,
    wanted: Sequence[tuple[str, int]],
    *,
    method: str,
    reward: RewardSpec,
    held_out: str | Sequence[str] | None,
    negative_prompt: str,
    budget: Budget | str | None,
    settings: dict[str, Any],
) -> list[Run]:
    """A run for each prompt and seed, refused as a whole before anything is drawn or written."""
    budget = None if budget is None else Budget.of(budget)
    check_names(reward, held_out)  # a typing error should not cost the loading of a model
    if method != "auto":
        make_method(method, settings)
    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    optimized = _reward(reward, loaded)
    name, chosen = make_method(method, settings, optimized)
    size = loaded.defaults.height
    watched = held_out_of(held_out, optimized, probe_size=size, device=loaded.device)
    if not is_emoji(loaded):
        notice_bundled(optimized, watched)
    common = {
        "citation": chosen.citation,
        "redrawable": chosen.redrawable,
        "lowers": chosen.lowers,
        "model": loaded.source,
        "model_options": loaded.options,
        "model_fingerprint": loaded.fingerprint(),
        "negative_prompt": negative_prompt,
        "reward": optimized.spec,
        "held_out": watched.spec,
        "budget": str(budget or chosen.default_budget),
        "sampler": dataclasses.asdict(chosen.sampler(loaded)),
        "versions": versions(),
    }
    common |= chosen.contents()
    runs = []
    for prompt, seed in wanted:
        with metered() as meter:
            own = chosen.begun(Task(loaded, prompt, negative_prompt, optimized, seed))
            about = {"name": name, "settings": dataclasses.asdict(own)}
            spec = {**common, "method": about, "prompt": prompt, "seed": seed}
            run = Run.of(spec, loaded, own, optimized, watched)
        runs.append(dataclasses.replace(run, spent=Cost(tokens=meter.cost.tokens)))
    runs[0].phases[0].build(None)  # refuses what cannot work before there is a folder
    return runs


_LEARNED = {
    "affix": "an affix; continue it with tiller.affixes.training.resume_training",
    "concept": "a concept; continue it with tiller.concepts.learn.resume_concept",
}
"""Kinds of runs that steer no picture, and what continues them."""


def resume(
    run_dir: str | Path,
    *,
    model: FrozenModel | None = None,
    reward: RewardSpec | None = None,
    budget: Budget | str | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Result:
    """Continue a run bit-exactly from its last saved round.

    Args:
        run_dir: the run's folder.
        model: needed if the run was made with a pipeline object.
        reward: needed if the run's reward was a Python callable.
        budget: a larger budget, to go on after the end; None keeps the run's own.

    Raises:
        RunError: no run there, it is damaged, in use by another process, of other code, or its
            settings or a reward's file have changed since it began.
    """
    _check_path("run_dir", run_dir)
    _check_calls("runs", on_step)
    wanted = None if budget is None else Budget.of(budget)
    with RunStore.open(run_dir) as store:
        spec = store.spec
        if (kind := spec.get("kind")) in _LEARNED:
            raise RunError(f"{run_dir} learned {_LEARNED[kind]}(run), as `tiller resume` does")
        check_settings(store)
        if model is None and spec["model"] is None:
            raise RunError(
                f"{run_dir} was made with a pipeline object; pass it: resume(run, model=...)"
            )
        if reward is None and spec["reward"] is None:
            raise RunError(
                f"{run_dir} was made with a Python reward; pass it: resume(run, reward=...)"
            )
        loaded = model or load_model(spec["model"], **spec["model_options"])
        optimized = _reward(reward if reward is not None else spec["reward"], loaded)
        method = spec["method"]
        _, chosen = make_method(method["name"], method["settings"], optimized)
        _check_same(store, loaded, chosen)
        run = Run.of(spec, loaded, chosen, optimized)
        check_rewards(store, run.reward_files)
        if wanted is not None:
            store.set_budget(str(wanted))
            run = dataclasses.replace(run, spec=store.spec, budget=wanted)
        drive([(run, store)], on_step)
    return open_run(run_dir)


def _check_same(store: RunStore, model: FrozenModel, method: Method) -> None:
    """Refuse to continue a run with what would draw other pictures."""
    spec, sampler = store.spec, dataclasses.asdict(method.sampler(model))
    if sampler != spec["sampler"]:
        raise RunError(
            f"{store.path} was drawn with {spec['sampler']}, this model would draw with {sampler}; "
            "pass the model as it was loaded then: resume(run, model=...)"
        )
    if model.fingerprint() != spec["model_fingerprint"]:
        raise RunError(
            f"{store.path} was drawn with other weights than {model.name} has now; install the "
            f"version that drew it ({spec['versions']}), or start a new run"
        )
    for name, held in method.contents().items():
        if spec.get(name, held) != held:
            raise RunError(
                f"{store.path} began with other {name.replace('_', ' ')} than its files hold now; "
                "put the files back, or start a new run"
            )
    if versions() != spec["versions"]:
        warnings.warn(
            f"the run was made with {spec['versions']}, this is {versions()}; the continuation may "
            "differ in the last digits",
            TillerNotice,
            stacklevel=3,
        )


def _reward(spec: RewardSpec, model: FrozenModel) -> RewardSum:
    """The reward, tried on pictures of the model's size on the model's device."""
    size = model.defaults.height
    return make_reward(spec, probe_size=size, device=model.device, trial=True)


def open_run(run_dir: str | Path) -> Result:
    """Read a run folder back as the `Result` that it ended (or stands) with.

    Raises:
        RunError: no run there, or nothing drawn yet.
    """
    _check_path("run_dir", run_dir)
    record = read_run(run_dir)
    if not record.steps:
        raise RunError(_no_step(record))
    store = RunStore.open(run_dir)
    _, about = store.load_image("best")
    return Result(
        method=record.method,
        prompt=record.prompt,
        best=picture_of(store, "best"),
        baseline=picture_of(store, "baseline"),
        held_out=tuple(record.baseline.get("held_out", ())),
        cost=Cost(**record.last["cost"]),
        stopped=record.stopped or "not finished",
        run_dir=record.path,
        probability=float(record.best_entry.get("probability", 1.0)),
        best_prompt=about["prompt"],
        best_negative_prompt=about["negative_prompt"],
        unseen={
            name: Estimated(one["mean"], one["low"], one["high"], record.unseen["noises"])
            for name, one in record.unseen.get("change", {}).items()
        },
    )


def _no_step(record: Record) -> str:
    """What to do with a run that has no round to show."""
    if not (record.path / STATE).is_file():
        return f"{record.path} has no finished step yet; continue it with `tiller resume`"
    return (
        f"{record.path} has a state and no rounds in its journal.jsonl, so its scores are not "
        "known. Put the journal back, take the picture with `tiller export RUN --to png`, or go on "
        "with a larger budget: `tiller resume RUN --budget ...`"
    )


def _check_calls(out: str | Path, on_step: Callable[[Progress], None] | None) -> None:
    _check_path("out", out)
    if on_step is not None and not callable(on_step):
        raise InvalidInput(
            f"on_step must be a function that takes a Progress, or None; got {on_step!r}"
        )


def _check_path(name: str, path: str | Path) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInput(f"{name} must be the path of a folder, got {path!r}")


def _checked(prompt: str, seed: SupportsIndex) -> tuple[str, int]:
    """The prompt, and the seed as a plain number: numpy's and torch's are taken too."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidInput(f"expected a prompt with at least one word, got {prompt!r}")
    try:
        number = None if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = None
    if number is None:
        raise InvalidInput(f"seed must be a whole number, got {seed!r}")
    return prompt, number
