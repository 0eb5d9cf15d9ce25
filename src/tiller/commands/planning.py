"""`--dry-run`: what a search would do and about what it costs. Nothing is drawn or written."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiller.core.errors import InvalidInput
from tiller.terminal import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tiller.core.budget import Budget
    from tiller.core.search import Problem
    from tiller.core.space import Space
    from tiller.run import Run
    from tiller.spaces.words import Words


@dataclass(frozen=True)
class Estimate:
    """About what a search costs, at most; None where that depends on what it finds.

    Attributes:
        forwards_per_image: of the denoiser, guidance counting double.
        images: whole pictures, within the budget.
        forwards: of the denoiser, those for gradients included.
        backwards: likewise.
        images_outside: beside the budget: the unsteered pictures, and those of unseen noises.
    """

    forwards_per_image: int
    images: int | None
    forwards: int | None
    backwards: int | None
    images_outside: int


def searchable(plan: Callable[[], Run]) -> Run:
    """What `plan` makes, refused where words are searched and there is no choice.

    Raises:
        InvalidInput: no word has a substitute.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        run = plan()
    words = words_of(run)
    if words is not None and words.size == 1 and said:
        raise InvalidInput(str(said[-1].message))
    for one in said:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return run


def words_of(run: Run) -> Words | None:
    """The space of words that a run searches, None where it searches something else."""
    from tiller.spaces.words import Words

    space = run.phases[0].build(None).space
    inner = getattr(space, "inner", space)  # a space with a given start stands around the other
    return inner if isinstance(inner, Words) else None


def searched(run: Run) -> Space[Any]:
    """What a run searches: the second phase's space where the first draws one picture as it is."""
    from tiller.core.phases import Best, Handover
    from tiller.core.rng import Stream
    from tiller.solvers.best_of_n import BestOfN

    words, first = words_of(run), run.phases[0].build(None)
    as_it_is = isinstance(first.solver, BestOfN) and first.solver.n == 1
    if words is not None or not as_it_is or len(run.phases) == 1:
        return words or first.space
    z = first.space.sample(1, Stream(run.spec["seed"]))
    drawn = Handover(Best(z, y=None, score=0.0, reward=0.0, penalty=0.0, round=0), last=z)
    return run.phases[1].build(drawn).space


def data(run: Run) -> dict[str, Any]:
    """A plan as `--json` prints it."""
    words = words_of(run)
    found: dict[str, Any] = {
        "dry_run": True,
        "method": run.spec["method"]["name"],
        "prompt": run.task.prompt,
        "negative_prompt": run.task.negative_prompt,
        "reward": run.spec["reward"],
        "held_out": run.spec["held_out"],
        "phases": [phase.name for phase in run.phases],
        "space": searched(run).describe(),
        "budget": str(run.budget),
        "estimate": dataclasses.asdict(estimate(run)),
    }
    if words is not None:
        found |= {"size": words.size, "words": _slots(words)}
    return found


def _slots(words: Words) -> list[dict[str, Any]]:
    return [
        {
            "part": position.part,
            "word": position.slot.word,
            "options": [
                {"text": option.text, "source": option.source} for option in position.slot.options
            ],
        }
        for position in words.positions
    ]


def view(run: Run) -> list[RenderableType]:
    """A plan for people."""
    rewards = run.reward.name
    aim = " (lowered)" if run.method.lowers else ""
    watched = f"; held out: {', '.join(run.watched)}" if run.watched else ""
    facts = [
        ("method", f"{run.spec['method']['name']}: {', '.join(p.name for p in run.phases)}"),
        ("reward", f"{rewards}{aim}{watched}"),
        ("budget", str(run.budget)),
        ("cost", sentence(estimate(run))),
    ]
    lines = [clean(line) for line in searched(run).describe().splitlines()]
    return [*lines, "", *(clean(f"{name:<9}{value}") for name, value in facts)]


def sentence(found: Estimate) -> str:
    """An estimate in a line.

    Example:
        >>> sentence(Estimate(40, 96, 4240, 120, 19))
        'at most 96 pictures, 4,240 forwards and 120 backwards (40 forwards a picture); 19 more \
pictures beside the budget'
    """
    counts = [(found.images, "pictures"), (found.forwards, "forwards")]
    if found.backwards:
        counts.append((found.backwards, "backwards"))
    known = [f"{n:,} {name}" for n, name in counts if n is not None]
    text = " and ".join(", ".join(known).rsplit(", ", 1)) if known else "as the budget says"
    text = f"at most {text}" if known else text
    text += f" ({found.forwards_per_image:,} forwards a picture)"
    others = found.images_outside
    return f"{text}; {others:,} more picture{'s' * (others > 1)} beside the budget"


def estimate(run: Run) -> Estimate:
    """What the budget allows, and what each round takes where that is known beforehand."""
    from tiller.methods._words import WordSearch

    path = run.method.trajectory(run.task.model)
    each = path.model.branches(path.settings.guidance_scale)
    picture = path.forwards_per_image
    images, forwards, backwards = _whole(run.budget, picture), None, None
    if len(run.phases) == 1:
        images, forwards, backwards = _rounds(run, picture, each)
    elif images is not None and isinstance(run.method, WordSearch):
        extra, backwards = _learning(run, each)
        forwards = images * picture + extra
    outside = run.method.repeats + 2 * run.method.unseen
    return Estimate(picture, images, forwards, backwards, outside)


def _whole(budget: Budget, picture: int) -> int | None:
    """How many pictures a budget of pictures or forwards allows."""
    limits = [budget.images, None if budget.forwards is None else -(-budget.forwards // picture)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _rounds(run: Run, picture: int, each: int) -> tuple[int | None, int | None, int | None]:
    """Pictures, forwards and backwards of a method whose rounds are all alike."""
    from tiller.core.rng import Stream
    from tiller.core.space import Continuous
    from tiller.methods._pictures import Pictures

    problem, most = run.phases[0].build(None), _whole(run.budget, picture)
    counted = _renders(problem)
    pictures = problem.objective
    if not isinstance(pictures, Pictures) or not isinstance(problem.space, Continuous):
        return most, None, None
    if counted is None:
        return most, None, None
    stream = Stream(run.spec["seed"])
    state = problem.solver.init(problem.space, stream)
    candidates = len(problem.solver.ask(problem.space, state, stream))
    renders, differentiated = (candidates * count for count in counted)
    steps = [run.budget.steps, None if most is None else -(-most // renders)]
    rounds = min((limit for limit in steps if limit is not None), default=None)
    if rounds is None:
        return None, None, None
    images = rounds * renders if most is None else min(most, rounds * renders)
    steps_back = pictures.gradient.window(pictures.trajectory.num_steps).steps
    return images, images * picture, rounds * differentiated * steps_back * each


def _renders(problem: Problem) -> tuple[int, int] | None:
    """Pictures of a candidate and how many of them are differentiated, a round."""
    from tiller.core.evaluation import Autograd
    from tiller.solvers.estimators import Hybrid1, Hybrid2, ZerothOrder

    match problem.solver.gradient():
        case None:
            return 1, 0
        case Autograd() | Hybrid1():
            return 1, 1
        case ZerothOrder(q=q):
            return q + 1, 0
        case Hybrid2(q=q):
            return q + 1, 1
    return None  # a third party's


def _learning(run: Run, each: int) -> tuple[int, int]:
    """Forwards and backwards of the ascent of the distribution over words, by its schedule."""
    from tiller.core.rng import Draw
    from tiller.methods._soft_pictures import SoftPictures

    forwards = backwards = 0
    for phase in (phase for phase in run.phases if phase.relaxed):
        objective = phase.build(None).objective
        assert isinstance(objective, SoftPictures), "what searches for words relaxes them like this"
        steps = objective.pictures.trajectory.num_steps
        first, many = objective.shortcuts.first_round, objective.shortcuts.iterations
        for i in range(first, first + many):
            window = objective.shortcuts.gradient(steps, Draw(run.spec["seed"], i)).window(steps)
            forwards += run.method.repeats * each * window.stop
            backwards += run.method.repeats * each * window.steps
    return forwards, backwards
