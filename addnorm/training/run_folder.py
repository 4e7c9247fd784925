"""Whose a run's folder is, and what in it addnorm wrote itself: nothing else is ever deleted.

A folder is a run of ours if its ``run.json`` is one that ``run.py`` writes; names alone decide
nothing, since a project may well have ``checkpoints`` and ``model`` of its own. Nothing in a folder
is changed before ``claim`` has answered, and what ``clear`` deletes it knows by name.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.adapt import peft_files as adapters
from addnorm.files import folders
from addnorm.pages import run as page
from addnorm.settings import SettingsError
from addnorm.training.checkpoint import LEFT_BEHIND, LOCK, CheckpointError, Checkpoints
from addnorm.words import a_few

STATE, SETTINGS, CHECKPOINTS = "run.json", "config.toml", "checkpoints"
METRICS, SAMPLES, PICTURES = "metrics.jsonl", "samples.jsonl", "pictures.json"
MODELS = ("model", "best")
TENSORBOARD, WANDB = "tensorboard", "wandb"
NUMBER = (int, float)
KEYS: dict[str, tuple[type, ...]] = {
    "addnorm": (str,),
    "step": (int,),
    "finished": (bool,),
    "elapsed_s": NUMBER,
    "best": (*NUMBER, type(None)),
    "metric": (str,),
    "metrics": (dict,),
    "config": (dict,),
}
"""What a ``run.json`` of ours has, and of which types."""

HIDDEN = tuple(f".{name}" for name in (STATE, SETTINGS, PICTURES, page.NAME))
"""What a file is called while it is written."""
FILES = (METRICS, SAMPLES, PICTURES, page.NAME, *HIDDEN)
"""What lies in the folder itself and belongs to one run; ``run.json`` and ``config.toml`` are not
deleted but replaced, so that at every moment it can be seen whose the folder is."""
ADAPTER_FILES = tuple(f"{dot}{n}" for n in (adapters.CONFIG, adapters.TENSORS) for dot in ("", "."))
HEX = "[0-9a-f]" * 8  # the random part of a hidden folder's name, and of wandb's id


class FolderKind(Enum):
    """What a folder is to a run that wants it."""

    FREE = auto()
    """Not there, empty, or no more in it than a start leaves that ended before its run.json."""
    RUN = auto()
    """A run of ours."""
    DAMAGED = auto()
    """Checkpoints of ours, and no run.json that says of what."""
    FOREIGN = auto()
    """Somebody else's."""


@final
@dataclass(frozen=True)
class FolderState:
    """What a folder is, why it is no run where it is none, and what the run.json of a run says."""

    kind: FolderKind
    why: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)


def examine(folder: Path) -> FolderState:
    """What the folder is, by what lies in it; nothing is written. A ``SettingsError`` where it is a
    file, or cannot be looked into."""
    try:
        names = {path.name for path in folder.iterdir()}
        if STATE in names:
            try:
                return FolderState(FolderKind.RUN, state=read(folder))
            except SettingsError as error:
                why = str(error)
        else:
            why = f"it has no {STATE}"
        if _has_checkpoints(folder):
            return FolderState(FolderKind.DAMAGED, why)
        leftovers = names <= {CHECKPOINTS, f".{STATE}"} and all(
            path.name == LOCK or path.name.startswith(LEFT_BEHIND)
            for path in (folder / CHECKPOINTS).glob("*")
        )
    except FileNotFoundError:
        return FolderState(FolderKind.FREE)
    except NotADirectoryError:
        raise SettingsError(f"{folder} is a file: a run needs a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise SettingsError(f"cannot look into {folder}: {error}") from None
    return FolderState(FolderKind.FREE) if leftovers else FolderState(FolderKind.FOREIGN, why)


def read(folder: Path) -> dict[str, Any]:
    """The run.json of a run of ours; a ``SettingsError`` says why it is none."""
    file = folder / STATE
    try:
        state = reading.json_object(file, SettingsError)
    except SettingsError as error:
        raise SettingsError(f"{folder} is not the folder of a run: {error}") from None
    # By type and not isinstance: True is no number here.
    odd = [key for key, kinds in KEYS.items() if type(state.get(key, ...)) not in kinds]
    if "metrics" not in odd:
        odd += [f"metrics.{n}" for n, v in state["metrics"].items() if type(v) not in NUMBER]
    if odd:
        raise SettingsError(
            f"{folder} is not the folder of a run: {file} is none of addnorm's, by its "
            f"{', '.join(odd)}"
        )
    return state


def claim(checkpoints: Checkpoints, *, resume: bool, overwrite: bool) -> FolderState:
    """Take the folder around the checkpoints for one run, locked against others, or raise why not,
    a ``SettingsError`` or a ``CheckpointError``. Returns what was there before.

    ``resume``: to go on with the run there. ``overwrite``: to replace it. Neither: to begin one
    where there is none. Nothing of what is there is changed: with ``overwrite`` that is for
    ``clear`` to do, once the new run is ready to begin.
    """
    folder = checkpoints.folder.parent
    if resume and overwrite:
        raise SettingsError(
            f"to go on with {folder} (--resume) and to replace it (--overwrite) exclude each "
            "other: choose one"
        )
    _refuse(examine(folder), folder, resume, overwrite)
    checkpoints.lock()
    place = examine(folder)  # again: another run may have been faster, and has ended since
    _refuse(place, folder, resume, overwrite)
    return place


def _refuse(place: FolderState, folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise a ``SettingsError`` unless a run may begin, or go on, in such a folder; the message
    says what to do. ``place``: what is there; ``resume`` and ``overwrite`` as in ``claim``."""
    if resume:
        if place.kind not in (FolderKind.RUN, FolderKind.DAMAGED):
            raise SettingsError(
                f"{folder} holds no run to go on with{place.why and ': '}{place.why}"
            )
    elif place.kind is FolderKind.FOREIGN:
        raise SettingsError(
            f"{folder} is not empty and no run of addnorm's: {place.why}. It holds "
            f"{_shown(folder.iterdir(), folder)}. Nothing was changed: choose a new folder, such "
            f"as --out {folder / 'run'}"
        )
    elif place.kind is FolderKind.DAMAGED:
        raise SettingsError(
            f"{folder} holds checkpoints of a run, but {place.why}. Nothing was changed: choose "
            "another --out, delete the folder yourself, or go on with it in Python "
            "(addnorm.train(..., resume=True))"
        )
    elif place.kind is FolderKind.RUN and not overwrite:
        raise SettingsError(
            f"{folder} holds a run already: go on with it (--resume {folder}), choose another "
            "--out, or replace it (--overwrite)"
        )
    elif place.kind is FolderKind.RUN and (wrong := _in_the_way(folder)):
        raise SettingsError(
            f"{folder} cannot be replaced: in the way is what addnorm did not write, "
            f"{_shown(wrong, folder)}. Nothing was changed: move it elsewhere, or choose another "
            "--out"
        )


def _shown(paths: Iterable[Path], folder: Path) -> str:
    """A few of the paths, as seen from the folder, for a message."""
    return a_few(sorted(str(path.relative_to(folder)) for path in paths), 5)


def _has_checkpoints(folder: Path) -> bool:
    try:
        return bool(Checkpoints(folder / CHECKPOINTS).steps())
    except CheckpointError:
        return False


def _in_the_way(folder: Path) -> list[Path]:
    """What is not addnorm's, though a run writes to its place: files where it needs folders,
    folders where it needs files, or else what lies inside of checkpoints and is none of theirs."""
    parts = [folder / name for name in (CHECKPOINTS, *MODELS, TENSORBOARD, WANDB)]
    wrong = [path for path in parts if path.exists() and not path.is_dir()]
    wrong += [path for name in (*FILES, SETTINGS) if (path := folder / name).is_dir()]
    if not wrong:
        wrong = Checkpoints(folder / CHECKPOINTS).strangers()
    return wrong


# --- what addnorm wrote ---------------------------------------------------------------------------


def clear(checkpoints: Checkpoints) -> None:
    """Delete what the run around these checkpoints wrote, but for ``run.json`` and ``config.toml``,
    which the next one replaces. Files of others stay, and so do the folders that hold some."""
    folder = checkpoints.folder.parent
    checkpoints.clear()
    try:
        for path in _own_files(folder):
            path.unlink(missing_ok=True)
        _clear_wandb(folder / WANDB)
    except OSError as error:
        raise SettingsError(f"cannot replace {folder}: {error}") from None
    inside = [f"{n}/{part}" for n in _models() for part in ("adapter", "base", f".base.{HEX}")]
    for pattern in (*inside, *_models(), TENSORBOARD, WANDB):
        for path in folder.glob(pattern):
            try:
                path.rmdir()
            except OSError:
                continue  # not empty, or a link: it is not ours alone


def _models() -> tuple[str, ...]:
    """Patterns of the folders that a model is written to, at the end or on the way."""
    return *MODELS, *(f".{name}.{HEX}" for name in MODELS)


def _own_files(folder: Path) -> list[Path]:
    """The files of ours, apart from the checkpoints and from what wandb wrote."""
    patterns = [*FILES, f"{TENSORBOARD}/events.out.tfevents.*"]
    for name in _models():
        for part in ("", "base/", f".base.{HEX}/"):
            patterns += [f"{name}/{part}{file}" for file in folders.WRITTEN]
        patterns += [f"{name}/adapter/{file}" for file in ADAPTER_FILES]
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _clear_wandb(folder: Path) -> None:
    """Delete what wandb wrote for this run, in its ``folder`` of the run's: it gives each session a
    folder, whose name ends in the id that the run has from us. Without that nothing is deleted."""
    try:
        run = (folder / "run-id").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    if not re.fullmatch(HEX, run):
        return
    for path in folder.glob(f"*run-*-{run}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    for name in ("latest-run", "debug.log", "debug-internal.log"):
        if (folder / name).is_symlink():
            (folder / name).unlink()
    (folder / "run-id").unlink()
