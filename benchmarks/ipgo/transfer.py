"""An affix trained on half of the subjects, on prompts of the other half (figure 3).

    python benchmarks/ipgo/transfer.py [--prompts 32] [--epochs 20] [--batch 4]
        [--rewards preference clip] [--json]

`--prompts` prompts of sixteen subjects are trained on, as many of the sixteen others are looked at,
each once without and once with the affix and from the same noise. The claim holds where the
interval of the mean difference, over prompts, lies above zero.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiller
from tiller.affixes.training import Plan, train

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import arguments, report, verdict
from material import halves, sampling


def main() -> None:
    parser = arguments(__doc__, __file__, prompts=32, seeds=1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rewards", nargs="+", default=["preference", "clip"])
    parser.add_argument("--set", nargs="+", default=[], help="fields of ipgo, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    seen, unseen = halves(options.prompts)
    settings = {**dict(pair.split("=", 1) for pair in options.set), **sampling(options)}
    table: dict[str, Any] = {}
    said = []
    options.out.mkdir(parents=True, exist_ok=True)
    for reward in options.rewards:
        for seed in range(options.seeds):
            plan = Plan(
                seen,
                unseen,
                reward=reward,
                held_out="clip_heldout",
                batch=options.batch,
                epochs=options.epochs,
                seed=seed,
                settings=settings,
            )
            file = options.out / f"{reward}-{seed}.safetensors"
            trained = train(model, plan, file, out=options.out)
            for name, found in trained.unseen.items():
                key = f"{reward}, seed {seed}: {name}"
                table[key] = {n: getattr(found, n) for n in ("before", "after", "gain", "wins")}
            held = verdict(trained.unseen[reward].gain)
            said.append(f"{reward}, seed {seed}: {held}")
            print(said[-1], file=sys.stderr, flush=True)
    report(
        options, table, f"The affix raises the reward of subjects it never saw: {'; '.join(said)}."
    )


if __name__ == "__main__":
    main()
