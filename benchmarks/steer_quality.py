"""dno, dno with a warm start and best of n at equal cost, on the bundled model.

    python benchmarks/steer_quality.py [--prompts 20] [--seeds 3] [--steps 20] [--rewards clip]
        [--json] [--out DIR]

For every prompt, seed and reward (clip, preference) each method gets the same number of denoiser
forwards plus backwards: what `dno` uses in `--steps` gradient steps. Reported: the mean optimized
reward, the held-out CLIP, the judge's verdict (all that the prompt names is there and rightly
coloured), the share of runs that end above their baseline, and paired win rates against best of n;
intervals are 95 % bootstrap intervals over prompts. Finished cells are kept in `--out` and are not
computed again, so two processes may do one reward each, and a third prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import tiller
from tiller.models.bundled.captions import prompts as evaluation_prompts
from tiller.models.bundled.judge import load_judge
from tiller.runs.png import to_image
from tiller.tasks.statistics import Estimated, estimated, wins

SHOWN = ("score", "held_out", "faithful", "raised", "wins_against_best_of_n")
REWARDS = {"clip": "clip_heldout", "preference": "clip_heldout"}


def cell(
    model: Any, prompt: str, seed: int, reward: str, method: str, steps: int, out: Path
) -> dict[str, Any]:
    """One run's numbers, from its file if it was finished before."""
    forwards = 2 * model.defaults.num_inference_steps  # of one picture; a backward costs the same
    arms: dict[str, tuple[str, str, dict[str, Any]]] = {
        "best_of_n": ("best_of_n", f"images={2 * steps}", {}),
        "dno": ("dno", f"steps={steps}", {}),
        # n pictures, then ascent on what is left: n + 2 s = 2 * steps
        "dno+warm": ("dno", f"steps={steps - 4 + 1}", {"warm_start": 8}),
    }
    name, budget, settings = arms[method]
    key = key_of(model.fingerprint(), reward, name, budget, settings, seed, prompt)
    path = out / f"{reward}-{method}-{key}.json"
    if path.is_file():
        return json.loads(path.read_text())
    result = tiller.steer(
        model,
        prompt,
        method=name,
        reward=reward,
        held_out=[REWARDS[reward]],
        budget=budget,
        seed=seed,
        out=out / "runs",
        **settings,
    )
    judge = load_judge()
    pictures = {"best": result.best.image, "baseline": result.baseline.image}
    tensors = {name: as_tensor(picture) for name, picture in pictures.items()}
    found = {
        "prompt": prompt,
        "score": result.best.scores[reward],
        "baseline": result.baseline.scores[reward],
        "held_out": result.best.scores[REWARDS[reward]],
        "baseline_held_out": result.baseline.scores[REWARDS[reward]],
        "faithful": judge.faithful(tensors["best"], [prompt])[0],
        "baseline_faithful": judge.faithful(tensors["baseline"], [prompt])[0],
        "model_calls": result.cost.model_calls,
        "pictures_worth": result.cost.model_calls / forwards,
        "seconds": result.cost.seconds,
    }
    path.write_text(json.dumps(found))
    return found


def key_of(*parts: Any) -> str:
    """A short hash, the same in every process."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def as_tensor(picture: Any) -> torch.Tensor:
    """[1, 3, H, W] in [0, 1] of a PIL picture."""
    import numpy as np

    array = torch.from_numpy(np.asarray(to_image(picture).convert("RGB")).copy())
    return array.permute(2, 0, 1)[None].float() / 255


def summary(cells: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table says of one method and reward; the intervals are over prompts."""
    groups = [c["prompt"] for c in cells]
    columns = {
        "score": [c["score"] for c in cells],
        "held_out": [c["held_out"] for c in cells],
        "faithful": [float(c["faithful"]) for c in cells],
        "raised": [float(c["score"] > c["baseline"]) for c in cells],
        "wins_against_best_of_n": wins([c["score"] for c in cells], [c["score"] for c in against]),
        "baseline_score": [c["baseline"] for c in cells],
        "baseline_held_out": [c["baseline_held_out"] for c in cells],
        "baseline_faithful": [float(c["baseline_faithful"]) for c in cells],
        "model_calls": [c["model_calls"] for c in cells],
        "seconds": [c["seconds"] for c in cells],
    }
    return {name: asdict(estimated(values, groups=groups)) for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/steer_quality"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = tiller.load_model("emoji")
    one = options.prompts * 3 // 4
    chosen = [
        *[p for p, _ in evaluation_prompts("test", one, seed=7, kind="one")],
        *[p for p, _ in evaluation_prompts("test", options.prompts - one, seed=7, kind="two")],
    ]
    table: dict[str, Any] = {}
    for reward in options.rewards:
        cells: dict[str, list[dict[str, Any]]] = {}
        for method in ("best_of_n", "dno", "dno+warm"):
            cells[method] = []
            for prompt in chosen:
                for seed in range(options.seeds):
                    found = cell(model, prompt, seed, reward, method, options.steps, options.out)
                    cells[method].append(found)
                    print(f"{reward} {method} {prompt!r} {seed}: {found}", file=sys.stderr)
        table[reward] = {name: summary(rows, cells["best_of_n"]) for name, rows in cells.items()}
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "prompts": chosen,
        "seeds": options.seeds,
        "steps": options.steps,
    }
    if options.json:
        print(json.dumps({"about": about, "table": table}, indent=1))
        return
    for reward, rows in table.items():
        print(f"\n| {reward} | score | held out | faithful | raised | wins | calls | seconds |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        first = next(iter(rows.values()))
        before = (first[f"baseline_{name}"]["value"] for name in ("score", "held_out", "faithful"))
        print(f"| not steered | {' | '.join(f'{value:.3f}' for value in before)} | | | | |")
        for name, row in rows.items():
            cells = [str(Estimated(**row[key])) for key in SHOWN]
            rest = f"{row['model_calls']['value']:.0f} | {row['seconds']['value']:.1f}"
            print(f"| {name} | {' | '.join(cells)} | {rest} |")


if __name__ == "__main__":
    main()
