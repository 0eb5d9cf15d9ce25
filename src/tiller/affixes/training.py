"""Training one affix on many prompts: a search in step with its run folder, then a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiller.affixes.evaluation import Comparison, Unseen, compared, means, sheet
from tiller.affixes.objective import BatchPictures, ByParts, PromptSet
from tiller.affixes.plan import Plan, ipgo_of, spec_of
from tiller.core.budget import Budget, Cost
from tiller.core.errors import InvalidInput, RewardError, RunError
from tiller.core.search import Phase, Problem, SearchState, Step, best_so_far, standing
from tiller.core.solver import Solver
from tiller.learning import INTERRUPTED, learn
from tiller.methods._affix_files import check_model, encode_affix, read_affix
from tiller.methods.ipgo import Ipgo
from tiller.models.base import FrozenModel
from tiller.models.loader import load_model
from tiller.models.trajectory import Gradient
from tiller.rewards import RewardSum, make_reward
from tiller.rewards.parse import check_names
from tiller.runs.affix_report import AFFIX
from tiller.runs.files import check_writable, write_atomically
from tiller.runs.journal import Entry
from tiller.runs.store import RunStore
from tiller.solvers.cma import CmaEs
from tiller.spaces.affixes import Affix, Affixes


@dataclass(frozen=True)
class Trained:
    """What a training ended with.

    Attributes:
        affix: the tokens, a batch of one.
        file: where they were saved; None where the training was interrupted.
        run_dir: the run's folder.
        unseen: each reward on the prompts that were held back, with and without the affix.
        cost: what the training used (looking at unseen prompts is not charged).
        stopped: why it ended.
    """

    affix: Affix
    file: Path | None
    run_dir: Path
    unseen: dict[str, Comparison]
    cost: Cost
    stopped: str


def train(
    model: str | FrozenModel | Any,
    plan: Plan,
    file: str | Path,
    *,
    out: str | Path = "runs",
    on_step: Callable[[Step], None] | None = None,
    command: Sequence[str] = (),
) -> Trained:
    """Train an affix on many prompts and save it.

    Args:
        model: what `load_model` takes or returns.
        plan: what to train, and on what.
        file: the affix file to write; one that is there is refused.
        out: the folder that gets the run's folder.
        on_step: called after each round.
        command: the words that repeat it in a shell, for the report.

    Raises:
        InvalidInput: something in the plan is unusable; nothing has been drawn.
        Incompatible, RewardError: as `steer`.

    Example:
        >>> plan = Plan(["a red cat", "a blue dog"], reward="preference")     # doctest: +SKIP
        >>> trained = train("emoji", plan, "style.safetensors")               # doctest: +SKIP
        >>> tiller.steer("emoji", "a green owl", method="raw", affix="style.safetensors")
        ...                                                                   # doctest: +SKIP

    Source: Ye et al. 2025, "IPGO", section 5.4.
    """
    check_plan(plan)
    loaded = model if isinstance(model, FrozenModel) else load_model(model)
    reward = make_reward(plan.reward, probe_size=loaded.defaults.height, device=loaded.device)
    spec = spec_of(plan, loaded, reward, Path(file).absolute())
    training = Training({**spec, "command": list(command)}, loaded, reward)
    training.phases()  # refuses what cannot work before there is a folder
    check_writable(Path(spec["file"]), "save the affix")
    if Path(spec["file"]).is_file():
        raise InvalidInput(f"{file} is there already; give another file (--out), or move it away")
    store = RunStore.create(out, training.spec, f"{AFFIX}-ipgo")
    return training.run(store, on_step)


def check_plan(plan: Plan) -> None:
    """Refuse a typing error in a plan, which should not cost the loading of a model.

    Raises:
        InvalidInput: a reward or a setting is unknown.
    """
    check_names(plan.reward, plan.held_out)
    ipgo_of(plan)


def resume_training(
    run_dir: str | Path,
    *,
    model: FrozenModel | None = None,
    reward: Any = None,
    budget: str | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Trained:
    """Continue a training bit-exactly from its last saved round, and save the affix.

    Raises:
        RunError: no run there, no training, or one that other weights or code began.
    """
    store = RunStore.open(run_dir)
    spec = store.spec
    if spec.get("kind") != AFFIX:
        raise RunError(f"{run_dir} is no training of an affix; continue it with tiller.resume")
    if (model is None and spec["model"] is None) or (reward is None and spec["reward"] is None):
        raise RunError(
            f"{run_dir} was made with a Python object as its model or reward; pass it again: "
            "resume_training(run, model=..., reward=...)"
        )
    loaded = model or load_model(spec["model"], **spec["model_options"])
    if loaded.fingerprint() != spec["model_fingerprint"]:
        raise RunError(
            f"{run_dir} was begun with other weights than {loaded.name} has now; install the "
            f"version that began it ({spec['versions']}), or start a new run"
        )
    given = spec["reward"] if reward is None else reward
    made = make_reward(given, probe_size=loaded.defaults.height, device=loaded.device)
    if budget is not None:
        Budget.parse(budget)
        with store:
            store.set_budget(budget)
    return Training(store.spec, loaded, made).run(store, on_step)


class Training:
    """A training's parts, all made from its spec.

    Args:
        spec: what the run's folder keeps.
        model: the frozen model.
        reward: what to raise.
    """

    def __init__(self, spec: Mapping[str, Any], model: FrozenModel, reward: RewardSum) -> None:
        self.spec, self.model, self.reward = spec, model, reward
        self.method = Ipgo(**spec["method"]["settings"])
        trajectory = self.method.trajectory(model)
        negative = spec["negative_prompt"]
        self.prompts = PromptSet(model, spec["prompts"], negative)
        kind = self.method.kind(reward, lambda: self._space("cma").dimension)
        self.space = self._space(kind)
        self.objective = BatchPictures(
            trajectory,
            reward,
            self.prompts,
            self.space,
            batch=spec["batch"],
            gamma=self.method.gamma,
            gradient=Gradient.parse(self.method.gradient) if kind == "gradient" else None,
            checkpoint=self.method._checkpoint(),
            resample=self.method.resample,
        )
        self.solver = self._solver(kind)
        size = model.defaults.height
        self.held_out = make_reward(spec["held_out"], probe_size=size, device=model.device)
        self.unseen = (
            Unseen(
                trajectory,
                PromptSet(model, spec["unseen"], negative),
                reward,
                spec["seed"],
                self.held_out,
            )
            if spec["unseen"]
            else None
        )
        self.watched = tuple(part.name for part in self.held_out.parts)

    def phases(self) -> list[Phase]:
        """The training, one phase."""
        problem = Problem(self.space, self.objective, self.solver)
        return [Phase("training", lambda _: problem)]

    def run(self, store: RunStore, on_step: Callable[[Step], None] | None = None) -> Trained:
        """Train, or go on; then write the file."""
        try:
            learned = learn(
                store,
                self.phases(),
                Budget.parse(self.spec["budget"]),
                self.spec["seed"],
                begin=lambda: self._begin(store),
                reward_files=self.reward.files | self.held_out.files,
                entry=lambda step: self._entry(store, step),
                on_step=on_step,
            )
        except RewardError as error:
            raise self._kept(store, error) from error
        affix = self._result(learned.problem.solver, learned.state.solver, learned.best.z)
        whole = learned.stopped != INTERRUPTED
        try:
            file = self._save(affix, learned.state, store) if whole else None
        except RunError as error:
            error = RunError(f"{error}. `tiller resume {store.path}` writes it once that is mended")
            error.add_note(f"run: {store.path}")
            raise error from None
        unseen = unseen_of(store.entries())
        return Trained(affix, file, store.path, unseen, learned.cost, learned.stopped)

    def _begin(self, store: RunStore) -> Iterable[Entry]:
        """The unseen prompts as the model draws them by itself."""
        if self.unseen is None:
            return []
        pictures = self.unseen.pictures(None)
        scores = self.unseen.scores(pictures)
        store.save_image("baseline", sheet(pictures), self._about(0, means(scores)))
        line = {
            "kind": "baseline",
            "scores": means(scores),
            "held_out": self.watched,
            "image": "images/baseline.png",
            "each": scores,
        }
        return [line]

    def _entry(self, store: RunStore, step: Step) -> Entry:
        """At the end, the unseen prompts within the affix."""
        if self.unseen is None or step.stopped in (None, INTERRUPTED):
            return {"scores": {}}
        affix = self._result(step.problem.solver, step.state.solver, step.best.z)
        pictures = self.unseen.pictures(affix)
        scores = self.unseen.scores(pictures)
        store.save_image("best", sheet(pictures), self._about(step.index, means(scores)))
        before = next(line["each"] for line in store.entries() if line["kind"] == "baseline")
        found = {name: one.plain() for name, one in compared(before, scores).items()}
        kept = {"scores": means(scores), "each": scores, "unseen": found}
        return {**kept, "image": "images/best.png"}

    def _result(self, solver: Solver[Any], state: Any, best: Tensor) -> Affix:
        """The affix where the search stands, for each round scores other prompts.

        That of a gradient is where the last step led, that of CMA-ES the middle of its
        distribution. Bayesian optimization has no such place: its is the best of all rounds.
        """
        stands = solver.stands(state)
        if isinstance(solver, CmaEs):
            stands = self.space.project(solver.mean(state))
        with torch.no_grad():
            return self.space.decode(best if stands is None else stands)

    def _kept(self, store: RunStore, error: RewardError) -> RewardError:
        """The same error, that says where the affix of the rounds before it is."""
        kept = "no round was done, so there is no affix"
        try:
            saved = store.load_state()
            if saved is not None:
                state, problem = standing(self.phases(), saved)
                affix = self._result(problem.solver, state.solver, best_so_far(state).z)
                file = self._save(affix, state, store)
                kept = f"the affix as round {state.round} left it is saved as {file}"
        except RunError as failed:
            kept = str(failed)
        told = RewardError(f"{error}. The training ended: {kept}; its run is {store.path}")
        told.add_note(f"run: {store.path}")
        return told

    def _save(self, affix: Affix, state: SearchState, store: RunStore) -> Path:
        """Write the file, or beside the run's state where another training's would be lost.

        Raises:
            RunError: it cannot be written, or is kept elsewhere.
        """
        file = Path(self.spec["file"])
        texts = self.spec["prompts"]
        about = {
            "run": store.path.name,
            "prompts": len(texts),
            "prompts_hash": hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest(),
            "reward": self.spec["reward"],
            "seed": self.spec["seed"],
            "steps": state.round,
            "images": state.cost.images,
            "method": self.spec["method"],
            "sampler": self.spec["sampler"],
            "versions": self.spec["versions"],
        }
        data = encode_affix(affix, self.model, about)
        if file.is_file() and not _is_of_run(file, about):
            kept = store.path / "affix.safetensors"
            write_atomically(kept, data, "save the affix")
            raise RunError(
                f"{file} is there and not of this run, so this run's affix is saved as {kept}; "
                "take it from there, or move the other file away"
            )
        write_atomically(file, data, "save the affix")
        check_model(read_affix(file), self.model, file)
        return file

    def _about(self, step: int, scores: Mapping[str, float]) -> dict[str, Any]:
        known = {key: self.spec[key] for key in ("prompt", "negative_prompt", "model", "seed")}
        return {**known, **self.spec["sampler"], "method": AFFIX, "step": step, "scores": scores}

    def _space(self, kind: str) -> Affixes:
        return self.method.affixes(
            self.model, moves="all" if kind == "gradient" else "coefficients"
        )

    def _solver(self, kind: str) -> Solver[Any]:
        if kind == "gradient":
            return replace(self.method.ascent(), estimator=ByParts())
        return self.method.black_box(kind)


def _is_of_run(file: Path, about: Mapping[str, Any]) -> bool:
    """Whether a file holds an affix of the run that `about` tells of.

    Files of before they named their run count where they are of the same training.
    """
    try:
        found = read_affix(file).about
    except InvalidInput:
        return False
    names = ("run",) if "run" in found else ("prompts_hash", "reward", "seed", "method", "sampler")
    return all(found.get(name) == about[name] for name in names)


def unseen_of(entries: Sequence[Entry]) -> dict[str, Comparison]:
    """What a training's journal says of unseen prompts; nothing before its end."""
    before = next((line["each"] for line in entries if line.get("kind") == "baseline"), None)
    after = [line["each"] for line in entries if line.get("kind") == "step" and "each" in line]
    return compared(before, after[-1]) if before and after else {}
