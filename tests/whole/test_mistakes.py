"""Whole commands with a mistake in them: an answer that names it, and never a traceback.

Random edits of recipes, run as a user runs them: what is left is a run of two steps, or status 2
and a message with the key and the value.
"""

import contextlib
import functools
import json
import random
import re
import resource
import shutil
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from addnorm import GPT, GPTConfig, catalogue
from addnorm.cli import main
from addnorm.data.audio import write_wav
from addnorm.settings import SettingsError, converted, entries
from addnorm.tasks.recipes import RECIPES
from addnorm.training import loop as loop_module
from addnorm.training import memory
from addnorm.training import run as run_module
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World
from tests.tasks.recordings import ljspeech, spoken, texts
from tests.worlds import doors_at_random

TEXT = "the quick brown fox jumps over the lazy dog, and back again. " * 60
TINY = {
    "steps": "2",
    "warmup": "1",
    "threads": "1",
    "precision": "fp32",
    "micro_rows": "none",
    "model.dim": "16",
    "model.n_layers": "1",
    "model.n_heads": "2",
    "model.context_length": "16",
}
LANGUAGE = {"tokenizer": "bytes", "tokens_per_step": "64", "samples": "1", "model.qk_norm": "none"}

NUMBERS = ["0", "-1", "1", "2", "3", "17", "1000000000", "4611686018427387904", "9" * 30, "-7"]
NUMBERS += ["1.5", "-0.0", "1e308", "-1e308", "1e-308", "1e400", "nan", "inf", "-inf", "0x10"]
NUMBERS += ["1_0", "0.999999", "1.0", "1e9", "\u0661\u0662"]
WORDS = ["", " ", "none", "None", "true", "false", "no/such/file.txt", "/proc/no/such", "nowhere"]
WORDS += [
    "\u00e9\u4e2d\U0001f600",
    "a" * 300,
    "~nobody-of-this-name/x",
    "cuda",
    "cuda:99",
    "meta",
    "mps",
]
WORDS += [
    "bpe:",
    "bpe:-4",
    "bpe:" + "9" * 5000,
    "bpe:300",
    "characters",
    "bytes",
    "hf:",
    "hf:a:b:c:d:e",
]
WORDS += ["[1]", "{}", "a,b", ",", "q,v", "k", "adamw", "muon", "fp16", "bf16", "tail", "documents"]
WORDS += ["rope", "alibi", "sinusoidal", "learned", "gated", "swiglu", "gelu", "dyt", "scale", "l2"]
WORDS += ["rms_llama", "linear", "wsd", "constant", "fsdp", "skip", "rollback", "lora", "prefix"]
WORDS += ["adapter", "adalora", "tensorboard", "wandb,x", "parallel(", "mix_ln(2)", "mix_ln(0.5)"]
WORDS += ["drop_path(pre_norm, p=0.5)", "drop_path(pre_norm, p=7)", "shifted", "text.txt", "."]


TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It is {i}."},
        ]
    }
    for i in range(40)
]


SQUAD = [
    {
        "title": f"page {i}",
        "paragraphs": [
            {
                "context": f"The option -{i} prints {i} lines.",
                "qas": [
                    {
                        "id": str(i),
                        "question": f"What does -{i} do?",
                        "answers": [{"text": "prints", "answer_start": 13 + len(str(i))}],
                    }
                ],
            }
        ],
    }
    for i in range(40)
]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a folder of classes, and a model to start from."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "text.txt").write_text(TEXT)
    (folder / "squad.json").write_text(json.dumps({"data": SQUAD}))
    (folder / "talk.jsonl").write_text("\n".join(map(json.dumps, TALKS)))
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6)).astype(np.uint8)
    np.savez(folder / "pictures.npz", images=images, labels=np.arange(40) % 2)
    for name in ("one", "two"):
        (folder / "texts" / name).mkdir(parents=True)
        for i in range(20):
            (folder / "texts" / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    doors_at_random(folder / "doors.jsonl", 40)
    (folder / "pairs.tsv").write_text("".join(f"{i} and {i}\t{i}\n" for i in range(40)))
    ljspeech(folder / "speech", texts(12))
    for name in ("ab", "cd"):
        (folder / "sounds" / name).mkdir(parents=True)
        for i in range(9):
            write_wav(folder / "sounds" / name / f"{i}.wav", spoken(name, seed=i), 16_000)
    words = [f"{key}={value}" for key, value in {**TINY, **LANGUAGE}.items()]
    words += [f"data={folder / 'text.txt'}", f"cache={folder / 'cache'}"]
    assert main(["train", "--recipe", "char_cpu", "--out", str(folder / "first"), *words]) == 0
    return folder


@pytest.fixture(autouse=True)
def _safely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two steps, whatever was asked for; no network, no compiler; not in this folder."""

    def offline(*args: Any, **options: Any) -> Any:
        raise OSError("there is no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.setattr(run_module, "train", functools.partial(run_module.train, until=2))
    monkeypatch.setattr(loop_module, "compiler_failure", lambda device: "not in this test")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def base(recipe: str, material: Path) -> dict[str, str]:
    """A recipe's settings, small."""
    settings_ = {**TINY, "cache": str(material / "cache")}
    if recipe == "classify_text":
        return {**settings_, "data": str(material / "texts"), "tokenizer": "bytes"}
    if recipe == "translate":
        del settings_["model.n_layers"]
        layers = {"model.encoder_layers": "1", "model.decoder_layers": "1"}
        pairs = {"data": str(material / "pairs.tsv"), "tokenizer": "bytes", "score_pairs": "2"}
        return {**settings_, **layers, **pairs}
    if recipe == "classify_images":
        del settings_["model.context_length"], settings_["cache"]
        sizes = {"model.height": "8", "model.width": "8"}
        return {**settings_, **sizes, "data": str(material / "pictures.npz")}
    if recipe == "decide":
        del settings_["cache"]
        return {**settings_, "data": str(material / "doors.jsonl")}
    if recipe in ("transcribe", "classify_sounds"):
        del settings_["model.n_layers"], settings_["model.context_length"], settings_["cache"]
        layers = {"model.encoder_layers": "1", "model.n_mels": "20", "rows_per_step": "4"}
        place = material / ("speech" if recipe == "transcribe" else "sounds")
        return {**settings_, **layers, "data": str(place), "val_fraction": "0.3"}
    if recipe == "chat":
        return {**settings_, "data": str(material / "talk.jsonl"), "tokenizer": "bytes"}
    if recipe in ("classify_gpt2", "finetune_bert", "answer", "pretrain_bert"):
        if recipe == "classify_gpt2":  # the model is that of init_from
            settings_ = {k: v for k, v in settings_.items() if not k.startswith("model.")}
        return {**settings_, **of_other_recipe(recipe, material)}
    settings_ |= {**LANGUAGE, "data": str(material / "text.txt")}
    if recipe == "recurrent_cpu":
        del settings_["model.n_heads"], settings_["model.qk_norm"]
    if recipe == "finetune_gpt2":
        settings_["init_from"] = str(material / "first" / "model")
    return settings_


def of_other_recipe(recipe: str, material: Path) -> dict[str, str]:
    """What such a recipe needs to be small, beside what all have."""
    if recipe == "answer":
        squad = {"data": str(material / "squad.json"), "tokenizer": "wordpiece:150"}
        return {**squad, "model.context_length": "48"}
    if recipe == "pretrain_bert":
        text = {"data": str(material / "text.txt"), "tokenizer": "wordpiece:150"}
        return {**text, "tokens_per_step": "64", "samples": "1"}
    texts = {"data": str(material / "texts")}
    if recipe == "finetune_bert":
        return {**texts, "tokenizer": "wordpiece:100"}
    return {**texts, "init_from": str(material / "first" / "model")}


def edited(rng: random.Random, recipe: str) -> tuple[str, str]:
    """A key, sometimes mistyped, and a value: half of the time one of its kind."""
    config = RECIPES[recipe]()
    kinds = {key: kind for part in (config.task, config.loop) for key, kind, _ in entries(part)}
    key = rng.choice([*kinds, "sinks", "task"])
    pool = [*NUMBERS, *WORDS]
    if key == "model.scheme":
        pool += [*catalogue.names()] * 3
    if key in kinds and rng.random() < 0.5:
        pool = [value for value in pool if fits(key, kinds[key], value)] or pool
    value = rng.choice(pool)
    if rng.random() < 0.1:
        place = rng.randrange(len(key))
        key = (
            key[:place] + rng.choice([*string.ascii_letters, ".", "", "\u00e9"]) + key[place + 1 :]
        )
    return key, value


def fits(key: str, kind: Any, value: str) -> bool:
    with contextlib.suppress(SettingsError):
        converted(key, kind, value)
        return True
    return False


def parsed(value: str) -> Any:
    """What TOML makes of it as it stands; None if it is no value there."""
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except (tomllib.TOMLDecodeError, ValueError):  # a number of too many digits
        return None


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def names(message: str, key: str, value: str) -> bool:
    """Whether the key is in the message, and the value in one of the forms that one may give it,
    long ones as far as one may cut them."""
    forms = {value, repr(value), *value.split(","), str(parsed(value))}
    with contextlib.suppress(ValueError, OverflowError):
        forms |= {f"{float(value):g}", str(float(value)), str(int(float(value)))}
    message = message.replace("\n", " ")
    if f"unknown setting {key!r}" in message:
        return True  # whatever value it was given
    here = any(form[:40] in message for form in forms)
    last = key.rpartition(".")[2]
    return here and (key in message or re.search(rf"\b{re.escape(last)}\b", message) is not None)


def answer(words: list[str]) -> int:
    """The status of a command; that of the shell, where the reader of its words ends it."""
    try:
        return main(words)
    except SystemExit as end:
        return int(str(end.code))


def test_edits(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edits(material, tmp_path, capsys, random.Random(1), 60)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_edits(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits(material, tmp_path, capsys, random.Random(2), 1000)


def edits(
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
    count: int,
) -> None:
    statuses = {0: 0, 1: 0, 2: 0}
    wrong: list[str] = []
    for _ in range(count):
        recipe = rng.choice([*RECIPES])
        picked = dict(edited(rng, recipe) for _ in range(rng.choice((1, 1, 1, 2))))
        assignments = {**base(recipe, material), **picked}
        if recipe == "finetune_gpt2" and rng.random() < 0.4:
            other = rng.choice(("lora", "adalora", "prefix", "prompt", "adapter"))
            kind = picked.get("adapt.kind", other)  # which the steps must fit
            assignments = {
                "adapt.kind": kind,
                "adapt.steps": "2" if kind == "adalora" else "none",
                **({"adapt.length": "3"} if kind == "prompt" else {}),  # of a context of 16
            } | assignments
        command = ["train", "--recipe", recipe, "--out", str(tmp_path / "run"), "--overwrite"]
        if rng.random() < 0.3:  # from a file, where a value may be of another type
            literals = {k: v if parsed(v) is not None else quoted(v) for k, v in picked.items()}
            lines = [f"{quoted(k)} = {v}\n" for k, v in literals.items()]
            (tmp_path / "edit.toml").write_text("".join(lines))
            assignments = {k: v for k, v in assignments.items() if k not in picked}
            command += ["--config", str(tmp_path / "edit.toml")]
        status = answer([*command, *(f"{k}={v}" for k, v in assignments.items())])
        message = capsys.readouterr().err
        line = f"{recipe} {assignments | picked} ({status}): {message.strip()[:600]}"
        broke = status == 1 and "are not both finite" in message
        if (status not in (0, 2) and not broke) or "Traceback" in message:
            wrong.append(line)
        elif status == 2 and not any(names(message, *pick) for pick in picked.items()):
            wrong.append(f"not named: {line}")
        statuses[status] = statuses.get(status, 0) + 1
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong])
    assert statuses[0] > count / 10
    assert statuses[2] > count / 3


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("char_cpu", ["model.dim=200000000"]),
        ("char_cpu", ["model.n_layers=200000000"]),
        ("char_cpu", ["model.hidden=200000000"]),
        ("char_cpu", ["tokens_per_step=1000000000000"]),
        ("finetune_gpt2", ["adapt.kind=prefix", "adapt.length=200000000"]),
        ("classify_text", ["model.context_length=200000000"]),
        ("classify_text", ["rows_per_step=10000000000"]),
        ("translate", ["model.decoder_layers=200000000"]),
        ("transcribe", ["model.encoder_layers=200000000"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_what_does_not_fit_is_refused_before_it_is_asked_for(
    material: Path, capsys: pytest.CaptureFixture[str], recipe: str, words: list[str]
) -> None:
    """With how much memory it would take, and the setting; and it takes next to none to say so."""
    start = [f"{key}={value}" for key, value in base(recipe, material).items()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert answer(["train", "--recipe", recipe, *start, *words]) == 2
    message = capsys.readouterr().err
    assert re.search(r"needs at least [\d,]+ GB of memory", message), message
    assert words[-1] in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_lower_bound_is_one(
    material: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said to be needed grows with what is asked for, by the bytes of AdamW: a weight, its
    gradient and two states, of 4 bytes each; frozen weights count once; fsdp divides."""
    needs = memory.Needs(parameters=1000, trained=900, modules=0, batch=70, because="x")
    for optimizer, parallel, size, want in (
        ("adamw", "ddp", 1, 4 * 1000 + 12 * 900 + 70),
        ("muon", "ddp", 2, 4 * 1000 + 8 * 900 + 70),
        ("adamw", "fsdp", 2, (4 * 1000 + 12 * 900) // 2 + 70),
        ("adamw", "fsdp", 1000, 4 * 1000 + 70),  # each builds it whole first
    ):
        loop = LoopSettings(optimizer=optimizer, parallel=parallel)
        world = World(0, size, torch.device("cpu"))
        monkeypatch.setattr(memory, "_total_memory", lambda device, want=want: want)
        memory.check(needs, loop, world)
        monkeypatch.setattr(memory, "_total_memory", lambda device, want=want: want - 1)
        with pytest.raises(SettingsError, match="What decides it: x"):
            memory.check(needs, loop, world)


@pytest.mark.parametrize("scheme", ["pre_norm", "deepnorm", "hyper_connections", "mix_ln(0.25)"])
def test_deep_models_are_counted_from_shallow_ones(scheme: str) -> None:
    def make(layers: int) -> GPT:
        config = {"vocab_size": 27, "context_length": 8, "dim": 8, "n_heads": 2}
        with torch.device("meta"):
            return GPT(GPTConfig(**config, n_layers=layers, scheme=scheme))

    there = sum(p.numel() for p in make(96).parameters())
    assert memory.counted(make, 96) == (there, there)


def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
    whole = memory._total_memory(cpu)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._total_memory(cpu) == whole
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory._total_memory(cpu) == 1 << 20
