"""The run folder: where a run is kept so that it can be killed at any moment and continued.

The state file is the truth. A round is kept in this order, which `checkpoint` enforces: its
picture, its journal line, its state. So after a crash the journal is at most one line ahead of
the state; `rewind` drops what is ahead, and the resumed run writes it again, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata as installed
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from tiller.core.budget import Budget, Cost
from tiller.core.errors import RunError
from tiller.core.state import Packed
from tiller.runs.files import canonical_json, explained, sync_folder, to_json, write_atomically
from tiller.runs.journal import Entry, Journal

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
STATE, PREVIOUS, BEST = "state.safetensors", "state.previous.safetensors", "best.safetensors"


def versions() -> dict[str, str]:
    """The versions that a result may depend on, read without importing any of them."""
    found = {"python": platform.python_version()}
    for name in ("tiller", "torch", "diffusers", "transformers"):
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            found[name] = "not installed"
    return found


class RunStore:
    """One run's folder. Reading needs no lock; writing needs `lock` (`create` takes it).

    Attributes:
        path: the folder.
        spec: all that is needed to repeat the run, as given to `create`.
        created: when, in UTC, as ISO text.
        notices: what was repaired or fallen back to, for people; also in the journal.

    Example:
        >>> import tempfile
        >>> with RunStore.create(tempfile.mkdtemp(), {"seed": 0}, "random") as store:
        ...     store.append({"kind": "notice", "text": "hello"})
        >>> RunStore.open(store.path).journal.read()
        [{'kind': 'notice', 'text': 'hello'}]
    """

    def __init__(self, path: Path, spec: dict[str, Any], created: str) -> None:
        self.path = path
        self.spec = spec
        self.created = created
        self.notices: list[str] = []
        self.journal = Journal(path / "journal.jsonl")
        self._lock: int | None = None
        self._state_damaged = False

    @classmethod
    def create(cls, out: str | Path, spec: Mapping[str, Any], method: str) -> RunStore:
        """A new folder `<out>/<time>-<method>-<hash>` with its `run.json`, locked.

        Args:
            out: the folder of runs; made if it is not there.
            spec: plain data, all that is needed to repeat the run.
            method: its name, for the folder's name.

        Raises:
            RunError: the folder cannot be made or written.
        """
        moment = datetime.now(UTC)
        digest = _digest(spec)
        short = re.sub(r"[^A-Za-z0-9_]+", "-", method).strip("-")[:40] or "run"
        path = _new_folder(Path(out).absolute(), f"{moment:%Y%m%d-%H%M%S}-{short}-{digest}")
        created = moment.isoformat(timespec="seconds")
        store = cls(path, json.loads(to_json(spec)), created)
        try:
            store.lock()
            store._make_images_folder()
            store._write_spec()
        except RunError:
            store.close()
            _discard(path)
            raise
        return store

    @classmethod
    def find(cls, out: str | Path, spec: Mapping[str, Any]) -> RunStore | None:
        """The newest run in the folder `out` that has exactly this spec, None if there is none."""
        wanted = json.loads(to_json(spec))
        for path in sorted(Path(out).glob(f"*-{_digest(spec)}*/run.json"), reverse=True):
            with suppress(RunError):
                store = cls.open(path.parent)
                if store.spec == wanted:
                    return store
        return None

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """The run in folder `path`, for reading; call `lock` to continue it.

        Raises:
            RunError: there is no run, or it is damaged or of a newer format.
        """
        folder = Path(path).absolute()
        folder = folder.parent if folder.name == "run.json" else folder
        with explained(folder, "open the run"):
            if not (folder / "run.json").is_file():
                raise RunError(_no_run(folder))
            data = (folder / "run.json").read_bytes()
        try:
            run = json.loads(data)
            number, spec, created = int(run["format"]), run["spec"], str(run["created"])
            if not isinstance(spec, dict):
                raise TypeError("its spec is not an object")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{folder / 'run.json'} is damaged ({error!r}). Restore it from a copy, or start "
                "the run again"
            ) from error
        if number > FORMAT:
            raise RunError(
                f"{folder} was written by a newer tiller (format {number}, this version reads up "
                f"to {FORMAT}). Upgrade tiller, or start the run again"
            )
        return cls(folder, spec, created)

    def set_budget(self, budget: str) -> None:
        """Let the run go on to another budget, also the next time that it is resumed.

        Raises:
            RunError: the run has used it up: its record would say less than was spent.
        """
        self._owned()
        if budget == self.spec.get("budget"):
            return
        costs = (entry["cost"] for entry in reversed(self.entries()) if entry.get("cost"))
        spent = Cost(**next(costs, {}))
        if reached := Budget.parse(budget).reached(spent):
            limit = reached.removeprefix("budget: ")
            name = limit.partition("=")[0]
            raise RunError(
                f"{self.path} has used {name}={getattr(spent, name):g} and cannot go on to "
                f"{limit}; give a larger budget, or none to see what it found"
            )
        self.spec = {**self.spec, "budget": budget}
        self._write_spec()

    def _write_spec(self) -> None:
        run = {"format": FORMAT, "created": self.created, "spec": self.spec}
        data = (to_json(run, indent=1) + "\n").encode()
        write_atomically(self.path / "run.json", data, "write the run's settings")

    def lock(self) -> Self:
        """Take the folder for this process until `close`; the system lets go when it dies.

        Raises:
            RunError: another process has it; the message names that process.
        """
        if self._lock is not None:
            return self
        import fcntl

        path = self.path / "lock"
        with explained(path, "lock the run"):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 32).decode(errors="replace").strip()
                os.close(handle)
                raise RunError(
                    f"{self.path} is in use by process {holder or '(unknown)'}. Wait until it "
                    "ends, or stop it: the run can then be resumed"
                ) from None
            except OSError:
                os.close(handle)
                raise
            self._lock = handle
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            for unfinished in (*self.path.glob(".*.part"), *self.path.glob("images/.*.part")):
                unfinished.unlink()  # of a process that was killed: nobody else writes here now
        self._note(self.journal.repair())
        return self

    def close(self) -> None:
        """Let go of the journal and the lock."""
        self.journal.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self.lock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, entry: Entry) -> None:
        """Add a line to the journal, durably."""
        self._owned()
        self.journal.append(entry)

    def checkpoint(self, packed: Packed, entry: Entry) -> None:
        """Keep one round: its journal line, then its state (its picture should be saved before).

        Raises:
            RunError: something cannot be written; what was kept before is intact.
        """
        self.append(entry)
        self.save_state(packed)

    def save_state(self, packed: Packed) -> None:
        """Put the state in place of the one before, which is kept beside it.

        Raises:
            RunError: it cannot be written; the state before still stands.
        """
        from tiller.runs.state_file import encode_state

        self._owned()
        keep_as = None if self._state_damaged else self.path / PREVIOUS
        data = encode_state(packed)
        write_atomically(self.path / STATE, data, "save the run's state", keep_as)
        self._state_damaged = False

    def load_state(self) -> Packed | None:
        """The latest whole state, None if none was saved yet; a fall-back is said in `notices`.

        Raises:
            RunError: states were saved, and none of them is whole.
        """
        faults: list[str] = []
        for name in (STATE, PREVIOUS):
            packed = self._load(name, faults)
            if packed is not None:
                self._state_damaged = bool(faults)
                if faults:
                    self._note(f"{faults[0]}; continuing from the state one round before it")
                return packed if faults else self._in_step(packed)
        if not faults:
            return None
        raise RunError(
            f"no state of {self.path} is whole: {'; '.join(faults)}. The best picture and the "
            f"journal are kept there. Start the run again (run.json has its settings), or delete "
            f"{STATE} and {PREVIOUS} to resume from the beginning"
        )

    def _in_step(self, packed: Packed) -> Packed:
        """The state, or the one before it where the journal has lost the last round's line.

        That round is then done again, and its line written.
        """
        last = max((e["step"] for e in self.journal.read() if e.get("kind") == "step"), default=0)
        if not last or packed.tree.get("round") != last + 1:
            return packed
        earlier = self._load(PREVIOUS, [])
        if earlier is None or earlier.tree.get("round") != last:
            return packed
        self._note(f"round {last + 1} has no line in the journal; it is done again")
        return earlier

    def rewind(self, step: int) -> None:
        """Make the journal agree with a state at round `step`: later lines are dropped.

        Raises:
            RunError: the journal cannot be read or replaced.
        """
        self._owned()
        self.journal.rewind(step)
        found = {e.get("step") for e in self.journal.read() if e.get("kind") == "step"}
        missing = step - len(found)
        if missing > 0:
            self._note(f"{missing} of {step} rounds have no line in the journal; curves have a gap")

    def save_image(
        self, name: str, image: Image | Tensor, metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Write `images/<name>.png` (a PNG with its settings inside, see `runs.png`).

        Args:
            name: such as `best-0007`.
            image: a PIL picture or [1, 3, H, W] in [0, 1].
            metadata: see `encode_png`; without it, the run's spec.
        """
        from tiller.runs.png import encode_png

        self._owned()
        self._make_images_folder()
        data = encode_png(image, self.spec if metadata is None else metadata)
        path = self._image(name)
        write_atomically(path, data, f"save the picture {path.name}")
        return path

    def load_image(self, name: str) -> tuple[Image, dict[str, Any]]:
        """A picture that `save_image` wrote, and the metadata it was given.

        Where `best` was deleted, the newest of the numbered ones is taken.

        Raises:
            RunError: it is not there, damaged, or carries no metadata of ours.
        """
        from tiller.runs.png import open_png

        path = self._image(name)
        if name == "best" and not path.exists():  # each best was kept under its round, too
            newest = sorted(
                path.parent.glob("best-[0-9]*.png"), key=lambda p: (len(p.name), p.name)
            )
            path = newest[-1] if newest else path
        image, _, about = open_png(path)
        if about is None:
            raise RunError(f"{path} has no tiller chunk; another program has replaced it")
        return image, about

    def entries(self) -> list[Entry]:
        """The journal's lines, oldest first."""
        return self.journal.read()

    def save_best(self, inputs: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Write `best.safetensors`: all that the model needs to redraw the best picture.

        Args:
            inputs: `noise` [slots, C, h, w] or [1, slots, C, h, w] (slot 0 is x_T, unit normal;
                slot k the noise added by step k - 1), and, where words alone do not say it,
                `prompt_embeds` and `negative_prompt_embeds` [1, tokens, dim].
            metadata: plain data; `runs.export` says which names it uses.
        """
        from safetensors.torch import save

        from tiller.runs.state_file import unshared

        self._owned()
        data = save(unshared(dict(inputs)), {"tiller": to_json(dict(metadata))})
        path = self.path / BEST
        write_atomically(path, data, "save the best picture's inputs")
        return path

    def _load(self, name: str, faults: list[str]) -> Packed | None:
        from tiller.runs.state_file import decode_state

        path = self.path / name
        if not path.exists():
            return None
        with explained(path, "read the run's state"):
            data = path.read_bytes()
        try:
            return decode_state(data)
        except RunError as error:
            faults.append(f"{name}: {error}")
            return None

    def _note(self, text: str | None) -> None:
        if text is not None:
            self.notices.append(text)
            if self._lock is not None:
                self.journal.append({"kind": "notice", "text": text})

    def _image(self, name: str) -> Path:
        return self.path / "images" / f"{name.removesuffix('.png')}.png"

    def _make_images_folder(self) -> None:
        with explained(self.path / "images", "make the folder of pictures"):
            (self.path / "images").mkdir(exist_ok=True)

    def _owned(self) -> None:
        if self._lock is None:
            raise RunError(f"{self.path} is open for reading; call lock() before writing to it")


def _digest(spec: Mapping[str, Any]) -> str:
    """A short hash of all that repeats a run; part of its folder's name."""
    return hashlib.blake2b(canonical_json(spec).encode(), digest_size=4).hexdigest()


def _new_folder(out: Path, name: str) -> Path:
    """Make `<out>/<name>`, with a number behind it where that is taken."""
    with explained(out, "make the output folder"):
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(20, "Not a directory", str(out))
        out.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        path = out / (name if number == 1 else f"{name}-{number}")
        with explained(out, "make the run's folder"):
            try:
                path.mkdir()
            except FileExistsError:
                continue
            sync_folder(out)
        return path
    raise RunError(f"{out} has 10,000 runs of one second and one setting; give another folder")


def _discard(path: Path) -> None:
    """Remove the folder of a run that could not be started, as far as that is possible."""
    for part in (path / "run.json", path / "lock", path / "images"):
        try:
            part.rmdir() if part.is_dir() else part.unlink()
        except OSError:
            continue
    try:
        path.rmdir()
    except OSError:
        return


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"expected a run's folder, got {str(folder)!r}, which is no folder. Check the path"
    runs = sorted(child.parent.name for child in folder.glob("*/run.json"))
    hint = f"It holds runs, such as {runs[-1]!r}: give one of them" if runs else "Check the path"
    return f"expected a run's folder, got {str(folder)!r}, which has no run.json. {hint}"
