"""Train a model on your own text, and continue where a run stopped.

    addnorm train --data my.txt                     a small GPT on a text
    addnorm train --recipe char_cpu --data my.txt lr=2e-3 model.n_layers=6
    addnorm train --resume out/run                  continue a run
    addnorm train --list                            runs and their best values

Every setting is key=value; --print-config lists and explains them all.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from addnorm.cli import output
from addnorm.cli.arguments import Positional, arg, option_values, optional
from addnorm.cli.output import legible
from addnorm.cli.refusal import Refusal
from addnorm.errors import unknown_name
from addnorm.progress import ProgressBar
from addnorm.words import figure

if TYPE_CHECKING:
    from addnorm.training.config import Config

OUT = Path("out/run")
PATIENCE, INTERVAL = 3.0, 15.0  # seconds: until there is a bar, between lines where there is none


@final
@dataclass(frozen=True)
class Options:
    """What ``addnorm train`` is asked."""

    settings: Positional[
        Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]", help_behavior_hint="")]
    ] = ()
    """Settings, such as steps=500 lr=1e-3 model.scheme=deepnorm; they override all others."""
    data: Annotated[str | None, optional("DATA")] = None
    """What to learn from: a text file, a folder, a .jsonl file, hf:NAME, or stdlib; with another
    recipe what that one reads, such as a .csv of texts and labels (docs/uses.md)."""
    adapt: Annotated[
        Literal["lora", "adalora", "prefix", "prompt", "adapter"] | None,
        optional("{lora,adalora,prefix,prompt,adapter}"),
    ] = None
    """Train only an adapter, beside the frozen weights of init_from."""
    recipe: Annotated[str | None, optional("RECIPE")] = None
    """Settings to start from: stdlib_cpu, char_cpu, recurrent_cpu, gpt2_124m, finetune_gpt2,
    classify_text, classify_gpt2, pretrain_bert, finetune_bert, answer, translate, chat,
    classify_images, transcribe, classify_sounds, decide."""
    config: Annotated[Path | None, optional("FILE")] = None
    """A TOML file of settings, which override the recipe's."""
    out: Annotated[Path | None, optional("FOLDER")] = None
    """The run's folder; by default out/run."""
    resume: Annotated[Path | None, optional("FOLDER")] = None
    """Continue the run in this folder; docs/training.md lists the settings that may change."""
    overwrite: bool = False
    """Replace the run that is in --out; only files that addnorm wrote are deleted."""
    prove_resume: bool = False
    """Only prove, in about a minute, that a killed run with these settings resumes bit for bit."""
    overfit: Annotated[int | None, optional("N")] = None
    """Only try, in about a minute, whether the model learns N rows of the data by heart, and say
    what is in the way if it does not; try 8."""
    print_config: bool = False
    """Only print all settings, in the form of a file for --config."""
    listing: Annotated[bool, arg(name="list")] = False
    """Only list the run in --out and the runs beside it."""


def arrange(args: Sequence[str]) -> list[str]:
    """The words with those that are KEY=VALUE behind all others, both in their order: a user may
    put them anywhere, and the reader of the command line needs them together."""
    flags = {word for word, value in option_values(Options).items() if value is None}
    words: list[str] = []
    rest: list[str] = []
    for i, word in enumerate(args):
        before = args[i - 1] if i else ""
        valued = before.startswith("--") and before not in flags and "=" not in before
        (rest if word.startswith("-") or valued else words).append(word)
    return rest + words


def run(options: Options) -> int:
    """List, prove, try or train, as the options say; returns the exit status. What ends a training
    becomes a ``Refusal`` with its own."""
    out = options.out or OUT
    if options.listing:
        return _list(out.parent)
    import torch

    from addnorm.errors import Mendable
    from addnorm.training.fit import Stopped
    from addnorm.training.loop import Diverged
    from addnorm.training.parallel import here
    from addnorm.training.parallel import stop as leave
    from addnorm.training.run import train
    from addnorm.training.run_observers import Unwritten

    folder = options.resume or out
    try:
        config = _config(options)
        if options.recipe is None and options.data is not None and options.config is None:
            _remark_on(options.data)
        if options.print_config:
            print(config.to_toml(), end="")
            return 0
        if options.prove_resume:
            from addnorm.tasks.prove import prove

            proof = prove(config)
            print(proof)
            return 0 if proof.difference is None else 1
        if options.overfit is not None:
            return _overfit(config, options.overfit)
        result = train(
            config, out=folder, resume=options.resume is not None, overwrite=options.overwrite
        )
    except Mendable as error:
        raise Refusal(str(error)) from None
    except Unwritten as error:
        raise Refusal(str(error), status=1) from None
    except Diverged as error:
        raise Refusal(f"{error}\nThe checkpoints in {folder} are from before", status=1) from None
    except Stopped as stop:
        message = f"{stop} at step {stop.step}: saved. To continue: addnorm train --resume {folder}"
        raise Refusal(message, status=128 + stop.number) from None  # as shells have it
    except torch.OutOfMemoryError as error:
        raise Refusal(
            f"{error}\nTry a smaller micro_rows=N, the rows at a time", status=1
        ) from None
    finally:
        first = here(torch.device("cpu")).first
        leave()
    if first:
        _conclude(result.folder)
    return 0


def _remark_on(data: str) -> None:
    """Say what is learned from a table, or from lines of JSON for another recipe, where none was
    asked for."""
    from addnorm.data.labelled import TABLES, column_names
    from addnorm.tasks.recipes import recipe_for

    file = Path(data).expanduser()
    columns = column_names(file)
    recipe, table = recipe_for(columns), file.suffix.lower() in TABLES
    if not columns or not (table or recipe):
        return
    what = "every character of it, the commas too" if table else "its text alone"
    what = f"without --recipe a language model is trained, on {what}"
    about = f"{data} has the {'columns' if table else 'keys'} {', '.join(columns)}"
    if recipe:
        output.say(f"{about}: {what}. For these: addnorm train --recipe {recipe} --data {data}")
    else:
        output.say(
            f"{about}: {what}. Labels of texts need the columns text and label (--recipe "
            "classify_text), translations source and target (--recipe translate)"
        )


def _overfit(config: "Config", rows: int) -> int:
    """Try to learn so many rows by heart and print the outcome; the exit status, 1 if it failed."""
    from addnorm.tasks.overfit import overfit

    with ProgressBar("overfitting", patience=PATIENCE, interval=INTERVAL) as bar:
        outcome = overfit(config, rows, progress=bar.update)
    print(outcome)
    return 1 if outcome.reason else 0


def _config(options: Options) -> "Config":
    """The settings of the run to begin or resume, from all that was given: words of the command
    line override the file, and this the recipe. A Refusal of options that contradict each other."""
    from addnorm import settings
    from addnorm.tasks.recipes import RECIPES
    from addnorm.training.config import Config

    if options.resume is not None:
        for name in ("recipe", "config", "data", "adapt"):
            if getattr(options, name) is not None:
                raise Refusal(f"--resume uses the run's own settings: leave out --{name}")
        if options.out not in (None, options.resume):
            raise Refusal(
                f"--resume continues in the run's own folder: leave out --out {options.out}"
            )
        if options.overwrite:
            raise Refusal(
                f"--resume continues {options.resume}, --overwrite would replace it: leave out "
                "one of them"
            )
        return _run_config(options.resume).changed(settings.from_assignments(options.settings))
    name = options.recipe or "stdlib_cpu"
    if name not in RECIPES:
        raise Refusal(unknown_name("recipe", name, RECIPES))
    config = RECIPES[name]()
    from_file = {} if options.config is None else settings.from_toml(options.config)
    if options.recipe is None and "task" in from_file:
        config = Config.from_json({"task": from_file["task"]})
    words = settings.from_assignments(options.settings)
    for key, value in (("data", options.data), ("adapt.kind", options.adapt)):
        if value is not None and words.setdefault(key, value) != value:
            raise Refusal(
                f"--{key.partition('.')[0]} {value} and {key}={words[key]} contradict each other: "
                "leave out one of them"
            )
    if options.adapt is not None:  # a file may have the clock of the run that wrote it
        words.setdefault("adapt.steps", "none")
    return config.changed(from_file, words)


def _run_config(folder: Path) -> "Config":
    """The settings of the run in a folder; a Refusal of one that no command began."""
    from addnorm.training.config import Config
    from addnorm.training.run_folder import read

    config = read(folder)["config"]
    if "task" not in config:
        raise Refusal(
            f"{folder} is a run of a task written in Python: continue it there, with "
            "addnorm.train(task, loop=loop, out=..., resume=True)"
        )
    return Config.from_json(config)


def _conclude(folder: Path) -> None:
    """Print what the run in a folder reached, its last sample, where its files are, and what can be
    done with the model."""
    from addnorm.records import objects
    from addnorm.training.run_folder import SAMPLES, read

    state = read(folder)
    metrics = "  ".join(f"{name} {figure(value)}" for name, value in state["metrics"].items())
    print(f"finished {state['step']} steps in {state['elapsed_s']:.0f} s: {metrics}")
    if "compressed" in state:
        others = ", ".join(f"{name} {bits:.3f}" for name, bits in state["compressed"].items())
        print(
            f"bits per byte on held-out text: {state['metrics']['bits_per_byte']:.3f}; "
            f"on the same bytes {others}"
        )
    samples = [state["samples"] for state in objects(folder / SAMPLES) if state.get("samples")]
    if samples:
        print(f"\n{legible(samples[-1][0].strip())}\n")
    print(f"model: {folder / 'model'}\nreport: {folder / 'report.html'}")
    for what, how in state.get("commands", {}).items():
        print(f"{what}: {how.replace('{model}', shlex.quote(str(folder)))}")


def _list(folder: Path) -> int:
    """Print a line for every run directly in a folder; a Refusal if there is none. Runs whose state
    cannot be read are told on stderr."""
    from addnorm.settings import SettingsError
    from addnorm.training.run_folder import STATE, read

    rows: list[dict[str, Any]] = []
    complaints: list[str] = []
    for file in sorted(folder.glob(f"*/{STATE}")):
        try:
            rows.append({"name": str(file.parent), **read(file.parent)})
        except SettingsError as error:
            complaints.append(str(error))
    if not rows:
        raise Refusal("\n".join([f"no runs in {folder}", *complaints]))
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        best = "-" if row["best"] is None else f"{row['metric']} {figure(row['best'])}"
        state = "finished" if row["finished"] else "unfinished"
        print(f"{row['name']:{width}}  {state:10}  step {row['step']:>7}  best {best}")
    for text in complaints:
        print(f"left out: {text}", file=sys.stderr)
    return 0
