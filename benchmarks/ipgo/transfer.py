"""An affix trained on half of the subjects, on prompts of the other half (figure 3).

    python benchmarks/ipgo/transfer.py [--prompts 32] [--epochs 20] [--batch 4]
        [--rewards preference clip] [--arms "" "lr=0.003 batch=8 epochs=40"] [--json]

`--prompts` prompts of sixteen subjects are trained on, as many of the sixteen others are looked at,
each once without and once with the affix and from the same noise. The claim holds where the
interval of the mean difference, over prompts, lies above zero. An arm is fields of ipgo, batch and
epochs; the empty one has the defaults. Some processes may train some seeds each (`--first`), and
another prints the table: what is finished is found in `--out`.
`--split train` takes prompts of the training scenes, for choosing settings.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shlex
import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.affixes.evaluation import Comparison, compared
from tiller.affixes.plan import Plan
from tiller.affixes.training import train
from tiller.models.base import FrozenModel
from tiller.runs.record import read_run
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report, verdict
from material import cell, halves, sampling


def trained(model: FrozenModel, out: Path, key: dict[str, Any]) -> dict[str, Any]:
    """One training: what every reward says of each unseen prompt's picture before and after it."""
    seen, unseen = halves(key["prompts"], split=key["split"])
    plan = Plan(
        seen,
        unseen,
        reward=key["reward"],
        held_out="clip_heldout",
        batch=key["batch"],
        epochs=key["epochs"],
        seed=key["seed"],
        settings=key["settings"],
    )
    out.mkdir(parents=True, exist_ok=True)
    about = {**key, **key["settings"]}
    parts = [f"{name}={about[name]}" for name in about if name not in ("model", "settings")]
    file = out / f"{'-'.join(parts)}.safetensors"
    found = train(model, plan, file, out=out)
    before, after = (line["each"] for line in read_run(found.run_dir).entries if "each" in line)
    return {"before": before, "after": after, "seconds": found.cost.seconds}


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=32, seeds=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rewards", nargs="+", default=["preference", "clip"])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--arms", nargs="+", default=[""])
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    table: dict[str, Any] = {}
    said = []
    for reward, arm in itertools.product(options.rewards, options.arms):
        name = f"{reward}, {arm}" if arm else reward
        gains: dict[str, list[float]] = {}
        for seed in range(options.first, options.first + options.seeds):
            key = _key(options, reward, arm, seed)
            make = functools.partial(trained, model, options.out, key)
            found = cell(options.out, {"transfer": key}, make)
            ones = compared(found["before"], found["after"])
            for other, one in ones.items():
                table[f"{name}, seed {seed}: {other}"] = _row(one)
                pairs = zip(found["before"][other], found["after"][other], strict=True)
                gains.setdefault(other, []).extend(after - before for before, after in pairs)
            said.append(f"{name}, seed {seed}: {verdict(ones[reward].gain)}")
            seen = "; ".join(f"{other} {one.gain}" for other, one in ones.items())
            print(f"{said[-1]} ({seen}; {found['seconds']:.0f} s)", file=sys.stderr, flush=True)
        prompts = list(range(options.prompts)) * options.seeds
        for other, values in gains.items():
            row = {"gain": estimated(values, groups=prompts)}
            table[f"{name}, all seeds: {other}"] = row
    report(
        options, table, f"The affix raises the reward of subjects it never saw: {'; '.join(said)}."
    )


def _key(options: argparse.Namespace, reward: str, arm: str, seed: int) -> dict[str, Any]:
    """All that one training depends on."""
    settings: dict[str, Any] = dict(pair.split("=", 1) for pair in shlex.split(arm))
    counts = {name: int(settings.pop(name, getattr(options, name))) for name in ("batch", "epochs")}
    return {
        "model": options.model,
        "reward": reward,
        "seed": seed,
        "prompts": options.prompts,
        "split": options.split,
        **counts,
        "settings": {**settings, **sampling(options)},
    }


def _row(found: Comparison) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("before", "after", "gain", "wins")}


if __name__ == "__main__":
    main()
