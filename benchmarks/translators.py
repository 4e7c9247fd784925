"""What the benchmarks of translators have in common: what is learned with a seed, and kept."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, final

from addnorm.pretrained import load
from addnorm.records import Record
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.fit import Course, Observer
from addnorm.training.run import train

OUTPUTS, MINUTES = "outputs.json", "minutes.json"


class Outputs(NamedTuple):
    """What a model made of the sources."""

    texts: list[str]
    """One for each source; empty where one cannot be read."""
    minutes: float
    """Of the processor, for the training."""
    what: str
    """The model in a few words."""


@final
class ProcessorTime(Observer):
    """Minutes of the processor that a training took, of all calls that went on with it. A machine
    that is shared has other minutes."""

    def __init__(self, file: Path) -> None:
        self.file, self.begin, self.before = file, process_time(), 0.0

    def begins(self, course: Course) -> None:
        """What earlier calls took, until the step that is gone on from."""
        steps = json.loads(self.file.read_text()) if self.file.exists() else {}
        step = course.trainer.done
        self.before = max((m for at, m in steps.items() if int(at) <= step), default=0.0)
        self.begin = process_time()

    def stepped(self, course: Course, record: Record) -> None:
        """A note at every step that is saved."""
        every = course.loop.save_every
        if course.trainer.done == course.loop.steps or (every and course.trainer.done % every == 0):
            self._note(course)

    def ended(self, course: Course) -> None:
        """Where it was stopped, too."""
        self._note(course)

    def _note(self, course: Course) -> None:
        """The minutes until this step."""
        steps = json.loads(self.file.read_text()) if self.file.exists() else {}
        steps[str(course.trainer.done)] = self.before + (process_time() - self.begin) / 60
        self.file.write_text(json.dumps(steps))


def outputs_of(
    config: Config, folder: Path, seed: int, sources: Sequence[str], beams: int
) -> Outputs:
    """Train with a seed, and translate the sources with the model that was best on what is held
    out. What is in the folder is not done again, and a training that was stopped goes on."""
    config = config.changed({"seed": seed})
    wish = {"settings": config.to_json(), "sources": digest(sources), "beams": beams}
    earlier = read(folder / OUTPUTS, wish)
    if earlier is not None:
        return earlier
    run, times = folder / "run", ProcessorTime(folder / MINUTES)
    folder.mkdir(parents=True, exist_ok=True)
    there = (run / "run.json").exists()
    if not there:
        times.file.unlink(missing_ok=True)
    step = train(config, out=run, resume=there, observers=[times], display=Display(quiet=True)).step
    texts = translations(run / "best", sources, beams)
    minutes = max(json.loads(times.file.read_text()).values())
    outputs = Outputs(texts, minutes, f"{step:,} steps")
    write(folder / OUTPUTS, wish, outputs)
    return outputs


def translations(model: Path, sources: Sequence[str], beams: int) -> list[str]:
    """Of each source the best that is found, those of like length together."""
    order = sorted(set(sources), key=len)
    answers = load(model).predict(order, beams=beams, batch_size=64)
    outputs = {str(answer["input"]): str(answer.get("output", "")) for answer in answers}
    return [outputs[source] for source in sources]


def digest(texts: Sequence[str]) -> str:
    """What says whether texts are the same."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def read(file: Path, wish: dict[str, Any]) -> Outputs | None:
    """What is kept there, if it is what is wished for; None: there is nothing."""
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["wish"] != wish:
        sys.exit(f"{file} is of other settings or sources: give another --out")
    return Outputs(content["texts"], content["minutes"], content["what"])


def write(file: Path, wish: dict[str, Any], outputs: Outputs) -> None:
    """Keep them, whole or not at all."""
    work = file.with_suffix(".new")
    content = {"wish": wish, **outputs._asdict()}
    work.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
    work.replace(file)
