"""The settings of a run as one tree, and the register of what can be trained.

A use is a class of settings that registers itself; nothing else has to know of it. Its keys stand
beside the loop's, and ``task=NAME`` in a file of settings says whose they are::

    @register
    @dataclass(frozen=True, kw_only=True)
    class ToySettings(TaskSettings):
        name = "toy"
        rows: int = setting(8, AtResume.BY_TUNING)

        def build(self, choices=NOTHING): return ToyTask(self)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, final

from addnorm import settings
from addnorm.errors import unknown_name
from addnorm.settings import ASIDE, FLAT, AtResume, SettingsError, setting
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.sinks import check_names
from addnorm.training.task import Task

NOTHING: Mapping[str, Any] = MappingProxyType({})
"""No settings, as a default that nobody can change."""


class TaskSettings(ABC):
    """The settings of what is learned, a frozen dataclass; those of the loop stand beside them."""

    name: ClassVar[str]
    """What ``task=`` calls it."""
    usual: ClassVar[bool] = False
    """Whether it is what is learned where nobody says what."""

    @abstractmethod
    def build(self, choices: Mapping[str, Any] = NOTHING) -> Task:
        """The task, with its data read; ``choices`` are those of the settings, by key, that
        somebody chose over what a recipe has by itself: they hold, or are an error."""

    def beside(self, loop: LoopSettings) -> Self:
        """The same, where a setting follows one of the loop's, or a ``SettingsError`` if the two
        contradict each other."""
        return self

    def begins_another(self, then: Mapping[str, Any]) -> bool:
        """Whether a new run can begin from the model of one with the settings ``then``, by
        ``init_from``."""
        return False

    def by_heart(self) -> Mapping[str, Any]:
        """Settings, by key, that leave out what keeps a model from learning rows by heart."""
        return NOTHING

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
        """The settings that a fact of the task comes from, of which ``then`` and ``now`` are all
        facts of a run as it was recorded, and as it is."""
        return ()


_KINDS: dict[str, type[TaskSettings]] = {}
Kind = TypeVar("Kind", bound=type[TaskSettings])


def register(kind: Kind) -> Kind:
    """Make a class of settings known by its name, as a decorator above ``@dataclass``; the class
    itself is returned. A ``ValueError`` if another class has the name."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is not a dataclass: put @register above @dataclass")
    other = _KINDS.get(kind.name, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"task {kind.name!r} is registered already, by {other.__module__}")
    _KINDS[kind.name] = kind  # a cell of a notebook may run again
    return kind


def registered(name: str) -> type[TaskSettings]:
    """The class of settings that has this name."""
    if name not in _KINDS:
        raise SettingsError(unknown_name("task", name, _KINDS))
    return _KINDS[name]


def usual() -> TaskSettings:
    """What is learned where nobody says what."""
    return next(kind() for kind in _KINDS.values() if kind.usual)


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run: of what is learned, and of the loop. Keys of both are set alike."""

    task: TaskSettings = field(metadata={FLAT: True})
    loop: LoopSettings = field(default_factory=LoopSettings, metadata={FLAT: True})
    sinks: tuple[str, ...] = setting((), AtResume.FREELY)
    """Besides metrics.jsonl: tensorboard, wandb."""
    choices: Mapping[str, Any] = field(
        default_factory=dict, compare=False, repr=False, metadata={ASIDE: True}
    )
    """Of the task's settings, those that somebody chose over what a recipe has by itself."""

    def __post_init__(self) -> None:
        check_names(self.sinks)
        object.__setattr__(self, "task", self.task.beside(self.loop))

    def changed(self, *layers: Mapping[str, Any]) -> "Config":
        """With other values of some keys, later layers over earlier ones, all of which count as
        chosen from now on. A layer may say "task", but no other than this is; ``SettingsError``
        names a key that is not known, or one that has no effect beside the others."""
        kinds = {key: kind for key, kind, _ in settings.entries(self.task)}
        choices = dict(self.choices)
        for layer in layers:
            if layer.get("task", self.task.name) != self.task.name:
                raise SettingsError(
                    f"task is {self.task.name} in this recipe; {layer['task']!r} has settings of "
                    "its own: choose a recipe with it"
                )
            choices |= {
                key: settings.converted(key, kinds[key], value)
                for key, value in layer.items()
                if key in kinds
            }
        own = [{key: value for key, value in layer.items() if key != "task"} for layer in layers]
        return replace(settings.changed(self, *own), choices=choices)

    def build(self) -> Task:
        """The task, with its data read; what was asked for holds, or is an error."""
        return self.task.build(self.choices)

    def at_resume(self) -> dict[str, AtResume]:
        """What a resumed run may do with each key."""
        return {"task": AtResume.ANEW, **settings.at_resume(self)}

    def defaults(self) -> dict[str, Any]:
        """Every key and what it is by itself, as JSON has it."""
        return {"task": self.task.name, **settings.defaults_to_json(self)}

    def to_json(self) -> dict[str, Any]:
        """Every key that has an effect, and its value; ``from_json`` reads it."""
        return {"task": self.task.name, **settings.to_json(self)}

    def to_toml(self) -> str:
        """The configuration as a file for ``--config``."""
        return f'task = "{self.task.name}"\n{settings.to_toml(self)}'

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> "Config":
        """From what ``to_json`` wrote. Nothing in it counts as chosen: it is what a run has."""
        kind = registered(str(card.get("task")))
        return replace(cls(task=kind()).changed(card), choices={})
