"""What a resumed run may change: each setting says it of itself, and here it is held to it.

A change that would make another run of it, with other data, another model or another optimizer, is
refused, with the way to a new run that has it; one that only changes its numbers is announced.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from addnorm import settings
from addnorm.settings import AtResume, SettingsError, assignment
from addnorm.training.config import Config, TaskSettings
from addnorm.training.loop_settings import LoopSettings

BY_THE_TRAINER = ("threads", "device", "precision")  # it tells what they are, not what is set


@final
@dataclass(frozen=True)
class Resume:
    """A run to go on with, in ``folder``: its settings, ``then`` and ``now``, as JSON has them.

    ``usual`` is what a setting is that one of the two does not name, ``marks`` what it says of
    itself. ``task`` are its settings now; None: it is one that was written in Python.
    """

    folder: Path
    then: Mapping[str, Any]
    now: Mapping[str, Any]
    usual: Mapping[str, Any]
    marks: Mapping[str, AtResume]
    task: TaskSettings | None

    @classmethod
    def of(
        cls, folder: Path, then: Mapping[str, Any], config: Config | None, loop: LoopSettings
    ) -> "Resume":
        """The resume of a run that was recorded with the settings ``then``; without a Config it is
        one of a task written in Python, of which the loop's settings are known."""
        if config is not None:
            now, usual, marks = config.to_json(), config.defaults(), config.at_resume()
            return cls(folder, then, now, usual, marks, config.task)
        usual = settings.defaults_to_json(LoopSettings)
        return cls(folder, then, settings.to_json(loop), usual, settings.at_resume(loop), None)

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Key -> (then, now), of those that differ."""
        both = {key: (self._then(key), value) for key, value in self.now.items()}
        return {key: (then, now) for key, (then, now) in both.items() if then != now}

    def _then(self, key: str) -> Any:
        """What a setting was; an older addnorm may not have had it, and then did the usual."""
        return self.then.get(key, self.usual.get(key))

    def notices(self) -> list[str]:
        """The changes that a run may make and has to tell, in words; a ``SettingsError`` for those
        that it may not."""
        conflicts: dict[AtResume, list[str]] = {AtResume.ANEW: [], AtResume.BY_TUNING: []}
        notices = []
        for key, (then, now) in self.changes().items():
            mark = self.marks.get(key, AtResume.ANEW)
            # Whether renamed data is the same ``compare`` finds out; with or without weights to
            # start from is never the same.
            if mark is AtResume.IF_SAME and None in (then, now):
                raise SettingsError(
                    f"{assignment(key, now)}, and the run in {self.folder} has "
                    f"{assignment(key, then)}: it goes on with its own weights, so leave this out"
                )
            if mark in conflicts:
                conflicts[mark].append(key)
            elif mark is AtResume.WITH_NOTICE and key not in BY_THE_TRAINER:
                notices.append(f"{key} {then} then, {now} now")
        keys = conflicts[AtResume.ANEW] + conflicts[AtResume.BY_TUNING]
        if keys:
            wishes = ", ".join(assignment(key, self.now[key]) for key in keys)
            facts = ", ".join(assignment(key, self._then(key)) for key in keys)
            raise SettingsError(
                f"{wishes} would make {self.folder} another run: it has {facts}, and a resumed run "
                f"keeps that. {self._way(keys)}"
            )
        return notices

    def compare(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise a ``SettingsError`` if a fact of the task, ``then`` as it was recorded, is another
        one ``now``, both as JSON has them. One that the task no longer states decides nothing."""
        for name, value in then.items():
            if name not in now or now[name] == value:
                continue
            sources = self.task.sources(name, then, now) if self.task else ()
            keys = [key for key in sources if key in self.now]
            raise SettingsError(
                f"{_difference(name, value, now[name])}{self._values(keys)}: this would not be the "
                f"run in {self.folder}. Give it what it had. {self._way(keys)}"
            )

    def _values(self, keys: Sequence[str]) -> str:
        """Of these settings, those that differ, in parentheses, for the middle of a message."""
        both = [(key, self._then(key), self.now[key]) for key in keys]
        words = [f"{assignment(k, a)} then, {assignment(k, b)} now" for k, a, b in both if a != b]
        return f" ({'; '.join(words)})" if words else ""

    def _way(self, keys: Sequence[str]) -> str:
        """The end of a message: how to have a new run with what these settings are now, which this
        one may not have; by the command, and from its weights where these fit."""
        if self.task is None:
            return "For that, begin a new run in another folder"
        folder = shlex.quote(str(self.folder))
        changes = [key for key in keys if self._then(key) != self.now[key]]
        words = [shlex.quote(assignment(key, self.now[key])) for key in changes]
        command = ["addnorm train --config", f"{folder}/config.toml", *words, "--out NEW"]
        anew = {AtResume.ANEW} & {self.marks.get(key, AtResume.ANEW) for key in keys}
        anew |= {AtResume.ANEW} if "tokenizer" in keys else set()
        if "init_from" in changes:
            return f"For a new run that starts from those weights: {' '.join(command)}"
        begins = self.then.get("task") == self.task.name and self.task.begins_another(self.then)
        if not begins or anew:
            return f"For a new run that starts from scratch: {' '.join(command)}"
        command.insert(2, f"init_from={folder}/model")
        return f"For a new run that starts from its weights: {' '.join(command)}"


def _difference(name: str, then: Any, now: Any) -> str:
    """What a setting was and is; if it is an object, only the entries that differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        odd = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        before, after = ([f"{key}={of.get(key)}" for key in odd] for of in (then, now))
        return f"{name} was {', '.join(before)} and is {', '.join(after)}"
    return f"{name} was {then} and is {now}"
