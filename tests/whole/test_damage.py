"""Whatever stands in a folder, it is a model or an error that its owner can mend, and never a bug.

In folders of every kind, each JSON file is damaged in each of its values, and each file as a whole;
then the folder is opened by all the doors there are. A sample is tried on every run, everything in
the slow tests.
"""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import addnorm
from addnorm import GPT, GPTConfig, Tokenizer
from addnorm.adapt import adapt, save
from addnorm.adapt.settings import AdapterKind
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.pretrained import kind_of

SAMPLE = 12  # of each kind of folder, which has some hundreds
ENDS = 2  # of a vocabulary and other long lists: one entry is as good as another
VALUES: tuple[Any, ...] = (
    None,
    5,
    "x",
    [],
    {},
    -1,
    math.inf,
    True,
    "\0",
    10**400,
    "\ud800",
    [[]],
    {"x": {}},
)
LEFT_OUT = object()
TEXT = "to be, or not to be, that is the question"


def link(file: Path, to: str) -> None:
    file.unlink()
    file.symlink_to(to)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


WHOLE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda f: f.write_bytes(b""),
    "text": lambda f: f.write_text("hello"),
    "html": lambda f: f.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "cut": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "cut at its start": lambda f: f.write_bytes(f.read_bytes()[9:]),
    "garbage": lambda f: f.write_bytes(random.Random(0).randbytes(999)),
    "not UTF-8": lambda f: f.write_bytes(b'{"a": "\xff"}'),
    "deep": lambda f: f.write_text("[" * 100_000),
    "deep objects": lambda f: f.write_text('{"a":' * 100_000),
    "long number": lambda f: f.write_text(f'{{"a": {"1" * 5000}}}'),
    "null": lambda f: f.write_text("null"),
    "a list": lambda f: f.write_text("[1]"),
    "an object": lambda f: f.write_text("{}"),
    "a pointer": lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"),
    "gone": lambda f: f.unlink(),
    "a folder": folder_instead,
    "a dangling link": lambda f: link(f, "nowhere"),
    "a loop": lambda f: link(f, f.name),
}
BYTES = (b"", b"<html>404</html>", b"hello", b"\x80\x02.", b"PK\x03\x04" + bytes(99), b"\x80" * 99)


SHAPES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "a number": lambda t: torch.tensor(1.0),
    "flat": lambda t: t.flatten(),
    "deeper": lambda t: t[None].clone(),
    "turned": lambda t: t.T.contiguous() if t.dim() == 2 else t[None].clone(),
    "shorter": lambda t: t[:-1].clone(),
    "narrower": lambda t: t[..., :-1].contiguous(),
    "none in it": lambda t: t[:0].clone(),
    "whole numbers": lambda t: t.to(torch.int32),
    "packed": lambda t: t.to(torch.float8_e4m3fn),
    "not finite": lambda t: t * math.nan,
    "gone": lambda t: None,
}


class Damage(NamedTuple):
    """One file of a folder, and what is done to it."""

    file: str
    what: str
    do: Callable[[Path], Any]


def damages(folder: Path) -> Iterator[Damage]:
    """All, of all files of a folder."""
    for file in sorted(folder.rglob("*.*")):
        name = str(file.relative_to(folder))
        for what, do in WHOLE.items():
            yield Damage(name, what, do)
        if file.suffix == ".json":
            for place in places(json.loads(file.read_text())):
                for value in (*VALUES, LEFT_OUT) if place else VALUES:
                    what = f"{place} is {str(value)[:9]!r}"
                    yield Damage(name, what, partial(changed, place, value))
        if file.name == "adapter_model.safetensors":
            for content in ("", '{"settings": {"ki', "[" * 100_000):
                yield Damage(name, f"record {content:.9}", partial(rewritten, content))
            for place in places(json.loads(record(file))):
                for value in (*VALUES, LEFT_OUT) if place else VALUES:
                    what = f"record {place} is {str(value)[:9]!r}"
                    yield Damage(name, what, partial(recorded, place, value))
        if file.name.endswith("model.safetensors"):
            for start in BYTES:
                yield Damage(name, f"a pickle {str(start)[:9]}", partial(pickled, start))
                yield Damage(name, f"header {str(start)[:9]}", partial(headed, start))
            for name_of, t in list(load_file(file).items())[:3]:
                for what, other in SHAPES.items():
                    do = partial(reshaped, name_of, other(t))
                    yield Damage(name, f"{name_of} {what}", do)
            yield Damage(name, "a tensor more", partial(reshaped, "more", torch.zeros(2)))
            for header in VALUES:
                what = f"header {str(header)[:9]!r}"
                yield Damage(name, what, partial(headed, json.dumps({"x": header}).encode()))
                offsets = json.dumps({"x": {"dtype": "F32", "data_offsets": [0, header]}})
                yield Damage(name, f"offset {str(header)[:9]!r}", partial(headed, offsets.encode()))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in JSON, as keys one after the other."""
    yield at
    keys = list(value) if isinstance(value, dict) else []
    keys = list(range(len(value))) if isinstance(value, list) else keys
    if len(keys) > 50:
        keys = keys[:ENDS] + keys[-ENDS:]
    for key in keys:
        yield from places(value[key], (*at, key))


def edited(content: str, place: tuple[Any, ...], value: Any) -> str:
    """JSON with another value in a place, or with none."""
    whole = {"": json.loads(content)}
    inside: Any = whole
    *path, last = ("", *place)
    for key in path:
        inside = inside[key]
    if value is LEFT_OUT:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(whole[""]).replace("Infinity", "1e400")


def changed(place: tuple[Any, ...], value: Any, file: Path) -> None:
    file.write_text(edited(file.read_text(), place, value))


def recorded(place: tuple[Any, ...], value: Any, file: Path) -> None:
    """The same of the JSON in the metadata of an adapter."""
    rewritten(edited(record(file), place, value), file)


def record(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()["addnorm"]


def rewritten(content: str, file: Path) -> None:
    save_file(load_file(file), file, metadata={"addnorm": content})


def pickled(content: bytes, file: Path) -> None:
    file.unlink()
    file.with_name("pytorch_model.bin").write_bytes(content)


def headed(header: bytes, file: Path) -> None:
    """A safetensors file with this header, and as many values as before."""
    file.write_bytes(len(header).to_bytes(8, "little") + header + file.read_bytes())


def reshaped(name: str, t: Tensor | None, file: Path) -> None:
    """The file with another tensor of this name, or without it."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {**load_file(file), name: t}
    save_file({n: t for n, t in tensors.items() if t is not None}, file, metadata=metadata)


# --- the folders ----------------------------------------------------------------------------------


def gpt(tokenizer: Tokenizer, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"context_length": 8, "dim": 8, "n_layers": 1, "n_heads": 2, **changes}
    return GPT(GPTConfig(vocab_size=len(tokenizer), **shape))


def without_checksums(folder: Path) -> None:
    for file in folder.rglob(folders.CHECKSUMS):
        file.unlink()


def of_gpt2(folder: Path) -> None:
    tokenizer = Tokenizer.train(TEXT, vocab_size=260)
    gpt(tokenizer).save_pretrained(folder, tokenizer=tokenizer)
    without_checksums(folder)
    (folder / "addnorm_tokenizer.json").unlink()


def of_old_files(folder: Path) -> None:
    """Shards with an index, and a tokenizer in vocab.json and merges.txt."""
    of_gpt2(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(
        json.dumps(content["model"]["vocab"] | {"<|endoftext|>": 259})
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in content["model"]["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    with safe_open(folder / "a.safetensors", framework="pt") as opened:
        index = {"weight_map": dict.fromkeys(opened.keys(), "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def of_ours(folder: Path) -> None:
    tokenizer = Tokenizer.characters(TEXT)
    gpt(tokenizer, scheme="sandwich", position="rope").save_pretrained(folder, tokenizer=tokenizer)
    without_checksums(folder)


def sealed(folder: Path) -> None:
    gpt(Tokenizer.bytes()).save_pretrained(folder, tokenizer=Tokenizer.bytes())


def with_adapter(kind: AdapterKind, folder: Path, **settings: Any) -> None:
    model = gpt(Tokenizer.bytes())
    model.save_pretrained(folder / "base", tokenizer=Tokenizer.bytes())
    adapt(model, kind, **settings)
    save(model, folder / "adapter")
    without_checksums(folder)


def with_prefix(folder: Path) -> None:
    with_adapter("prefix", folder, length=2, positions="shifted")  # as peft has it


def with_prompt(folder: Path) -> None:
    with_adapter("prompt", folder, length=2)


def with_lora(folder: Path) -> None:
    with_adapter("lora", folder, rank=2)


def with_adalora(folder: Path) -> None:
    with_adapter("adalora", folder, init_rank=3, target_rank=2, steps=5)


def with_bottleneck(folder: Path) -> None:
    with_adapter("adapter", folder, width=2)  # which peft has not


def of_classifier(folder: Path) -> None:
    config = ClassifierConfig(vocab_size=257, classes=2, dim=8, n_layers=1, n_heads=2)
    addnorm.save(TextClassifier(config), folder, tokenizer=Tokenizer.bytes(), labels=["no", "yes"])
    without_checksums(folder)


KINDS = (
    *(of_gpt2, of_old_files, of_ours, sealed, of_classifier),
    *(with_prefix, with_prompt, with_lora, with_adalora, with_bottleneck),
)


def opened(folder: Path) -> Iterator[Callable[[], object]]:
    """By every door; a model that is opened must run as well."""
    ids = torch.zeros(1, 3, dtype=torch.long)

    def run() -> object:
        loaded = addnorm.load(folder)
        if kind_of(loaded.model).use is not None:
            return loaded.predict(["to be"])
        return loaded.model(ids), loaded.tokenizer and loaded.tokenizer.encode("to be")

    yield run
    yield lambda: GPT.from_pretrained(folder)(ids)
    yield lambda: Tokenizer.from_pretrained(folder).encode("to be")


def try_all(kind: Callable[[Path], None], folder: Path, sample: int | None) -> None:
    kind(folder / "whole")
    some = list(damages(folder / "whole"))
    if sample is not None:
        some = random.Random(kind.__name__).sample(some, sample)
    bugs = []
    for damage in some:
        shutil.copytree(folder / "whole", folder / "damaged", symlinks=True)
        damage.do(folder / "damaged" / damage.file)
        for door in opened(folder / "damaged"):
            try:
                door()
            except Mendable:
                continue
            except Exception as error:
                bugs.append(f"{damage.file} {damage.what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder / "damaged")
    assert not bugs, "\n".join(bugs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_never_our_bug(kind: Callable[[Path], None], tmp_path: Path) -> None:
    try_all(kind, tmp_path, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_of_all_is_our_bug(kind: Callable[[Path], None], tmp_path: Path) -> None:
    try_all(kind, tmp_path, None)
