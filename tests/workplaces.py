"""Places in which a command may be given: runs in every state, folders of others, odd files.

``material`` makes once what all of them are copied from, ``laid_out`` copies it and brings each
folder into a state of ``STATES``.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub

from addnorm import cli
from addnorm.training import loop as loop_module
from addnorm.training import run as run_module
from tests.whole.test_mistakes import LANGUAGE, TALKS, TEXT, TINY

UNTIL = 6  # steps after which a training ends, whatever was asked for
SOMEBODYS = "somebody else's\n"
"""In every file that addnorm did not write."""


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """In that folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Few steps, no network, no compiler: without what takes long, and all else as it is."""

    def offline(*args: Any, **options: Any) -> Any:
        raise OSError("there is no network")

    until = partial(run_module.train, until=UNTIL)
    with (
        mock.patch.object(huggingface_hub, "snapshot_download", offline),
        mock.patch.object(run_module, "train", until),
        mock.patch.object(loop_module, "compiler_failure", return_value="not in this test"),
        mock.patch.dict(os.environ, {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}),
    ):
        yield


# --- material -------------------------------------------------------------------------------------

RUN = {
    "steps": "4",
    "save_every": "2",
    "eval_every": "2",
    "watch_every": "0",
    "model.norm": "layer",
    "model.position": "learned",
    "model.bias": "true",
    "model.activation": "gelu_tanh",
    "cache": "cache",
}
"""A GPT-2, so that every format can hold it."""
NETS = """
import torch
from torch import nn

NUMBER = 7


def fine():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), torch.randn(2, 3, 8)


def leaky():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(layer, nn.Linear(16, 16)), torch.randn(2, 5, 16)


def broken():
    raise KeyError("weights")
"""
FILES: dict[str, bytes] = {
    "text.txt": TEXT.encode(),
    "bom.txt": b"\xef\xbb\xbf" + TEXT.encode(),
    "latin.txt": "caf\u00e9 ".encode("latin-1") * 200,
    "utf16.txt": TEXT.encode("utf-16"),
    "empty.txt": b"",
    "marks.txt": "\u0085 def \u2028 x. \u2029\r\n".encode() * 200,
    "noise.bin": random.Random(0).randbytes(3000),
    "lines.jsonl": json.dumps({"text": TEXT[:200]}).encode() + b"\n" + b'{"text": "more"}\n' * 20,
    "talk.jsonl": "".join(f"{json.dumps(talk, ensure_ascii=False)}\n" for talk in TALKS).encode(),
    "deep.jsonl": b'{"text": ' + b"[" * 20_000,
    "pairs.tsv": "".join(f"{i} and {i}\t{i}\n" for i in range(40)).encode(),
    "doors.jsonl": b'{"states": [0, 1], "actions": [1, 0], "rewards": [1, 0.5]}\n'
    b'{"states": [0], "actions": [2], "rewards": [2]}\n' * 20,
    "good.toml": b"steps = 3\n[model]\ndim = 8\n",
    "bom.toml": b"\xef\xbb\xbfsteps = 3\n",
    "bad.toml": b"steps = = 3\n",
    "wrong.toml": b"stepps = 3\n",
    "lists.toml": b"steps = [3]\nmodel = 5\ndata = {a = {b = 1}}\n",
    "nets.py": NETS.encode(),
    "wrong.py": b"def x(:\n",
}


def material(folder: Path) -> None:
    """All that is copied: texts, files of settings, a file of models, a model, and runs."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    for name in ("one", "two"):
        (folder / "texts" / name).mkdir(parents=True)
        for i in range(12):
            (folder / "texts" / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    gpt2 = {**TINY, **LANGUAGE, **RUN, "data": "text.txt"}
    adapter = {k: v for k, v in gpt2.items() if not k.startswith(("model.", "tokenizer"))}
    classes = {**TINY, "data": "texts", "tokenizer": "bytes", "cache": "cache"}
    with at(folder), bounded():
        train("finished", gpt2)
        train("unfinished", {**gpt2, "steps": "30"})  # more than UNTIL
        train("classes", classes, "--recipe", "classify_text")
        shutil.copytree("runs/finished/model", "plain")
        train("adapted", {**adapter, "init_from": "plain"}, "--adapt", "lora")
    begun_run = shutil.copytree(folder / "runs" / "unfinished", folder / "runs" / "begun")
    for path in [
        *begun_run.glob("checkpoints/step-*"),
        begun_run / "model",
        begun_run / "best",
    ]:
        shutil.rmtree(path)


def train(name: str, settings: dict[str, str], *words: str) -> None:
    """One of the runs."""
    words = ("train", "--out", f"runs/{name}", *words, *(f"{k}={v}" for k, v in settings.items()))
    assert cli.main(words) == 0


def laid_out(
    folders: Sequence[tuple[str, str]], rng: random.Random, source: Path, place: Path
) -> list[str]:
    """A place with these folders in these states; returns what was done to them."""
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("runs"))
    (place / "dangling").symlink_to("nowhere/at/all")
    (place / "link").symlink_to("run")
    runs = source / "runs"
    return [f"{name}: {state}{STATES[state](rng, runs, place / name)}" for name, state in folders]


# --- states of a folder ---------------------------------------------------------------------------

THEIRS = ["mine.py", "checkpoints/mine.pt", "checkpoints/step-7/x", "model/my_code.py", "wandb/x"]
THEIRS += ["model/config.json", "best/x.bin", "tensorboard/x", "run.json", "config.toml"]
THEIRS += ["metrics.jsonl", "samples.jsonl", "report.html", "checkpoints/.lock", "model/README.md"]
THEIRS += ["config.json", "model.safetensors", "tokenizer.json", "addnorm_checksums.json"]
THEIRS += ["checkpoints", "model", "best", "x.gguf", "x.onnx"]
"""Names that files of somebody else may have."""


def _missing(rng: random.Random, runs: Path, place: Path) -> str:
    return ""


def _empty(rng: random.Random, runs: Path, place: Path) -> str:
    place.mkdir()
    return ""


def _copy(name: str, rng: random.Random, runs: Path, place: Path) -> str:
    shutil.copytree(runs / name, place)
    return ""


def _with_notes(rng: random.Random, runs: Path, place: Path) -> str:
    """A run in which its owner keeps things."""
    shutil.copytree(runs / "unfinished", place)
    return _strange(rng, runs, place)


def _strange(rng: random.Random, runs: Path, place: Path) -> str:
    """A project with names like ours."""
    names = []
    for name in rng.sample(THEIRS, rng.randint(1, 4)):
        file = place / name
        with contextlib.suppress(OSError):  # a file where the folder should be
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x") as new:
                new.write(SOMEBODYS)
            names.append(name)
    return f" with {', '.join(names)}"


def _damaged(rng: random.Random, runs: Path, place: Path) -> str:
    """A run to some of whose files something happened."""
    shutil.copytree(runs / rng.choice(("finished", "finished", "unfinished", "adapted")), place)
    events = []
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(sorted(place.rglob("*")))
        events.append(f" {path.relative_to(place)} {damage(rng, path)}")
        if rng.random() < 0.5:  # so that nothing but the reader itself can notice
            for sums in place.rglob("addnorm_checksums.json"):
                sums.unlink()
    return ",".join(events)


def damage(rng: random.Random, path: Path) -> str:
    """Something that happens to files and folders, and what it was."""
    if path.is_symlink() or path.is_dir():
        return _delete(rng, path)
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        with contextlib.suppress(ValueError):  # damaged already
            return _other_json(rng, path, json.loads(data))
    cut, bit = (rng.randrange(len(data) + 1) for _ in range(2))
    contents = {
        "an HTML page": b"<html>404</html>",
        "a list": b"[1]",
        "an object": b"{}",
        "nested": b"[" * 200_000,
        "a number": b"5",
        "null": b"null",
        "empty": b"",
        "zeros": bytes(len(data)),
        "an empty pickle": b"\x80\x02.",
        "cut": data[:cut],
        "flipped": data[:bit] + bytes(byte ^ 64 for byte in data[bit : bit + 1]) + data[bit + 1 :],
    }
    what = rng.choice([*contents, "gone"])
    if what == "gone":
        return _delete(rng, path)
    path.write_bytes(contents[what])
    return what


def _delete(rng: random.Random, path: Path) -> str:
    """Something else, or nothing, is where it was."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    what = rng.choice(("gone", "a file", "a folder", "a link to nothing", "a link to itself"))
    if what == "a file":
        path.write_text("x")
    elif what == "a folder":
        path.mkdir()
    elif what != "gone":
        path.symlink_to("nowhere" if what == "a link to nothing" else path.name)
    return what


def _other_json(rng: random.Random, path: Path, content: Any) -> str:
    """One value of it is something else, or is left out."""
    tree: dict[Any, Any] = {"": content}
    node, key = tree, ""
    trail: list[str] = []
    while isinstance(node[key], dict | list) and node[key] and (not trail or rng.random() < 0.8):
        node = node[key]
        key = rng.choice([*node] if isinstance(node, dict) else range(len(node)))
        trail.append(str(key))
    others = [None, 5, -1, 1e308, True, "x", "", [], {}, [[1]], ["gpt2"], {"a": 1}, "left out"]
    node[key] = rng.choice(others)
    what = f"{'.'.join(trail)} {node[key]!r}"
    if node[key] == "left out":
        del node[key]
    path.write_text(json.dumps(tree.get("")))
    return what


State = Callable[[random.Random, Path, Path], str]
STATES: dict[str, State] = {
    "missing": _missing,
    "empty": _empty,
    "finished": partial(_copy, "finished"),
    "unfinished": partial(_copy, "unfinished"),
    "begun": partial(_copy, "begun"),
    "adapted": partial(_copy, "adapted"),
    "classes": partial(_copy, "classes"),
    "live": partial(_copy, "unfinished"),
    "live, begun": partial(_copy, "begun"),
    "with notes": _with_notes,
    "damaged": _damaged,
    "somebody's": _strange,
}
"""What a folder may be. Of one that is live another process must have the lock: see ``Holder``."""
GOOD = {*STATES} - {"missing", "empty", "damaged", "somebody's"}
"""Of these a plain --resume must succeed, when nobody else has the lock."""


class Holder:
    """Another process, that of a run which is alive: it has the lock of a folder."""

    CODE = """
import sys
from pathlib import Path
from addnorm.training.checkpoint import Checkpoints

for line in sys.stdin:
    run = Checkpoints(Path(line.strip()))
    run.lock()
    print("held", flush=True)
    sys.stdin.readline()
    run.close()
    print("free", flush=True)
"""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", self.CODE], **pipes)

    @contextlib.contextmanager
    def holding(self, run: Path | None) -> Iterator[None]:
        """Within it, the run is alive; None: none is."""
        if run is None:
            yield
            return
        self._tell(f"{run / 'checkpoints'}", "held")
        try:
            yield
        finally:
            self._tell("", "free")

    def _tell(self, line: str, want: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == want

    def close(self) -> None:
        """It ends."""
        self._process.communicate()
