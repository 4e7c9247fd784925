"""Whole configurations: ``Config``, and recipes for common wishes, to be changed key by key."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from addnorm import settings
from addnorm.errors import unknown_name
from addnorm.models.classifier import ClassifierConfig
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.settings import AtResume, SettingsError
from addnorm.training.classify import Classify
from addnorm.training.language import Language
from addnorm.training.loop_settings import Loop
from addnorm.training.sinks import named
from addnorm.training.task import Task

TASKS: dict[str, type[Language] | type[Classify]] = {"language": Language, "classify": Classify}


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run: of what is learned, and of the loop. Keys of both are set alike."""

    about: Language | Classify = field(default_factory=Language)
    loop: Loop = field(default_factory=Loop)
    sinks: tuple[str, ...] = ()
    """Besides metrics.jsonl: tensorboard, wandb."""
    choices: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Of the task's settings, those that somebody chose over what a recipe has by itself."""

    def __post_init__(self) -> None:
        named(self.sinks)
        if not isinstance(self.about, Language) or self.about.adapt.kind != "adalora":
            return
        if self.loop.parallel == "fsdp":
            raise SettingsError(
                "adapt.kind=adalora compares whole matrices: parallel=ddp, not fsdp"
            )
        if self.about.adapt.steps is None:
            about = settings.changed(self.about, {"adapt.steps": self.loop.steps})
            object.__setattr__(self, "about", about)

    @property
    def task(self) -> str:
        """The name of what is learned."""
        return next(name for name, kind in TASKS.items() if isinstance(self.about, kind))

    def changed(self, *layers: Mapping[str, Any]) -> "Config":
        """With other values of some keys, later layers over earlier ones; ``SettingsError`` names a
        key that is not known, or one that has no effect beside the others."""
        parts: dict[str, Any] = {"about": self.about, "loop": self.loop}
        known = {key: name for name, part in parts.items() for key, _, _ in settings.entries(part)}
        kinds = {key: kind for key, kind, _ in settings.entries(self.about)}
        mine: dict[str, list[dict[str, Any]]] = {"about": [], "loop": []}
        sinks, choices = self.sinks, dict(self.choices)
        for layer in layers:
            for changes in mine.values():
                changes.append({})
            for key, value in layer.items():
                if key == "sinks":
                    sinks = settings.converted(key, tuple[str, ...], value)
                elif key == "task":
                    if value != self.task:
                        raise SettingsError(
                            f"task is {self.task} in this recipe; {value!r} has settings of its "
                            "own: choose a recipe with it"
                        )
                elif key not in known:
                    raise SettingsError(unknown_name("setting", key, [*known, "sinks"]))
                else:
                    mine[known[key]][-1][key] = value
                    if key in kinds:
                        choices[key] = settings.converted(key, kinds[key], value)
        return replace(
            self,
            about=settings.changed(self.about, *mine["about"]),
            loop=settings.changed(self.loop, *mine["loop"]),
            sinks=sinks,
            choices=choices,
        )

    def build(self) -> Task:
        """The task, with its data read; what was asked for holds, or is an error."""
        return self.about.build(self.choices)

    def at_resume(self) -> dict[str, AtResume]:
        """What a resumed run may do with each key."""
        return {
            "task": AtResume.ANEW,
            **settings.at_resume(self.about),
            **settings.at_resume(self.loop),
            "sinks": AtResume.FREELY,
        }

    def defaults(self) -> dict[str, Any]:
        """Every key and what it is by itself, as JSON has it."""
        return {
            "task": self.task,
            **settings.defaults_to_json(type(self.about)),
            **settings.defaults_to_json(Loop),
            "sinks": [],
        }

    def to_json(self) -> dict[str, Any]:
        """Every key that has an effect, and its value; ``from_json`` reads it."""
        return {
            "task": self.task,
            **settings.to_json(self.about),
            **settings.to_json(self.loop),
            "sinks": list(self.sinks),
        }

    def to_toml(self) -> str:
        """The configuration as a file for ``--config``."""
        about, _, tables = settings.to_toml(self.about).partition("\n\n")
        sinks = ", ".join(json.dumps(name) for name in self.sinks)
        top = f'task = "{self.task}"\n{about}\n{settings.to_toml(self.loop)}sinks = [{sinks}]\n'
        return f"{top}\n{tables}" if tables else top

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Config":
        """From what ``to_json`` wrote."""
        kind = TASKS.get(str(told.get("task", "language")))
        if kind is None:
            raise SettingsError(unknown_name("task", str(told.get("task")), TASKS))
        return replace(cls(about=kind()).changed(told), choices={})


def tunable(told: Mapping[str, Any]) -> bool:
    """Whether ``init_from`` can take up the model that a run writes, by what ``Config.to_json``
    says of its settings."""
    beside = ("prefix", "adapter")  # which are no part of the model's own weights
    return told.get("task") == "language" and told.get("adapt.kind") not in beside


def stdlib_cpu() -> Config:
    """A small GPT on the source of Python's own library, in about three minutes on two cores."""
    return Config(
        about=Language(
            data="stdlib",
            tokenizer="bpe:2048",
            tokens_per_step=2048,
            model=GPTConfig(
                vocab_size=1,
                context_length=128,
                dim=192,
                n_layers=4,
                n_heads=6,
                norm="rms",
                position="rope",
                bias=False,
            ),
        ),
        loop=Loop(
            steps=450,
            optimizer="muon",
            lr=3e-3,
            muon_lr=2e-3,
            warmup=40,
            eval_every=100,
            save_every=250,
        ),
    )


def char_cpu() -> Config:
    """A character model on a text of about a megabyte, such as all of Shakespeare, on a CPU."""
    return Config(
        about=Language(
            data="input.txt",
            tokenizer="characters",
            split="tail",
            tokens_per_step=12 * 64,
            model=GPTConfig(
                vocab_size=1,
                context_length=64,
                dim=128,
                n_layers=4,
                n_heads=4,
                norm="rms",
                position="rope",
                bias=False,
            ),
        ),
        loop=Loop(steps=600, optimizer="muon", lr=4e-3, muon_lr=4e-3, warmup=50, eval_every=100),
    )


def gpt2_124m() -> Config:
    """GPT-2's smallest, 124 million parameters, for one GPU or several."""
    c = GPT.preset("gpt2", vocab_size=1, vocab_multiple=128)
    return Config(
        about=Language(
            data="hf:HuggingFaceFW/fineweb-edu:sample-10BT:train#text",
            tokenizer="openai-community/gpt2",
            val_fraction=0.001,
            tokens_per_step=1 << 19,
            glance_tokens=1 << 20,
            model=c,
        ),
        loop=Loop(
            steps=19_000, lr=6e-4, warmup=700, micro_rows=16, eval_every=250, save_every=1000
        ),
    )


def finetune_gpt2() -> Config:
    """Published GPT-2 weights, taught a text of one's own."""
    return Config(
        about=Language(
            data="input.txt",
            init_from="openai-community/gpt2",
            tokens_per_step=8192,
            dropout=0.1,
        ),
        loop=Loop(steps=200, lr=3e-5, warmup=20, schedule="linear", micro_rows=2, eval_every=50),
    )


def classify_text() -> Config:
    """Which class a text is of, from a folder with one sub-folder of texts for each."""
    return Config(
        about=Classify(
            data="texts",
            tokenizer="bpe:8192",
            rows_per_step=32,
            token_dropout=0.4,
            model=ClassifierConfig(
                vocab_size=1, classes=1, dim=128, n_layers=2, n_heads=4, pairs=65536
            ),
        ),
        loop=Loop(steps=1200, lr=1e-3, warmup=60, eval_every=200, save_every=200),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f for f in (stdlib_cpu, char_cpu, gpt2_124m, finetune_gpt2, classify_text)
}
