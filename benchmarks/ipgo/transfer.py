"""An affix trained on half of the subjects, on prompts of the other half (figure 3).

    python benchmarks/ipgo/transfer.py [--prompts 32] [--epochs 20] [--batch 4]
        [--rewards preference clip] [--json]

`--prompts` prompts of sixteen subjects are trained on, as many of the sixteen others are looked at,
each once without and once with the affix and from the same noise. The claim holds where the
interval of the mean difference, over prompts, lies above zero. Some processes may train some seeds
each (`--first`), and another prints the table: what is finished is found in `--out`.
`--split train` takes prompts of the training scenes, for choosing settings.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.affixes.evaluation import Comparison, compared
from tiller.affixes.training import Plan, train
from tiller.models.base import FrozenModel
from tiller.runs.record import read_run
from tiller.tasks.statistics import estimated

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report, verdict
from material import cell, fields, halves, sampling


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
    parts = [key["reward"], str(key["seed"]), key["split"]]
    parts += [f"{name}={value}" for name, value in key["settings"].items()]
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
    parser.add_argument("--set", nargs="+", default=[], help="fields of ipgo, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    table: dict[str, Any] = {}
    said = []
    for reward in options.rewards:
        gains: dict[str, list[float]] = {}
        for seed in range(options.first, options.first + options.seeds):
            key = {
                "model": options.model,
                "reward": reward,
                "seed": seed,
                "prompts": options.prompts,
                "split": options.split,
                "epochs": options.epochs,
                "batch": options.batch,
                "settings": {**fields(options), **sampling(options)},
            }
            make = functools.partial(trained, model, options.out, key)
            found = cell(options.out, {"transfer": key}, make)
            for name, one in compared(found["before"], found["after"]).items():
                table[f"{reward}, seed {seed}: {name}"] = _row(one)
                pairs = zip(found["before"][name], found["after"][name], strict=True)
                gains.setdefault(name, []).extend(after - before for before, after in pairs)
            held = verdict(compared(found["before"], found["after"])[reward].gain)
            said.append(f"{reward}, seed {seed}: {held}")
            print(said[-1], file=sys.stderr, flush=True)
        for name, values in gains.items():
            prompts = list(range(options.prompts)) * options.seeds
            table[f"{reward}, all seeds: {name}"] = {"gain": estimated(values, groups=prompts)}
    report(
        options, table, f"The affix raises the reward of subjects it never saw: {'; '.join(said)}."
    )


def _row(found: Comparison) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("before", "after", "gain", "wins")}


if __name__ == "__main__":
    main()
