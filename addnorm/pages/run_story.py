"""What the files of a run tell; anything may be missing, or not what it should be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.errors import Mendable
from addnorm.pages.numbers import as_float
from addnorm.records import objects, read

PLACE = ("step", "tokens", "elapsed_s", "whole")  # what says where a record is, and no metric


@final
@dataclass(frozen=True)
class Story:
    """What the files of a run tell; anything may be missing."""

    folder: Path
    state: Mapping[str, Any] = field(default_factory=dict)  # run.json
    records: Sequence[Mapping[str, Any]] = ()  # metrics.jsonl
    samples: Sequence[tuple[int, Sequence[str]]] = ()  # step, texts
    pictures: tuple[int, Sequence[Any]] = (0, ())  # pictures.json: step, objects
    models: Sequence[str] = ()  # of "model" and "best", those that are there

    @classmethod
    def read(cls, folder: Path) -> "Story":
        """From a run's folder; a file that is missing or cannot be read tells nothing, and nothing
        is raised."""
        return cls(
            folder,
            _object(folder / "run.json"),
            read(folder / "metrics.jsonl"),
            _samples(folder / "samples.jsonl"),
            _pictures(folder / "pictures.json"),
            [name for name in ("model", "best") if (folder / name).is_dir()],
        )

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.folder.name or self.folder.resolve().name or str(self.folder)

    @cached_property
    def train(self) -> "Table":
        """The training steps of the run."""
        return Table([r for r in self.records if "whole" not in r])

    @cached_property
    def evaluations(self) -> "Table":
        """The evaluations of the run."""
        return Table([r for r in self.records if "whole" in r])

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run by key."""
        return as_mapping(self.state.get("config"))

    @property
    def step(self) -> int:
        """How far it came."""
        counts = [as_count(self.state.get("step")), *self.train.steps[-1:]]
        return max((n for n in counts if n is not None), default=0)

    @property
    def steps(self) -> int | None:
        """How far it was to go."""
        return as_count(self.config.get("steps"))

    @property
    def finished(self) -> bool:
        """Whether the run has done its last step."""
        return self.state.get("finished") is True

    @property
    def failure(self) -> str:
        """Why it stopped, if something stopped it."""
        failure = self.state.get("failure")
        return failure if isinstance(failure, str) and not self.finished else ""

    @property
    def unit(self) -> str:
        """What the steps count."""
        return str(self.state.get("unit", "targets"))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the settings are by themselves; empty where the run did not note it down."""
        return as_mapping(self.state.get("defaults"))

    @property
    def metric(self) -> str:
        """What says that a model is better: as the run says, or what its evaluations have first."""
        metric = self.state.get("metric")
        return metric if isinstance(metric, str) else next(iter(self.metrics), "val_loss")

    @property
    def metrics(self) -> list[str]:
        """What evaluations measure, all names in the order in which they came."""
        names = (n for r in self.evaluations.records for n in r if n not in PLACE)
        return list(dict.fromkeys(names))


@final
class Table:
    """Records of one kind by step."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.records = [r for r in records if as_count(r.get("step")) is not None]
        self.steps: list[int] = [r["step"] for r in self.records]

    def values(self, name: str) -> list[float]:
        """A column; NaN where it has no number."""
        return [as_float(r.get(name)) for r in self.records]

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) where there is a record with it."""
        return [(r["step"], as_float(r[name])) for r in self.records if name in r]


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        return reading.json_object(file)
    except Mendable:
        return {}


def _pictures(file: Path) -> tuple[int, list[Any]]:
    """The step, and what was shown after it."""
    content = _object(file)
    objects = content.get("pictures")
    return as_count(content.get("step")) or 0, objects if isinstance(objects, list) else []


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Empty for what is none."""
    return value if isinstance(value, dict) else {}


def _samples(file: Path) -> list[tuple[int, list[str]]]:
    """(step, texts) of samples.jsonl, sorted by step, the last line of a step counting."""
    samples: dict[int, list[str]] = {}
    for record in objects(file):
        step = as_count(record.get("step"))
        if step is not None and isinstance(record.get("samples"), list):
            samples[step] = [str(text) for text in record["samples"]]
    return sorted(samples.items())


def as_count(value: Any) -> int | None:
    """A count that can be drawn."""
    there = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15
    return value if there else None
