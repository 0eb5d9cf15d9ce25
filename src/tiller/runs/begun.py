"""What a run was begun with, so that it goes on with the same or not at all.

The journal's first line keeps the run's settings, and a digest of each file that its rewards come
from. Runs begun before there was such a line go on unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping

from tiller.core.errors import RunError
from tiller.runs.journal import Entry
from tiller.runs.store import RunStore
from tiller.runs.templating import shortened

BEGUN = "begun"


def begun(store: RunStore, reward_files: Mapping[str, str]) -> Entry:
    """The first line of a run's journal; a budget may grow, so it is not in it."""
    spec = {name: value for name, value in store.spec.items() if name != "budget"}
    return {"kind": BEGUN, "spec": spec, "reward_files": dict(reward_files)}


def check_settings(store: RunStore) -> None:
    """Refuse a `run.json` that was edited.

    Raises:
        RunError: a field is not what it was; it is named.
    """
    kept = _kept(store).get("spec")
    if kept is None:
        return
    now = {name: value for name, value in store.spec.items() if name != "budget"}
    for name in dict.fromkeys([*kept, *now]):
        before, after = kept.get(name), now.get(name)
        if before != after:
            raise RunError(
                f"{store.path / 'run.json'} was changed since the run began: its {name} was "
                f"{shortened(repr(before), 80)}, and is {shortened(repr(after), 80)} now. Put it "
                "back, or start a new run"
            )


def check_rewards(store: RunStore, reward_files: Mapping[str, str]) -> None:
    """Refuse a reward whose file has changed since the run's first round.

    Args:
        store: the run.
        reward_files: what each file holds now, see `RewardSum.files`.

    Raises:
        RunError: a file has changed; scores of two functions do not compare.
    """
    if not any(entry["kind"] == "step" for entry in store.entries()):
        return  # no score is kept: the run begins anew
    for file, digest in (_kept(store).get("reward_files") or {}).items():
        if reward_files.get(file, digest) != digest:
            raise RunError(
                f"the reward file {file} has changed since {store.path} began, so its scores do "
                "not compare with those of the rounds before. Put the file back, or start a new "
                "run (a batch: in another folder, --out)"
            )


def _kept(store: RunStore) -> Entry:
    return next((entry for entry in store.entries() if entry["kind"] == BEGUN), {})
