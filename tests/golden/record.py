"""Write `trajectories.json` anew: `python tests/golden/record.py [CASE ...]`.

Do it when a change is meant to change what a method finds, and say why in the commit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tiller
from tiller.runs.record import read_run

FILE = Path(__file__).with_name("trajectories.json")

COMMON: dict[str, Any] = {"num_inference_steps": 5, "held_out": ["clip_heldout"], "seed": 3}
CASES: dict[str, dict[str, Any]] = {
    "raw": {"method": "raw", "reward": "clip"},
    "best_of_n": {"method": "best_of_n", "reward": "clip", "budget": "images=4"},
    "dno": {"method": "dno", "reward": "clip", "budget": "steps=3"},
    "dno_prno": {
        "method": "dno",
        "reward": "brightness",
        "budget": "steps=3",
        "gamma": 1.0,
        "lr": 0.05,
    },
    "dno_black_box": {"method": "dno", "reward": "jpeg", "budget": "steps=2"},
    "reno": {"method": "reno", "reward": "preference", "budget": "steps=3"},
    "ipgo": {
        "method": "ipgo",
        "reward": "preference",
        "budget": "steps=4",
        "gradient": "last(3)",
        "lr": 0.02,
    },
    "ipgo_dno": {"method": "ipgo_dno", "reward": "preference", "budget": "steps=3"},
    "lgd": {"method": "lgd", "reward": "preference", "budget": "steps=1"},
}
PROMPT = "a red cat on a blue background"


def course(case: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: the best reward round by round, and a 4 x 4 picture of the best."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiller.load_model("emoji")
        result = tiller.steer(model, PROMPT, out=folder, **{**COMMON, **case})
        lines = read_run(result.run_dir).steps
    small = result.best.image.convert("RGB").resize((4, 4), Image.Resampling.BOX)
    return {
        "best_reward": [round(float(line["best_reward"]), 5) for line in lines],
        "baseline": {name: round(score, 5) for name, score in result.baseline.scores.items()},
        "picture": np.asarray(small).tolist(),
    }


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    kept = {name: kept[name] for name in CASES if name in kept}
    kept |= {name: course(CASES[name]) for name in wanted}
    FILE.write_text(json.dumps({name: kept[name] for name in sorted(kept)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
