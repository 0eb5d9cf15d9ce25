"""Each method steers each prompt with as many pictures (the shape of table 1).

    python benchmarks/ipgo/table.py [--prompts 60] [--seeds 1] [--images 50] [--rewards clip]
        [--methods raw ipgo draft ddpo dpo_diff best_of_n dno ipgo_dno] [--few 16]
        [--rows benchmarks/ipgo/rows] [--json]

Three rewards (clip, preference, their mix), the prompts in four groups. Of every method: the
reward, the held-out CLIP, the judge's verdict, how often the reward rose, by how much, and how
often ipgo's was the higher one of the pair. Every method may draw `--images` pictures a prompt;
what a picture costs differs, so the calls and the seconds stand beside. The methods of
`--few-methods`, which draw their runs one after another, get the first `--few` prompts alone, an
equal part of each group, and are compared with ipgo on these. Some processes may do some methods
each, and another prints the table: finished runs are found in `--out`. `--rows` is a folder that
keeps what the table needs of each run, so that a table can be made on several machines and days:
what is there is not run again.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import tiller
from tiller.api import plan
from tiller.core.errors import InvalidInput, TillerNotice

sys.path.insert(0, str(Path(__file__).parents[1]))
from grid import Row, against, arguments, grid, machine, mean, report, summary
from material import GROUPS, REWARDS, fields, grouped, sampling

METHODS = ["raw", "ipgo", "draft", "ddpo", "dpo_diff", "best_of_n", "dno", "ipgo_dno"]
SHOWN = ("gain", "raised", "clip_heldout", "faithful", "seconds")  # as soon as a method is done
FULL = ("dno", "ipgo_dno")  # differentiated through every step


def reward_of(row: Row, names: list[str]) -> float:
    """The weighted sum that was raised."""
    parts = [(name.partition(":")[0], float(name.partition(":")[2] or 1)) for name in names]
    return sum(weight * row.scores[name] for name, weight in parts)


def before(row: Row, names: list[str]) -> float:
    """The same of the unsteered picture."""
    return reward_of(Row(**{**vars(row), "scores": row.baseline}), names)


def steered(model: Any, prompts: list[str], method: str, options: Any, reward: str) -> list[Row]:
    """A method's runs; prompts for which it has nothing to search keep their own picture."""
    raised, watched = REWARDS[reward]
    common = {"reward": raised, "held_out": watched, **sampling(options)}
    settings = {**common, "method": method, **(fields(options) if method == "ipgo" else {})}
    if method != "raw":
        settings["budget"] = f"images={options.images}"
    if method in FULL:  # some gigabytes a process, however many share the device
        settings["checkpoint"] = "recompute"
    searched = [p for p in prompts if method != "dpo_diff" or _has_words(model, p, settings)]
    kept = [p for p in prompts if p not in searched]
    where = {"seeds": options.seeds, "out": options.out, "at_once": options.at_once}
    rows = grid(model, searched, **where, **settings) if searched else []
    rows += grid(model, kept, **where, **common, method="raw") if kept else []
    return sorted(rows, key=lambda row: (prompts.index(row.prompt), row.seed))


def _has_words(model: Any, prompt: str, settings: dict[str, Any]) -> bool:
    """Whether dpo_diff has anything to search: a word of the prompt with a substitute."""
    try:
        plan(model, prompt, **settings)
    except InvalidInput as error:
        print(f"{prompt}: {error}", file=sys.stderr)
        return False
    return True


def kept(
    file: Path, prompts: list[str], options: Any, make: Callable[[list[str]], list[Row]]
) -> list[Row]:
    """The prompts' rows: those in `file`, and what `make` gives for the other prompts, added to it.

    A line is a run without its curve and its folder, its settings and the machine.
    """
    settings = {"images": options.images, "steps": options.sampling_steps, "set": options.set}
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [line for line in map(json.loads, lines) if line["settings"] == settings]
    rows = [Row(**line["row"], curve=[], folder="") for line in found]
    known = {(row.prompt, row.seed) for row in rows}
    missing = [p for p in prompts if any((p, seed) not in known for seed in range(options.seeds))]
    for row in make(missing) if missing else []:
        if (row.prompt, row.seed) not in known:
            rows.append(row)
            plain = {k: v for k, v in asdict(row).items() if k not in ("curve", "folder")}
            lines.append(json.dumps({"settings": settings, "machine": machine(), "row": plain}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    rows = [row for row in rows if row.prompt in prompts and row.seed < options.seeds]
    return sorted(rows, key=lambda row: (prompts.index(row.prompt), row.seed))


def main() -> None:
    warnings.simplefilter("ignore", TillerNotice)
    parser = arguments(__doc__, __file__, prompts=60, seeds=1)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--few", type=int, default=16, help="prompts of the slow methods")
    parser.add_argument("--few-methods", nargs="*", default=["ddpo"], choices=METHODS)
    parser.add_argument("--set", nargs="+", default=[], help="fields of ipgo, field=value")
    parser.add_argument("--sampling-steps", type=int, default=None, help="[the model's own]")
    parser.add_argument("--rows", type=Path, help="folder that keeps a line of each run")
    options = parser.parse_args()
    model = tiller.load_model(options.model)
    groups = grouped(-(-options.prompts // len(GROUPS)))
    prompts = [text for texts in groups.values() for text in texts]
    few = [text for texts in groups.values() for text in texts[: -(-options.few // len(GROUPS))]]
    table: dict[str, Any] = {}
    by_group: dict[str, Any] = {}
    each: dict[str, Any] = {}
    for reward in options.rewards:
        raised, watched = REWARDS[reward]
        shown = [name.partition(":")[0] for name in raised] + watched
        found: dict[str, list[Row]] = {}
        for method in options.methods:
            texts = few if method in options.few_methods else prompts
            make = partial(steered, model, method=method, options=options, reward=reward)
            if options.rows is None:
                rows = make(texts)
            else:
                rows = kept(options.rows / f"{reward}-{method}.jsonl", texts, options, make)
            found[method] = rows
            row = summary(rows, shown)
            row["gain"] = mean(rows, lambda r, n=raised: reward_of(r, n) - before(r, n))
            row["raised"] = mean(rows, lambda r, n=raised: reward_of(r, n) > before(r, n) + 1e-4)
            table[f"{reward}: {method}"] = row
            seen = "; ".join(f"{name} {row[name]}" for name in SHOWN)
            print(f"{reward}: {method}: {seen}", file=sys.stderr, flush=True)
            each[f"{reward}: {method}"] = [
                [r.prompt, r.seed, r.baseline, r.scores, r.faithful] for r in rows
            ]
            by_group[f"{reward}: {method}"] = {
                group: mean(some, lambda r, n=raised: reward_of(r, n))
                for group, texts in groups.items()
                if (some := [r for r in rows if r.prompt in texts])
            }
        for method, rows in found.items():
            if "ipgo" in found and method != "ipgo":
                same = {r.prompt for r in rows}
                mine = [r for r in found["ipgo"] if r.prompt in same]
                wins = against(mine, rows, lambda r, n=raised: reward_of(r, n))
                table[f"{reward}: {method}"]["ipgo wins"] = wins
    report(options, table, _claim(table), by_group=by_group, each=each)


def _claim(table: dict[str, Any]) -> str:
    """Whether ipgo raises the reward, and over whom it wins (section 5.3)."""
    said = [
        f"{name} raised the reward of {row['raised'].value:.0%} of the prompts"
        for name, row in table.items()
        if name.endswith(": ipgo")
    ]
    lost = [
        name for name, row in table.items() if "ipgo wins" in row and row["ipgo wins"].low <= 0.5
    ]
    said.append(f"ipgo is not clearly ahead of: {', '.join(lost) or 'none'}")
    return f"{'; '.join(said)}."


if __name__ == "__main__":
    main()
