"""Episodes: what was seen, what was done, and what came of it, step by step.

    {"states": [0, 1, 9], "actions": [2, 1, 1], "rewards": [0, 0, 1]}

A state is a whole number from 0 on, or a list of numbers, always as long; an action likewise. There
may be one state more, in which nothing was done any more; it is passed over. What else an object
holds is passed over too. A data set of Minari is read by its id: ``minari:D4RL/door/human-v2``.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from addnorm import reading
from addnorm.checks import MOST
from addnorm.data.order import order_key, shuffled
from addnorm.data.sources import DataError
from addnorm.words import a_few, error_in_a_line, plural

FORMATS = (
    'a .jsonl file with an episode a line, {"states": [...], "actions": [...], "rewards": [...]}, '
    "or minari:ID, a data set of Minari"
)
MINARI = "minari:"
NUMBER, VECTOR = "number", "vector"
"""What states are, and actions: one of so many, or a list of numbers."""
KIND_WORDS = {NUMBER: "whole numbers", VECTOR: "lists of numbers"}
SHOWN = 3  # places in a message

Column = NDArray[np.int64] | NDArray[np.float64]
"""(T,) whole numbers, or (T, width): one row for each step."""


class Episode(NamedTuple):
    """What happened from a beginning to an end, one row for each step."""

    states: Column
    actions: Column
    rewards: NDArray[np.float64]

    @property
    def total(self) -> float:
        """The return of the episode: all that it brought, undiscounted."""
        return float(self.rewards.sum())

    def identity(self) -> str:
        """A hash of what happened: the same for two episodes that are alike."""
        digest = hashlib.sha256()
        for part in self:
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(part.tobytes())
        return digest.hexdigest()


@final
@dataclass(frozen=True)
class Episodes:
    """Episodes whose states are all of a kind, and their actions too."""

    rows: Sequence[Episode]
    remarks: Sequence[str] = ()
    """What is odd about the data, in sentences."""


def to_go(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The returns to go: of each step what it and all later ones bring."""
    return rewards[::-1].cumsum()[::-1]


def kind_of(column: Column) -> str:
    """``NUMBER`` or ``VECTOR``."""
    return NUMBER if column.ndim == 1 else VECTOR


# --- reading --------------------------------------------------------------------------------------


def read_episodes(data: str) -> Episodes:
    """The episodes that ``data`` names, of which those without a step are left out, and told; a
    ``DataError`` says where something else was expected, and what."""
    rows: list[Episode] = []
    empty: list[str] = []
    first: tuple[Episode, str] | None = None
    pairs = _of_minari(data.removeprefix(MINARI)) if data.startswith(MINARI) else _of_lines(data)
    for where, episode in pairs:
        if not len(episode.rewards):
            empty.append(where)
            continue
        first = first or (episode, where)
        _check_alike(episode, where, *first)
        rows.append(episode)
    if not rows:
        raise DataError(f"{data} has no episode with a step in it")
    remarks = []
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        remarks.append(
            f"{plural(len(empty), 'episode')} without a step {verb} left out "
            f"({a_few(empty, SHOWN)})"
        )
    return Episodes(rows, remarks)


def _of_lines(data: str) -> Iterator[tuple[str, Episode]]:
    """(where it stands, the episode) of each line of a .jsonl file."""
    file = reading.place(data, DataError)
    if file.suffix.lower() != ".jsonl":
        raise DataError(f"{data} is not a file of episodes: give {FORMATS}")
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if number == 1:
            reading.check_no_pointer(file, line, DataError)
        if not line.strip():
            continue
        where = f"{file}:{number}"
        value = reading.json_value(line, where, DataError)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {reading.in_words(value)}")
        yield where, episode_of(value, where)


def episode_of(value: Mapping[str, Any], where: str) -> Episode:
    """An object as an episode; a ``DataError`` that begins with ``where`` if it is none."""
    lists = {
        name: reading.field(value, name, list, where, DataError)
        for name in ("states", "actions", "rewards")
    }
    count = len(lists["rewards"])
    if len(lists["actions"]) != count or len(lists["states"]) not in (count, count + 1):
        sizes = ", ".join(plural(len(part), name[:-1]) for name, part in lists.items())
        raise DataError(
            f"{where} has {sizes}: there must be one of each for a step, and there may be one "
            "state more at the end"
        )
    states = column(lists["states"], f"{where}: states")[:count]
    actions = column(lists["actions"], f"{where}: actions")
    return Episode(states, actions, numbers(lists["rewards"], f"{where}: rewards"))


def column(values: Sequence[Any], where: str) -> Column:
    """States or actions, as JSON has them; a ``DataError`` that begins with ``where`` if they are
    something else. Those of no step are a column of numbers."""
    if not values or not isinstance(values[0], list):
        for i, value in enumerate(values):
            if type(value) is not int or not 0 <= value <= MOST:
                raise DataError(
                    f"{where}[{i}] is {reading.in_words(value)}, expected a whole number from 0 on"
                    f"{f' to {MOST}' if type(value) is int and value > MOST else ''}"
                    ", or in all places a list of numbers"
                )
        return np.array(values, np.int64)
    rows = []
    for i, value in enumerate(values):
        if not isinstance(value, list) or len(value) != len(values[0]) or not value:
            what = f"a list of {len(value)}" if isinstance(value, list) else reading.in_words(value)
            raise DataError(
                f"{where}[{i}] is {what}, expected a list of {max(1, len(values[0]))} as before"
            )
        rows.append(numbers(value, f"{where}[{i}]"))
    return np.stack(rows)


def numbers(values: Sequence[Any], where: str) -> NDArray[np.float64]:
    """Finite numbers, as JSON has them; a ``DataError`` that begins with ``where`` if one is not
    one."""
    for i, value in enumerate(values):
        if type(value) not in (int, float) or not abs(value) < 1e30:  # NaN is not below
            raise DataError(f"{where}[{i}] is {reading.in_words(value)}, expected a finite number")
    return np.array(values, np.float64)


def _check_alike(episode: Episode, where: str, first: Episode, place: str) -> None:
    """Raise a ``DataError`` if the states or actions of an episode are of another kind or width
    than those of the ``first``, which stands at ``place``."""
    for name in ("states", "actions"):
        a, b = getattr(first, name), getattr(episode, name)
        if a.shape[1:] != b.shape[1:]:
            raise DataError(f"{where}: {name} are {_shape(b)}, and in {place} {_shape(a)}")


def _shape(column: Column) -> str:
    words = KIND_WORDS[kind_of(column)]
    return words if column.ndim == 1 else f"{words}, {column.shape[1]} in each"


def _of_minari(name: str) -> Iterator[tuple[str, Episode]]:
    """(where it stands, the episode) of each one of a data set of Minari: one that is on this
    machine, or else is downloaded."""
    try:
        minari: Any = import_module("minari")
    except ImportError as error:
        raise DataError(
            f"data sets of Minari need minari ({error}): pip install 'addnorm[decisions]'"
        ) from None
    try:
        episodes = iter(minari.load_dataset(name, download=True).iterate_episodes())
    except Exception as error:  # whatever its storage and its network raise
        raise DataError(f"Minari cannot open {name}: {error_in_a_line(error)}") from None
    for episode in episodes:
        where = f"{MINARI}{name}, episode {episode.id}"
        states, actions = (
            _flat(values, f"{where}: {what}")
            for what, values in (("states", episode.observations), ("actions", episode.actions))
        )
        rewards = np.asarray(episode.rewards, np.float64)
        if not np.isfinite(rewards).all():
            raise DataError(f"{where}: rewards are not all finite")
        yield where, Episode(states[: len(rewards)], actions, rewards)


def _flat(values: Any, where: str) -> Column:
    """What Minari has of all steps, as a column: whole numbers as they are, everything else as one
    vector a step; a ``DataError`` for what consists of several parts by name."""
    if isinstance(values, Mapping | tuple):
        parts = ", ".join(map(str, values)) if isinstance(values, Mapping) else len(values)
        raise DataError(f"{where} consist of several parts ({parts}), which are not read")
    array = np.asarray(values)
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        if array.size and array.min() < 0:
            raise DataError(f"{where} are numbers below 0: there is none in a list of so many")
        return array.astype(np.int64)
    flat = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise DataError(f"{where} are not all finite")
    return flat


# --- for a training -------------------------------------------------------------------------------


@final
class Steps:
    """The steps of episodes, one after the other, of which windows are read.

    ``episodes``: at least one.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.states: Column = np.concatenate([e.states for e in episodes])
        self.actions: Column = np.concatenate([e.actions for e in episodes])
        self.to_go = np.concatenate([to_go(e.rewards) for e in episodes])
        lengths = [len(e.rewards) for e in episodes]
        self.times = np.concatenate([np.arange(n) for n in lengths])
        self.left = np.concatenate([np.arange(n, 0, -1) for n in lengths])
        """Steps from each one to the end of its episode, itself included."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.times)

    def windows(self, firsts: NDArray[np.int64], length: int) -> dict[str, NDArray[Any]]:
        """Windows that begin with the steps ``firsts`` and go on for ``length`` or to the end of
        the episode: ``returns`` (to go), ``states``, ``actions``, ``times`` and ``valid``, which
        says what is no filling, each (rows, length) or (rows, length, width)."""
        places = np.arange(length)
        valid = places < self.left[firsts][:, None]
        index = np.where(valid, firsts[:, None] + places, firsts[:, None])
        return {
            "returns": self.to_go[index],
            "states": self.states[index],
            "actions": self.actions[index],
            "times": self.times[index],
            "valid": valid,
        }

    def firsts(self, start: int, stop: int, seed: int) -> NDArray[np.int64]:
        """With which steps the windows number ``start`` to ``stop`` - 1 begin: in each epoch every
        step begins one, in an order of its own, which depends on (seed, epoch) only."""
        numbers = np.arange(start, stop)
        firsts = np.empty_like(numbers)
        for epoch in range(start // len(self), (stop - 1) // len(self) + 1):
            here = numbers // len(self) == epoch
            key = order_key(f"episodes, seed {seed}, epoch {epoch}")
            firsts[here] = shuffled(numbers[here] % len(self), len(self), key)
        return firsts

    def every(self, length: int) -> NDArray[np.int64]:
        """With which steps windows begin that together have each step once: from the beginning of
        an episode on, one after the other."""
        return np.flatnonzero(self.times % length == 0)


def best_part(episodes: Sequence[Episode], share: float) -> list[Episode]:
    """Those with the highest returns, ``share`` of them, at least one, in their order; of equal
    returns those that come first."""
    count = max(1, math.floor(share * len(episodes) + 1e-9))
    order = sorted(range(len(episodes)), key=lambda i: -episodes[i].total)
    return [episodes[i] for i in sorted(order[:count])]
