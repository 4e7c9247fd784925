"""Random commands out of the options that there are, and what must hold after each of them.

What can be drawn is read from the commands themselves: the fields of their ``Options``, the keys of
the recipes' settings. A new option is drawn because it is there. A case depends on its seed and its
number alone.

``python -m tests.options WORDS`` is the command with the bounds of ``workplaces.bounded``.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest import mock

import torch

from addnorm import catalogue, cli
from addnorm.branches import ACTIVATIONS
from addnorm.cli.arguments import Positional
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.linting.check import rules_by_name
from addnorm.models.gpt_config import MLPS, NORMS, POSITIONS
from addnorm.settings import converted, entries, json_value
from addnorm.tasks import prove as prove_module
from addnorm.tasks.recipes import RECIPES
from addnorm.training.config import Config
from addnorm.training.fit import Stopped
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.run_observers import Unwritten
from tests.whole.test_mistakes import LANGUAGE, NUMBERS, TINY, WORDS, answer, fits
from tests.workplaces import GOOD, SOMEBODYS, STATES, Holder, at, bounded, laid_out

# --- what can be asked ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One thing that a command can be told."""

    word: str  # such as --top-k or steps=; empty: its values stand alone
    name: str  # of its field or key
    kind: Any  # the type
    usual: Any = None  # the default


def options(kind: Any) -> Iterator[Option]:
    """Those of a command, from the dataclass of its options."""
    positional = Positional[int].__metadata__[0]
    usual = {f.name: f.default for f in dataclasses.fields(kind)}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        bare = get_args(hint)[0] if marks else hint
        if dataclasses.is_dataclass(bare):
            yield from options(bare)
            continue
        word = next((m.name for m in marks if getattr(m, "name", None)), name)
        word = "" if positional in marks else f"--{word.replace('_', '-')}"
        yield Option(word, name, bare, usual[name])


def settings(recipe: str) -> list[Option]:
    """The keys of a recipe."""
    config = RECIPES[recipe]()
    keys = [key for part in (config.task, config.loop) for key in entries(part)]
    more = [("sinks", tuple[str, ...], ()), ("task", str, config.task.name)]
    return [Option(f"{key}=", key, kind, value) for key, kind, value in [*keys, *more]]


ENDLESS = "watch"  # goes on until it is interrupted: tests/cli/test_watch.py has it


def forms(command: str) -> dict[str, list[Option]]:
    """The options of a command; of each of its forms, if it has several."""
    kind = import_module(f"addnorm.cli.{command}").Options
    every = {k.__name__.lower(): options(k) for k in get_args(kind)} or {"": options(kind)}
    return {name: [o for o in some if o.name != ENDLESS] for name, some in every.items()}


# --- what one may answer --------------------------------------------------------------------------

FOLDERS = ["other", "other", "new", "new", "out/run", "run", "run/", "./run/../run", "link", "."]
FOLDERS += ["missing", "missing/deep", "text.txt", "text.txt/run", "/proc/no/run", "dangling"]
FOLDERS += ["a" * 300, "r\u00fcn \u4e2d", ""]
MODELS = ["run", "run/model", "run", "other", "run/best", "plain", "plain", "missing", "text.txt"]
MODELS += ["openai-community/gpt2", "texts", "", "run/checkpoints", "a" * 300, "."]
TEXTS = ["text.txt", "text.txt", "text.txt", "lines.jsonl", "texts", "bom.txt", "marks.txt"]
TEXTS += ["latin.txt", "utf16.txt", "empty.txt", "deep.jsonl", "missing.txt", "noise.bin"]
TEXTS += ["dangling", "hf:no/such", "run"]
NETS = ["nets.py:fine", "nets.py:leaky", "nets.py:broken", "nets.py:missing", "nets.py:NUMBER"]
NETS += ["nets.py", "wrong.py:x", "missing.py:x", "os:system", "no.such:thing", ":", "nets.py:"]
CONFIGS = [*["good.toml"] * 8, "bom.toml", "bad.toml", "wrong.toml", "lists.toml", *FOLDERS]
PATTERNS = ["[a-z]+", "(yes|no)", "", "(", "a{2", "a{99999}", "(?=x)", "\\d{3}", "(" * 300]
BY_NAME: dict[str, list[str]] = {
    "out": FOLDERS,
    "resume": FOLDERS,
    "cache": ["cache", "cache", "run", *FOLDERS],
    "model": MODELS,
    "init_from": [*["plain"] * 8, *MODELS],
    "target": [*NETS, *MODELS],
    "diff": ["plain", "nets.py:fine", "nets.py:leaky", *NETS, *MODELS],
    "data": [*["text.txt"] * 8, *TEXTS],
    "file": TEXTS,
    "texts": [*TEXTS, "-"],
    "config": CONFIGS,
    "recipe": [*["stdlib_cpu", "char_cpu"] * 3, *RECIPES, "char_gpu"],
    "tokenizer": [*["bytes", "characters", "bpe:300", "plain"] * 3, *MODELS],
    "prompts": ["to be", "", "\u00e9\u4e2d\U0001f600", "\udcff", "a\0b", "-", "to " * 40],
    "stop": ["t", " ", "", "\u00e9"],
    "banned_words": ["t", " be", "", "\u00e9"],
    "regex": PATTERNS,
    "names": [*catalogue.names(), "mix_ln(0.5)", "pre_nrom", "mix_ln(2)", ""],
    "explain": ["pre_norm", *[*rules_by_name()][:3], "pre_nrom", ""],
    "ignore": [*[*rules_by_name()][:3], "decay", ""],
    "device": ["cpu", "auto", "cuda", "cuda:99", "meta", "cpu:0", ""],
    "sinks": ["tensorboard", "wandb", "", "tensorbord"],
    "task": ["language", "classify", "chat", "vision"],
    "model.scheme": [*catalogue.names()],
    "model.norm": [*NORMS],
    "model.qk_norm": [*NORMS, "none"],
    "model.position": [*POSITIONS],
    "model.mlp": [*MLPS],
    "model.activation": [*ACTIVATIONS],
    "adapt.targets": ["q", "q,v", "k,up", "head"],
}
"""Name of a field or key -> values that usually make sense, some of which do not."""
BY_TYPE: dict[Any, list[str]] = {
    int: ["0", "1", "2", "3", "4", "5", "8"],
    float: ["0", "0.1", "0.5", "0.95", "1", "1e-3", "2"],
    str: ["plain", "text.txt"],
    Path: FOLDERS,
    bool: ["true", "false"],
    types.NoneType: ["none"],
}
"""The same for whatever has no entry of its own."""


def values(option: Option) -> list[str]:
    """Those that usually make sense: of what the name stands for, or small, or near the default."""
    if option.name in BY_NAME:
        return BY_NAME[option.name]
    union = get_origin(option.kind) in (Union, types.UnionType)
    texts = []
    for kind in get_args(option.kind) if union else (option.kind,):
        if get_origin(kind) is Literal:
            texts += [str(value) for value in get_args(kind)]
        else:
            texts += BY_TYPE[get_args(kind)[0] if get_origin(kind) is tuple else kind]
    if type(option.usual) is int:
        texts += [str(option.usual), str(option.usual + 1)] * 2
    if type(option.usual) is float:
        texts += [f"{option.usual * by:g}" for by in (0.5, 0.9, 1)] * 2
    return texts


def phrase(rng: random.Random, option: Option) -> tuple[str, ...]:
    """The words that say it, with a value that mostly makes sense."""
    flag = option.word.startswith("--")
    if option.kind is bool and flag:
        return (option.word,)
    pool, dice = values(option), rng.random()
    if dice < 0.08:
        pool = [*NUMBERS, *WORDS]
    elif dice < 0.14:
        pool = [v for v in [*NUMBERS, *WORDS] if fits(option.name, option.kind, v)] or pool
    count = 1
    if get_origin(option.kind) is tuple and not option.word.endswith("="):
        count = 2 if option.name == "diff" else rng.choice((1, 1, 2, 0))
    picked = [rng.choice(pool) for _ in range(count)]
    if not flag:
        return (option.word + picked[0],) if option.word else tuple(picked)
    picked = ["None" if value == "none" else value for value in picked]
    joined = count == 1 and rng.random() < 0.2
    return (f"{option.word}={picked[0]}",) if joined else (option.word, *picked)


# --- a case ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command line, and where it is given."""

    seed: int
    number: int
    base: tuple[str, ...]  # the command, small; values that stand alone come last
    phrases: tuple[tuple[str, ...], ...]  # what it is told besides
    folders: tuple[tuple[str, str], ...]  # name, state
    stdin: str = "text"
    stdout: str = "utf-8"
    stderr: str = "utf-8"
    signals: tuple[int, ...] = ()  # that come in the first step of a training
    own_process: bool = False

    @property
    def command(self) -> str:
        return self.base[0]

    @property
    def words(self) -> list[str]:
        return [*self.base, *(word for phrase in self.phrases for word in phrase)]

    @property
    def live(self) -> list[str]:
        """The folders that another process writes to."""
        return [name for name, state in self.folders if state.startswith("live")]

    def __str__(self) -> str:
        plain = {"stdin": "text", "stdout": "utf-8", "stderr": "utf-8"}
        lines = [f"addnorm {shlex.join(self.words)}"]
        lines += [f"{n}: {getattr(self, n)}" for n in plain if getattr(self, n) != plain[n]]
        lines += [f"{signal.Signals(n).name} in its first step" for n in self.signals]
        return "; ".join([*lines, *(["in a process of its own"] if self.own_process else [])])


def case(seed: int, number: int) -> Case:
    """The one of that number."""
    rng = random.Random(f"{seed} {number}")
    command = rng.choices([*BASES], [weight for weight, _ in BASES.values()])[0]
    form, form_options = rng.choice([*forms(command).items()])
    if form == "onnx" and rng.random() < 0.5:  # which takes seconds
        form, form_options = "hf", forms(command)["hf"]
    words, keys_of_it = BASES[command][1](rng)
    base = (command, *([form] if form else []), *words)
    form_options = [
        o for o in form_options if o.word or (get_origin(o.kind) is tuple and o.name != "settings")
    ]
    phrases = [
        phrase(rng, rng.choice(keys_of_it if keys_of_it and rng.random() < 0.7 else form_options))
        for _ in range(rng.choices((1, 2, 3), (1, 4, 3))[0])
    ]
    phrases.sort(key=lambda words: "".join(words[:1]).startswith("--"))  # what stands alone first
    likely = next(states for word, states in LIKELY.items() if word in [*base, ""])
    first, second = (rng.choice(likely if rng.random() < 0.8 else [*STATES]) for _ in range(2))
    second = "finished" if second.startswith("live") else second  # one at a time
    streams = ["utf-8"] * 14 + ["cp1252", "ascii", "closed", "full", "none"]
    drawing = Case(
        *(seed, number, base, tuple(phrases), (("run", first), ("other", second))),
        stdin=rng.choice(("text", "text", "empty", "latin", "none")),
        stdout=rng.choice(streams),
        stderr=rng.choice(streams) if rng.random() < 0.3 else "utf-8",
    )
    if rng.random() < 0.06 and not any("\0" in word for word in drawing.words):
        return replace(drawing, own_process=True)
    if command == "train" and rng.random() < 0.08:
        return replace(drawing, signals=rng.choice([(2,), (15,), (2, 2), (15, 2)]))
    return drawing


Base = tuple[list[str], list[Option]]
"""The words of a command before others are added, and the settings that may be."""


OTHERS = (
    *("classify_gpt2", "pretrain_bert", "finetune_bert", "answer", "recurrent_cpu"),
    *("classify_images", "classify_images", "decide", "transcribe", "classify_sounds"),
)
"""Recipes that are drawn with few settings of their own; some of what comes of it is refused."""


def _train(rng: random.Random) -> Base:
    every = settings("stdlib_cpu")
    dice = rng.random()
    if dice < 0.45:
        free = [
            o for o in every if hasattr(LoopSettings, o.name)
        ]  # what a resume may change, mostly
        return ["--resume", "run"], [*free * 3, *every]
    start = ["--overwrite"] if rng.random() < 0.4 else []
    words = {**TINY, **LANGUAGE, "steps": "4", "eval_every": "0", "cache": "cache"}
    pool, data = [o for o in every if not o.name.startswith("adapt.")], "text.txt"
    if dice < 0.6:
        kind = rng.choice(("lora", "adalora", "prefix", "prompt", "adapter", "none"))
        words = {k: v for k, v in words.items() if not k.startswith(("model.", "tokenizer"))}
        words |= {"init_from": "plain", "adapt.kind": kind}
        pool = [o for o in every if not o.name.startswith("model.")]
    elif dice < 0.68:
        words, data = {**TINY, "cache": "cache", "tokenizer": "bytes"}, "texts"
        start, pool = [*start, "--recipe", "classify_text"], settings("classify_text")
    elif dice < 0.76:
        sizes = {**TINY, "model.encoder_layers": "1", "model.decoder_layers": "1"}
        words, data = {**sizes, "cache": "cache", "tokenizer": "bytes"}, "pairs.tsv"
        del words["model.n_layers"]
        start, pool = [*start, "--recipe", "translate"], settings("translate")
    elif dice < 0.82:
        words, data = {**TINY, "cache": "cache", "tokenizer": "bytes"}, "talk.jsonl"
        start, pool = [*start, "--recipe", "chat"], settings("chat")
    elif dice < 0.94:
        recipe = rng.choice(OTHERS)
        data = "text.txt" if recipe in ("pretrain_bert", "recurrent_cpu") else "texts"
        words = {"steps": "4", "eval_every": "0", "threads": "1", "cache": "cache"}
        if recipe == "decide":
            data = "doors.jsonl"
            del words["cache"]
        if recipe in ("transcribe", "classify_sounds"):
            del words["cache"]
            words |= {"model.dim": "16", "model.encoder_layers": "1"}
        elif recipe == "classify_gpt2":
            words["init_from"] = "plain"
        else:
            words |= {"model.dim": "16", "model.n_layers": "1"}
        start, pool = [*start, "--recipe", recipe], settings(recipe)
    assignments = [f"{key}={value}" for key, value in words.items()]
    return [*start, "--data", data, "--out", "run", *assignments], pool


def _generate(rng: random.Random) -> Base:
    return ["--max-new-tokens", "8", "--seed", "1", rng.choice(MODELS[:7]), "to"], []


def _export(rng: random.Random) -> Base:
    out = rng.choice([*["x", "x.gguf", "run", "run/x.gguf", "run/x.onnx"] * 3, *FOLDERS])
    return ["--out", out, rng.choice(MODELS[3:7])], []


def _schemes(rng: random.Random) -> Base:
    shape = {"depths": (1, 2), "width": (8,), "heads": (2,), "tokens": (4,), "batch": (1,)}
    words = [str(word) for name, numbers in shape.items() for word in (f"--{name}", *numbers)]
    name = rng.choice(["pre_norm", "post_norm", "deepnorm"])
    return [*words, "--seeds", "1", "--out", "run", name], []


BASES: dict[str, tuple[float, Callable[[random.Random], Base]]] = {
    "train": (50, _train),
    "generate": (20, _generate),
    "eval": (10, lambda rng: ([rng.choice(MODELS[:7]), rng.choice(BY_NAME["texts"])], [])),
    "export": (7, _export),
    "lint": (8, lambda rng: ([rng.choice(BY_NAME["target"])], [])),
    "schemes": (5, _schemes),
}
"""Command -> how often it is drawn, and what it begins with."""
RESUMED = ["finished", "unfinished", "unfinished", "live", "damaged", "damaged", "with notes"]
REPLACED = ["finished", "unfinished", "live", "damaged", "with notes", "somebody's"]
LIKELY = {
    "--resume": RESUMED,
    "--overwrite": REPLACED,
    "--data": ["missing", "missing", "empty", "somebody's", "somebody's", "live, begun"],
    "export": ["somebody's", "with notes", "live", "missing", "finished"],
    "": ["finished", "finished", "unfinished", "adapted", "damaged", "damaged", "live"],
}
"""A word of the base -> what its folder then mostly is."""

# --- the call -------------------------------------------------------------------------------------

PATIENCE = 8.0  # seconds of computing, after which the user of a case has had enough: Ctrl-C
STDIN = {"text": b"to be, or", "empty": b"", "latin": b"caf\xe9", "none": b""}


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    status: int
    out: str
    err: str
    cause: BaseException | None = None  # what ended it, where that can be known


def answer_to(case: Case, place: Path) -> Answer:
    """Give the command, there."""
    (place / "tmp").mkdir(exist_ok=True)
    return _by_process(case, place) if case.own_process else _by_call(case, place)


def _by_call(case: Case, place: Path) -> Answer:
    module: Any = import_module(f"addnorm.cli.{case.command}")
    causes: list[BaseException] = []
    run, step = module.run, Trainer.step

    def noting(options: Any) -> int:
        try:
            status: int = run(options)
        except BaseException as error:
            # A Refusal may be made of another error, and must not be made of a bug of ours.
            why = error.__context__ if isinstance(error, Refusal) else None
            if why is not None and _of_the_user(why):
                why = None
            causes.append(why or error)
            raise
        return status

    def signalled(self: Trainer, *args: Any) -> Any:
        for number in () if self.done else case.signals:
            signal.raise_signal(number)
        return step(self, *args)

    stdin = io.TextIOWrapper(io.BytesIO(STDIN[case.stdin]), encoding="utf-8")
    with (
        at(place),
        bounded(),
        mock.patch.dict(os.environ, {"HOME": str(place)}),
        mock.patch.object(module, "run", noting),
        mock.patch.object(Trainer, "step", signalled),
        mock.patch.object(prove_module, "prove", return_value=prove_module.Proof([], None)),
        mock.patch.object(tempfile, "tempdir", str(place / "tmp")),
        mock.patch.object(sys, "stdin", None if case.stdin == "none" else stdin),
        _stream("stdout", case.stdout, "strict") as out,
        _stream("stderr", case.stderr, "backslashreplace") as err,
        _usual_warnings(),
        _patience(PATIENCE if case.command != "train" else 10 * PATIENCE),  # a training is bounded
    ):
        try:
            status = answer(case.words)
        except BaseException as error:  # of which main knows nothing
            status = 1
            causes.append(error)
    return Answer(status, out(), err(), causes[0] if causes else None)


def _of_the_user(error: BaseException) -> bool:
    """Whether it was raised in a program of the user's, here in the current folder."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path.cwd())


@contextlib.contextmanager
def _stream(name: str, kind: str, errors: str) -> Iterator[Callable[[], str]]:
    """Within it sys has such a stream; afterwards what was written to it can be asked."""
    buffer = io.BytesIO()
    raw: Any = buffer
    if kind == "full":
        raw = io.FileIO("/dev/full", "w")
    elif kind == "closed":
        reader, writer = os.pipe()
        os.close(reader)
        raw = io.FileIO(writer, "w")
    encoding = kind if kind in ("cp1252", "ascii") else "utf-8"
    file = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, newline="\n")
    texts: list[str] = []
    with mock.patch.object(sys, name, None if kind == "none" else file):
        yield lambda: texts[0]
        if kind == "none" and (stand_in := getattr(sys, name)) is not None:
            stand_in.close()  # which a command of its own process keeps to its end
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
        file.flush()
    texts.append("" if buffer.closed else buffer.getvalue().decode(encoding, "replace"))
    raw.close()


@contextlib.contextmanager
def _usual_warnings() -> Iterator[None]:
    """Of warnings, what is shown to a user: pytest makes errors of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Ctrl-C after so many seconds of this process, however busy the machine is."""
    end, until = threading.Event(), time.process_time() + seconds

    def watch() -> None:
        while not end.wait(0.2):
            if time.process_time() > until:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def _by_process(case: Case, place: Path) -> Answer:
    environment = {
        **os.environ,
        "HOME": str(place),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONIOENCODING": case.stdout if case.stdout in ("cp1252", "ascii") else "utf-8",
    }
    names = ("stdin", "stdout", "stderr")
    closed = [number for number, name in enumerate(names) if getattr(case, name) == "none"]
    streams: dict[str, int] = dict.fromkeys(names[1:], subprocess.PIPE)
    for name in names[1:]:
        if getattr(case, name) == "full":
            streams[name] = os.open("/dev/full", os.O_WRONLY)
        elif getattr(case, name) == "closed":
            reader, streams[name] = os.pipe()
            os.close(reader)

    def close() -> None:
        for number in closed:
            os.close(number)

    words = [sys.executable, "-m", "tests.options", *case.words]
    try:
        process = subprocess.run(
            words,
            cwd=place,
            env=environment,
            input=STDIN[case.stdin],
            preexec_fn=close if closed else None,
            timeout=200,
            check=False,
            **streams,
        )
    finally:
        for number in set(streams.values()) - {subprocess.PIPE}:
            os.close(number)
    out, err = ((text or b"").decode(errors="replace") for text in (process.stdout, process.stderr))
    return Answer(process.returncode, out, err)


# --- what must hold -------------------------------------------------------------------------------

STATUSES: dict[type[BaseException], tuple[int, ...]] = {
    Mendable: (2,),
    UnicodeError: (2,),
    OSError: (1, 2),
    Unwritten: (1,),
    Diverged: (1,),
    torch.OutOfMemoryError: (1,),
    FloatingPointError: (1,),
    Stopped: (128 + 2, 128 + 15),
    KeyboardInterrupt: (128 + 2,),
    Refusal: (1, 2),
    SystemExit: (1, 2),  # of the libraries: rich at a closed pipe, tyro at words that do not fit
}
"""What may end a command, and the exit status then."""
WRITES = {"train": ("--out", "--resume", "cache"), "export": ("--out",), "schemes": ("--out",)}
"""Command -> the words that say where it writes."""


HARMLESS = r"^\.?cache/|checkpoints/\.lock$|^tmp/\.ses$"
"""What a refusal may leave: the lock makes no run of a folder; onnxruntime leaves the last."""


def complaints(case: Case, place: Path, holder: Holder) -> list[str]:
    """Give the command there; what is not as it must be."""
    process = _process()
    with holder.holding(place / case.live[0] if case.live else None):
        before = _tree(place)
        answer = answer_to(case, place)
        after = _tree(place)
    changes = {
        name: "gone" if name not in after else "new" if name not in before else "changed"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    texts = [f"status {answer.status}: {text}" for text in _of_words(case, answer)]
    texts += _of_files(case, place, answer, before, changes)
    now = _process()
    texts += [f"it leaves another {name}" for name in process if now[name] != process[name]]
    if case.command == "train":
        texts += _of_settings(case, place, changes, answer)
        texts += [] if texts else _of_resuming(case, place, answer)
    return texts


def _process() -> dict[str, Any]:
    """What a command must leave as it is in the process that calls it."""
    return {
        "current folder": os.getcwd(),
        "environment": dict(os.environ),
        "handler of a signal": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "thread": [t.name for t in threading.enumerate() if not t.daemon],
        "default dtype": torch.get_default_dtype(),
        "mode of gradients": torch.is_grad_enabled(),
    }


def _tree(place: Path) -> dict[str, str]:
    """Every file and link, what is in it, and whose it is."""
    tree = {}
    for folder, folders, names in os.walk(place):
        for path in (Path(folder, name) for name in [*names, *folders]):
            name = str(path.relative_to(place))
            if path.is_symlink():
                tree[name] = f"link to {os.readlink(path)}"
            elif not path.is_dir():
                content = path.read_bytes()
                theirs = content == SOMEBODYS.encode()
                tree[name] = SOMEBODYS if theirs else hashlib.sha1(content).hexdigest()
    return tree


def _of_words(case: Case, answer: Answer) -> Iterator[str]:
    """The status is a known one, and so is the reason; there is one message, and no traceback."""
    status, err = answer.status, answer.err
    ending = f"; stderr: {err.strip()[-1500:] or 'nothing'}"
    if "Traceback" in err + answer.out or "Exception ignored" in err:
        yield f"a traceback{ending}"
    if status not in (0, 1, 2, 128 + 2, 128 + 15):
        yield f"not one that anyone knows{ending}"
    if answer.cause is not None:
        statuses = next((s for kind, s in STATUSES.items() if isinstance(answer.cause, kind)), ())
        if status not in statuses:
            yield f"the reason is {answer.cause!r}{ending}"
    unheard = case.stderr in ("full", "closed", "none") or case.stdout == "closed"
    verdict = case.command == "lint" or "--overfit" in case.words  # a no of theirs is no error
    if status == 0 or unheard or (verdict and status == 1):
        return
    messages = sum(line.startswith("addnorm: ") for line in err.splitlines())
    if messages + ("For full helptext" in err) != 1:  # that of the library that reads the words
        yield f"{messages} messages{ending}"


def _of_files(
    case: Case, place: Path, answer: Answer, before: dict[str, str], changes: dict[str, str]
) -> Iterator[str]:
    """Nothing of somebody else's, nothing of a run that is alive, nothing where it was not told to
    write; and a refusal changes nothing."""
    roots = _roots(case, place)
    for name, what in changes.items():
        folder = name.partition("/")[0]
        text = f"{name} is {what}, status {answer.status}, stderr: {answer.err.strip()[-300:]}"
        beside = case.command != "train" and what == "new"  # the files of a run, as it was asked
        over = [root for root in roots if (place / name).resolve().is_relative_to(root)]
        if before.get(name) == SOMEBODYS:
            yield f"somebody else's {text}"
        elif folder in case.live and not beside:
            yield f"of a run that is alive {text}"
        elif not over or (over == [place.resolve()] and what != "new"):
            yield f"where nothing was to be written {text}"
        elif answer.status == 2 and not re.search(HARMLESS, name):
            yield f"after a refusal {text}"


def _roots(case: Case, place: Path) -> list[Path]:
    """Where the command may write."""
    marks = WRITES.get(case.command, ())
    names = ["out", "cache"] if marks else []
    for word, after in zip(case.words, [*case.words[1:], ""], strict=True):
        mark, sign, value = word.partition("=")
        if mark in marks:
            names.append(value if sign else after)
    # Besides, what others write: onnxruntime, for one, into the home folder and the temporary one.
    roots = [place / ".cache", place / "tmp" / ".ses"]
    for name in [*names, *(f"{name}.data" for name in names)]:
        with contextlib.suppress(OSError, ValueError):  # no path at all
            roots.append((place / name).resolve())
    return roots


def _of_settings(case: Case, place: Path, changes: dict[str, str], answer: Answer) -> Iterator[str]:
    """What was set is what a run that succeeded says of itself."""
    kinds = {o.name: o.kind for recipe in RECIPES for o in settings(recipe)}
    words = dict(word.split("=", 1) for word in case.words if "=" in word and word[0] != "-")
    for file in [name for name in changes if name.endswith("run.json") and answer.status == 0]:
        config = json.loads((place / file).read_text())["config"]
        by_itself = Config.from_json(config).defaults()
        for key, text in words.items():
            if key not in config and config.get("init_from"):
                continue  # what comes with the model is the same there, and is not recorded here
            want = converted(key, kinds[key], text)
            if key not in config and json_value(want) == by_itself.get(key):
                continue  # without effect beside the others, and asked for as it is by itself
            if config[key] not in (want, str(want), [*want] if isinstance(want, tuple) else want):
                yield f"{file} says {key}={config[key]}, and {text} was asked for"


def _of_resuming(case: Case, place: Path, answer: Answer) -> Iterator[str]:
    """A run that was good can be gone on with, whatever was asked for."""
    for name, state in case.folders:
        if state in GOOD:
            again = Case(case.seed, case.number, ("train", "--resume", name), (), case.folders)
            then = answer_to(again, place)
            broke = answer.status == then.status == 1  # by the settings that broke it before
            if then.status != 0 and not broke:
                yield f"then {again} ends with {then.status}: {then.err.strip()[-1500:]}"


# --- what is told of it ---------------------------------------------------------------------------


def attempt(case: Case, source: Path, holder: Holder, scratch: Path) -> tuple[list[str], list[str]]:
    """(what was done to the folders, what is wrong)."""
    place = scratch / "place"
    rng = random.Random(f"folders {case.seed} {case.number}")
    threads = torch.get_num_threads()
    try:
        return laid_out(case.folders, rng, source, place), complaints(case, place, holder)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(place)


def report(case: Case, source: Path, holder: Holder, scratch: Path) -> str:
    """Empty if all is as it must be; otherwise what is needed to see it again, and the smallest
    case that is wrong as well."""
    events, wrong = attempt(case, source, holder, scratch)
    if not wrong:
        return ""
    lines = [f"case {case.seed}-{case.number}: {case}", f"folders: {'; '.join(events)}", *wrong]
    small = smallest(case, lambda other: bool(attempt(other, source, holder, scratch)[1]))
    left = attempt(small, source, holder, scratch)[1]
    return "\n".join([*lines, f"\nsmallest: {small}", *left])


def smallest(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The same with as little as possible of what makes it odd."""
    usual = {f.name: f.default for f in dataclasses.fields(Case)}
    for i in reversed(range(len(case.phrases))):
        less = replace(case, phrases=case.phrases[:i] + case.phrases[i + 1 :])
        case = less if fails(less) else case
    for name in ("own_process", "signals", "stdin", "stdout", "stderr"):
        less = replace(case, **{name: usual[name]})
        case = less if less != case and fails(less) else case
    return case


if __name__ == "__main__":
    with bounded():
        sys.exit(cli.main())
