"""Checkpoints: what was saved comes back to the bit, whatever happened to the disk or the process.

Processes that are killed, locked out or ended are forked from one helper process (``nursery``),
since importing torch takes longer than all that they do.
"""

import contextlib
import errno
import gc
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from addnorm import disk
from addnorm.training import checkpoint, checkpoint_file
from addnorm.training.checkpoint import CheckpointError, Checkpoints, Snapshot
from addnorm.training.folder_lock import FolderLock

GROUPS = ("model", "optimizer", "rng")
WRITES = 14  # of one save of ``content``: 3 headers with their lengths, 6 tensors, 2 files of JSON
FILES = {*(f"{group}.safetensors" for group in GROUPS), "state.json", "checksums.json"}


def content(step: int, size: int = 24) -> Snapshot:
    """What a run is at a step: the same whoever asks, and different at every step."""
    g = torch.Generator().manual_seed(step)
    wte = torch.randn(size, 5, generator=g)
    model = {
        "wte": wte,
        "head": wte,  # tied
        "scale": torch.tensor(float(step), dtype=torch.bfloat16),
        "proj": torch.randn(7, 3, generator=g).t(),
        "none": torch.empty(0, 4),
    }
    optimizer = {"wte.exp_avg": torch.randn(size, 5, generator=g, dtype=torch.float64)}
    rng = {"rank0": g.get_state()}
    facts = {"step": step, "best": math.nan if step % 2 else math.inf, "names": ["a", "ß", "\n"]}
    return Snapshot(step, dict(zip(GROUPS, (model, optimizer, rng), strict=True)), facts)


def raw(t: Tensor) -> bytes:
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def told(snapshot: Snapshot) -> Any:
    """To be compared: every bit of it, and the order."""
    tensors = [
        (group, name, t.dtype, tuple(t.shape), raw(t))
        for group, held in snapshot.tensors.items()
        for name, t in held.items()
    ]
    return snapshot.step, list(snapshot.tensors), tensors, repr(snapshot.facts)


def filled(folder: Path, *steps: int, **options: Any) -> Checkpoints:
    """A folder with these steps in it, not locked any more."""
    made = Checkpoints(folder, background=False, **options)
    for step in steps:
        made.save(content(step))
    made.close()
    return made


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def all_whole(folder: Path) -> list[int]:
    """The steps, each of which is whole and what it was at that step."""
    read = Checkpoints(folder)
    for step in read.steps():
        assert told(read.load(step)) == told(content(step))
    return read.steps()


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
def test_what_is_saved_comes_back(tmp_path, background):
    made = Checkpoints(tmp_path / "a" / "b", background=background)  # neither is there
    for step in (0, 3, 100):
        made.save(content(step))
    made.wait()
    assert made.steps() == [3, 100]
    assert told(made.load()) == told(content(100))
    assert told(made.load(3)) == told(content(3))
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {
        ".lock",
        "step-00000003",
        "step-00000100",
    }
    assert {p.name for p in (tmp_path / "a" / "b" / "step-00000003").iterdir()} == FILES


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("dtype", checkpoint_file.DTYPE_NAMES, ids=str)
def test_every_dtype_and_shape_to_the_bit(tmp_path, dtype, background):
    """Random bytes: signalling nans, denormals and minus zero among them."""
    g = torch.Generator().manual_seed(1)
    high = 2 if dtype == torch.bool else 256

    def some(*shape: int) -> Tensor:
        size = dtype.itemsize * math.prod(shape)
        return torch.randint(high, (size,), generator=g, dtype=torch.uint8).view(dtype).view(shape)

    tensors = {
        "0-dim": some(),
        "one": some(1),
        "empty": some(0),
        "empty of 3": some(4, 0, 2),
        "odd": some(3, 5, 7),
        "transposed": some(4, 6).t(),
        "slice": some(9, 9)[1:8:3, 2:],
        "expanded": some(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(some(3), requires_grad=dtype.is_floating_point),
        'name with / . and "quotes" and \'ß\n': some(2),
        "": some(2),
    }
    # A neighbour of one byte, so that the others would not be aligned by chance.
    mixed = {"byte": torch.tensor([1], dtype=torch.uint8), **tensors}
    snapshot = Snapshot(1, {"all": tensors, "mixed": mixed, "nothing": {}}, {})
    made = Checkpoints(tmp_path, background=background)
    made.save(snapshot)
    made.wait()
    assert told(made.load()) == told(snapshot)
    # The library, which knows nothing of us, reads the same.
    file = tmp_path / "step-00000001" / "mixed.safetensors"
    assert {n: raw(t) for n, t in load_file(file).items()} == {n: raw(t) for n, t in mixed.items()}
    # Whoever maps the file into memory finds each value at a multiple of its size.
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for name, place in json.loads(data[8 : 8 + length]).items():
        assert (8 + length + place["data_offsets"][0]) % mixed[name].element_size() == 0


def test_tied_tensors_are_saved_by_each_name(tmp_path):
    loaded = filled(tmp_path, 1).load().tensors["model"]
    assert torch.equal(loaded["wte"], loaded["head"])
    loaded["wte"].zero_()
    assert loaded["head"].any()


def test_what_is_loaded_has_nothing_to_do_with_the_files_any_more(tmp_path):
    loaded = filled(tmp_path, 1).load()
    for file in (tmp_path / "step-00000001").iterdir():
        with file.open("r+b") as opened:
            opened.write(b"\0" * file.stat().st_size)
    assert told(loaded) == told(content(1))


def test_large_groups_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "SHARD", 100)
    t = torch.arange(30, dtype=torch.uint8)
    tensors = {"large": t.repeat(5), **{f"t{i}": t + i for i in range(7)}, "wide": t[:9].double()}
    made = Checkpoints(tmp_path, background=False)
    made.save(Snapshot(1, {"model": tensors, "small": {"t": t}}, {}))
    files = sorted(p.name for p in (tmp_path / "step-00000001").glob("*.safetensors"))
    # wide (72 bytes) first; large (150) alone; 3 and 3 and 1 of 30
    assert files == [*(f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)), files[-1]]
    assert files[-1] == "small.safetensors"
    for file in files:
        held = load_file(tmp_path / "step-00000001" / file)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 100
    assert told(made.load()) == told(Snapshot(1, {"model": tensors, "small": {"t": t}}, {}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), JSON))
def test_facts_survive(facts):
    def no(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Checkpoints(folder)) as made:
        made.save(Snapshot(1, {}, facts))
        made.wait()
        assert repr(made.load().facts) == repr(facts)
        json.loads((Path(folder) / "step-00000001/state.json").read_bytes(), parse_constant=no)


def test_facts_that_hypothesis_may_miss(tmp_path):
    facts = {
        "n": [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 2**70],
        "words": ["nan", "Infinity", "\ud800"],  # not numbers; half of a character
        "nested": {"a": {"b": (1, (math.nan,))}},
        "float": {"float": "nan"},
    }
    made = Checkpoints(tmp_path)
    made.save(Snapshot(1, {"model": {"$float": torch.ones(1)}}, facts))
    made.wait()
    facts["nested"] = {"a": {"b": [1, [math.nan]]}}
    assert repr(made.load().facts) == repr(facts)
    assert '{\n        "$float": "nan"' in (tmp_path / "step-00000001/state.json").read_text()
    assert list(made.load().tensors["model"]) == ["$float"]


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [
        (Snapshot(2, {}, {"a": [{"b": {1, 2}}]}), r"facts\['a'\]\[0\]\['b'\] is a set"),
        (Snapshot(2, {}, {"a": ONE}), r"facts\['a'\] is a Tensor"),
        (Snapshot(2, {}, {"a": {1: 2}}), r"facts\['a'\] has the key 1"),
        (Snapshot(2, {}, {"a": {"$float": "nan"}}), r"facts\['a'\] has the key '\$float'"),
        (Snapshot(2, {"model": {"w": ONE.to("meta")}}, {}), "model: w is .* on meta"),
        (Snapshot(2, {"model": {"w": ONE.to_sparse()}}, {}), "model: w is .*sparse"),
        (Snapshot(2, {"model": {"w": ONE.to(torch.complex64)}}, {}), "model: w is .*complex64"),
        (Snapshot(2, {"model": {"__metadata__": ONE}}, {}), "model has a tensor '__metadata__'"),
        (
            Snapshot(2, {"model": {3: ONE}}, {}),  # type: ignore[dict-item]
            "model has a tensor 3",
        ),
        (Snapshot(2, {"../model": {}}, {}), "'../model' cannot be the name of a group"),
        (Snapshot(2, {"Model": {}}, {}), "'Model' cannot be the name of a group"),
        (Snapshot(2, {"model-00001-of-00002": {}}, {}), "cannot be the name of a group"),
        (Snapshot(-1, {}, {}), "step -1 is below 0"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, snapshot, message):
    made = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        made.save(snapshot)
    made.save(content(5))
    made.wait()
    assert all_whole(tmp_path) == [5]


def test_a_name_that_safetensors_cannot_hold(tmp_path):
    """Noticed when it is read back; nothing of it stays."""
    filled(tmp_path, 1)
    made = Checkpoints(tmp_path, background=False)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        made.save(Snapshot(2, {"model": {"\ud800": ONE}}, {}))
    assert all_whole(tmp_path) == [1]
    assert not hidden(tmp_path)


def test_at_least_one_stays(tmp_path):
    with pytest.raises(CheckpointError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


# --- which ones stay ------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path, keep):
    made = filled(tmp_path, 1, 2, 10, 9_999_999, 123_456_789, keep=keep)
    assert all_whole(tmp_path) == [1, 2, 10, 9_999_999, 123_456_789][-keep:]
    assert (tmp_path / "step-123456789").is_dir()
    assert made.load().step == 123_456_789  # by number: as text it would be before 9,999,999


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    for name in ("step-7", "step-00000007.bak", "notes", ".step-00000007"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    filled(tmp_path, 1, 2, 3, keep=1)
    assert Checkpoints(tmp_path).steps() == [3]
    assert len(list(tmp_path.iterdir())) == 7


def test_another_run_does_not_delete_what_it_did_not_write(tmp_path):
    filled(tmp_path, 100, 200)
    other = Checkpoints(tmp_path, keep=1)
    for step in (5, 200):
        with pytest.raises(CheckpointError, match=f"step 200 of another run.* step {step}"):
            other.save(content(step))
    assert all_whole(tmp_path) == [100, 200]
    other.save(content(201))  # goes on from there, whoever wrote them
    other.wait()
    assert all_whole(tmp_path) == [201]


def test_a_run_that_goes_back_gives_up_the_future(tmp_path):
    filled(tmp_path, 100, 200, 300, keep=3)
    again = Checkpoints(tmp_path, keep=3)
    assert again.load(100).step == 100
    again.save(content(150))
    again.wait()
    assert all_whole(tmp_path) == [100, 150]


def test_the_future_goes_first(tmp_path, monkeypatch):
    """A fall between two deletions must not leave it to be taken for the newest."""
    filled(tmp_path, 1, 2, 300, keep=3)
    again = Checkpoints(tmp_path, keep=1, background=False)
    again.load(2)
    monkeypatch.setattr(os, "rename", failing(3, os.rename))  # 1: the new one; 2: the first
    with pytest.raises(CheckpointError, match="step 3 is saved and whole, but older ones"):
        again.save(content(3))
    assert again.load().step == 3


def test_a_step_saved_again(tmp_path):
    """Never a moment with neither: the first goes only when the second is proven."""
    made = Checkpoints(tmp_path, background=False)
    made.save(content(1))
    for n in (3, 4, 5):
        made.save(Snapshot(2, content(2).tensors, {"n": n}))
    assert made.load().facts == {"n": 5}
    assert sorted(p.name for p in tmp_path.glob("step*")) == ["step-00000001", "step-00000002.2"]
    assert made.steps() == [1, 2]
    made.verify(2)
    made.save(content(3))
    assert made.steps() == [2, 3]
    assert made.load(2).facts == {"n": 5}


def test_of_a_step_saved_twice_the_second_is_damaged(tmp_path):
    filled(tmp_path / "a", 1)
    filled(tmp_path / "b", 1)
    (tmp_path / "b" / "step-00000001").rename(tmp_path / "a" / "step-00000001.1")
    (tmp_path / "a" / "step-00000001.1" / "state.json").unlink()
    made = Checkpoints(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"step-00000001\.1 is damaged"):
        made.verify(1)
    with pytest.warns(UserWarning, match=r"step-00000001\.1 is damaged.*Taking step-00000001 inst"):
        assert told(made.load(1)) == told(content(1))


# --- damage ---------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """And loading takes the checkpoint before, whatever the bit makes of the file."""
    made = filled(tmp_path, 1, 2)
    files = sorted((tmp_path / "step-00000002").iterdir())
    assert {file.name for file in files} == FILES
    rng = random.Random(0)
    # 20 in each of the 5 files, 10 of these in its first 100 bytes: headers, keys, punctuation.
    for file, i in itertools.product(files, range(20)):
        good = file.read_bytes()
        at = rng.randrange(100 if i < 10 else len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=re.escape(file.name)):
            made.verify(2)
        with pytest.warns(UserWarning, match=re.escape(file.name)) as seen:
            assert told(made.load()) == told(content(1))
        assert len(seen) == 1
        file.write_bytes(good)
        made.verify(2)


def test_no_byte_of_the_checksums_is_idle(tmp_path):
    """A bit of each: white space and the last line too."""
    made = filled(tmp_path, 1)
    file = tmp_path / "step-00000001" / "checksums.json"
    good = file.read_bytes()
    rng = random.Random(0)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"checksums\.json is missing or damaged"):
            made.verify(1)
    file.write_bytes(good)
    made.verify(1)


def cut(file: Path, size: int) -> None:
    os.truncate(file, max(0, size if size >= 0 else file.stat().st_size + size))


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: cut(file, -1), "truncated"),
        (lambda file: cut(file, 0), "truncated"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\n"), "too long"),
        (lambda file: file.unlink(), "missing"),
        (lambda file: (file.unlink(), file.mkdir()), "is not a file"),
    ],
    ids=["cut", "emptied", "longer", "gone", "folder"],
)
def test_damaged_files(tmp_path, name, damage, message):
    made = filled(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    message = "damaged" if name == "checksums.json" else message
    with pytest.raises(CheckpointError, match=f"step-00000002.*{name}.*({message})"):
        made.verify(2)
    with pytest.raises(CheckpointError, match=f"no checkpoint is whole:\n.*{name}"):
        made.load(2)
    with pytest.warns(UserWarning, match=rf"{name}.*Taking step-00000001 instead"):
        assert told(made.load()) == told(content(1))


def test_a_file_too_many(tmp_path):
    made = filled(tmp_path, 1)
    (tmp_path / "step-00000001" / "extra").touch()
    with pytest.raises(CheckpointError, match="extra was not written with it"):
        made.verify(1)


def test_checkpoints_that_are_not_what_their_name_says(tmp_path):
    made = filled(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match=r"step-00000003 is step 2: give it its name back"):
        made.verify(3)
    # A file of the same name and size from another checkpoint, whole in itself.
    shutil.copy(tmp_path / "step-00000003/rng.safetensors", tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"rng\.safetensors is not what was written"):
        made.verify(1)


def test_an_unknown_format(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "WHOLE", 7)
    made = filled(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 7, and this addnorm reads 1 and 2"):
        made.load()


def test_everything_wrong_is_told(tmp_path):
    made = filled(tmp_path, 1, 2, 3, keep=3)
    (tmp_path / "step-00000001" / "state.json").unlink()
    (tmp_path / "step-00000002" / "checksums.json").unlink()
    cut(tmp_path / "step-00000003" / "model.safetensors", 10)
    (tmp_path / "step-00000003" / "rng.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        made.load()
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert re.search("step-00000003.*model.safetensors is trunc.*; rng.* is missing", lines[1])
    assert re.search("step-00000002.*checksums.json is missing", lines[2])
    assert re.search("step-00000001.*state.json is missing", lines[3])


def test_what_is_not_there(tmp_path):
    made = Checkpoints(tmp_path / "nowhere")
    assert made.steps() == []
    with pytest.raises(CheckpointError, match="nowhere has no checkpoint; it has none"):
        made.load()
    assert not (tmp_path / "nowhere").exists(), "reading makes nothing"
    filled(tmp_path, 1, 2)
    for ask in (Checkpoints(tmp_path).load, Checkpoints(tmp_path).verify):
        with pytest.raises(CheckpointError, match="no checkpoint of step 7; it has 1, 2"):
            ask(7)


def test_a_disk_that_does_not_read(tmp_path, monkeypatch):
    made = filled(tmp_path, 1, 2)
    bad = failing(1, disk.digest, OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(disk, "digest", bad)
    with pytest.warns(UserWarning, match="cannot be read .*Input/output error"):
        assert made.load().step == 1


def test_reading_while_the_run_goes_on(tmp_path, monkeypatch):
    """What was listed is deleted before it is read: the newer ones are taken, without a word."""
    run = filled(tmp_path, 1, 2)
    read = checkpoint_file.read

    def slow(path: Path, step: int) -> Snapshot:
        if run.steps() == [1, 2]:
            for new in (3, 4):
                run.save(content(new))
        return read(path, step)

    monkeypatch.setattr(checkpoint_file, "read", slow)
    assert Checkpoints(tmp_path).load().step == 4


# --- how it is written ----------------------------------------------------------------------------


def test_the_order_of_things(tmp_path, monkeypatch):
    """Files, then their folder, then the name, then its folder, then reading, then deleting."""
    filled(tmp_path, 1)
    done: list[tuple[str, int | str]] = []

    def note(module: Any, name: str, what: Callable[..., int | str]) -> None:
        real = getattr(module, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            done.append((name, what(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    made = Checkpoints(tmp_path, keep=1, background=False)
    made.lock()
    note(os, "write", lambda fd, data: os.fstat(fd).st_ino)
    note(os, "fsync", lambda fd: os.fstat(fd).st_ino)
    note(os, "posix_fadvise", lambda fd, *rest: os.fstat(fd).st_ino)
    note(os, "rename", lambda a, b: re.sub(r"(?<=\d)-[0-9a-f]{8}$", "", Path(b).name))
    note(disk, "digest", lambda file: file.stat().st_ino)
    note(shutil, "rmtree", lambda path, **kw: re.sub(r"(?<=\d)-[0-9a-f]{8}$", "", Path(path).name))
    made.save(content(2))

    new = tmp_path / "step-00000002"
    names = {path.stat().st_ino: path.name for path in (*new.iterdir(), new, tmp_path)}
    order = [(call, names.get(what, what)) for call, what in done]
    order = [pair for i, pair in enumerate(order) if i == 0 or pair != order[i - 1]]
    parts = [f"{group}.safetensors" for group in GROUPS]
    written = [*parts, "state.json", "checksums.json"]
    assert order == [
        *((call, n) for n in written for call in ("write", "fsync", "posix_fadvise")),
        ("fsync", new.name),
        ("rename", new.name),
        ("fsync", tmp_path.name),
        *(("digest", name) for name in [*parts, "state.json"]),
        ("rename", ".deleted-step-00000001"),
        ("fsync", tmp_path.name),
        ("rmtree", ".deleted-step-00000001"),
    ]


rmtree = shutil.rmtree


def failing(at: int, call: Callable[..., Any], error: OSError | None = None, *, ever: bool = False):
    """``call``, but for its ``at``-th time, and after that if ``ever``."""
    count = itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        n = next(count)
        if n == at or (ever and n > at):
            wrapped.failed = True
            raise error or OSError(errno.ENOSPC, "No space left on device")
        return call(*args, **kwargs)

    wrapped.failed = False
    return wrapped


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("ever", [False, True])
@pytest.mark.parametrize(
    ("name", "calls"), [("write", WRITES), ("fsync", 8), ("rename", 2), ("mkdir", 1)]
)
def test_any_call_may_fail(tmp_path, monkeypatch, name, calls, ever, background):
    """Every call of its kind in turn: the disk is full from then on, or for a moment."""
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        filled(folder, 1, 2)
        made = Checkpoints(folder, background=background)
        made.lock()
        with monkeypatch.context() as patch:
            call = failing(at, getattr(os, name), ever=ever)
            patch.setattr(os, name, call)
            if not call_failed(made, 3, call):
                break
        assert all_whole(folder) in ([1, 2], [1, 2, 3], [2, 3])
        made.save(content(4))  # training went on
        made.close()
        steps = all_whole(folder)
        assert len(steps) == 2
        assert steps[-1] == 4
        assert not hidden(folder)
    assert at == calls + 1, "each of them failed once"


def call_failed(made: Checkpoints, step: int, call: Any) -> bool:
    """Whether saving met the failing call; if so, that it is told and what was there is there."""
    try:
        made.save(content(step))
        made.wait()
    except CheckpointError as error:
        text = str(error)
    else:
        assert not call.failed, "nobody was told"
        assert made.steps()[-1] == step
        return False
    assert "No space left on device" in text
    if text.startswith(f"step {step} is saved and whole, but older ones could not be deleted"):
        assert made.steps()[-1] == step
    else:
        assert re.match(
            rf"step {step} could not be saved: .* needs [\d,]+ bytes and [\d,]+ a", text
        )
        assert made.steps() == [1, 2]
        assert not hidden(made.folder)
    return True


def test_what_was_needed_and_what_is_free(tmp_path, monkeypatch):
    filled(tmp_path, 1)
    made = Checkpoints(tmp_path, background=False)
    made.lock()

    def usage(folder: Path) -> Any:
        assert not hidden(tmp_path), "asked when the unfinished one is gone"
        return shutil._ntuple_diskusage(10**12, 10**12 - 4321, 4321)

    monkeypatch.setattr(os, "write", failing(9, os.write))
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(CheckpointError, match="4,321 are free") as error:
        made.save(content(2))
    [needed] = re.findall(r"needs ([\d,]+) bytes", str(error.value))
    monkeypatch.undo()
    made.save(content(2))
    size = sum(file.stat().st_size for file in (tmp_path / "step-00000002").iterdir())
    # All but the safetensors headers and the checksums: here 5 files of at most 1 kB of these.
    assert size - 5000 < int(needed.replace(",", "")) <= size
    assert isinstance(error.value.__cause__, OSError)


def test_a_disk_that_takes_little_at_a_time(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    made = filled(tmp_path, 1)
    assert told(made.load()) == told(content(1))


@pytest.mark.parametrize(
    "advice", [failing(1, abs, OSError(errno.EINVAL, "Invalid"), ever=True), None]
)
def test_a_system_that_takes_no_advice(tmp_path, monkeypatch, advice):
    if advice:
        monkeypatch.setattr(os, "posix_fadvise", advice)
    else:
        monkeypatch.delattr(os, "posix_fadvise")
    filled(tmp_path, 1)
    assert all_whole(tmp_path) == [1]


@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_what_arrives_wrong_on_the_disk_is_noticed(tmp_path, monkeypatch, at):
    """A bit flips between memory and disk: the checkpoint is not taken, the older ones stay."""
    filled(tmp_path, 1, 2)
    made = Checkpoints(tmp_path, keep=1, background=False)
    made.lock()
    write, count = os.write, itertools.count(1)

    def flipping(fd: int, data: Any) -> int:
        bad = bytearray(data)
        if next(count) == at:
            bad[len(bad) // 2] ^= 4
        return write(fd, bytes(bad))

    monkeypatch.setattr(os, "write", flipping)
    with pytest.raises(CheckpointError, match=r"step 3 could not be saved: .* damaged"):
        made.save(content(3))
    assert next(count) > at
    assert all_whole(tmp_path) == [1, 2]
    assert not hidden(tmp_path)
    made.save(content(3))
    assert all_whole(tmp_path) == [3]


def test_half_a_deletion_is_no_checkpoint(tmp_path, monkeypatch):
    made = filled(tmp_path, 1, 2)

    def half(path: Path, **kwargs: Any) -> None:
        if kwargs:
            return rmtree(path, **kwargs)
        next(path.glob("*.safetensors")).unlink()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(CheckpointError, match="step 3 is saved and whole, but older"):
        made.save(content(3))
    assert all_whole(tmp_path) == [2, 3]
    assert len(hidden(tmp_path)) == 1
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    made.save(content(4))
    assert all_whole(tmp_path) == [3, 4]
    assert not hidden(tmp_path)


def test_other_folders_are_not_taken_for_leftovers(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".saving-step-00000001-01234567").mkdir()
    (tmp_path / ".deleted-step-00000001-01234567").mkdir()
    filled(tmp_path, 2)
    assert hidden(tmp_path) == [".git"]


def test_the_folder_is_deleted_meanwhile(tmp_path):
    """The run begins it again, and its lock with it."""
    made = Checkpoints(tmp_path / "run", background=False)
    made.save(content(1))
    shutil.rmtree(tmp_path / "run")
    made.save(content(2))
    assert all_whole(tmp_path / "run") == [2]
    with pytest.raises(CheckpointError, match="is being written to"):
        Checkpoints(tmp_path / "run").lock()
    shutil.rmtree(tmp_path / "run")
    other = filled(tmp_path / "run", 3)  # was quicker
    other.lock()
    with pytest.raises(CheckpointError, match="is being written to"):
        made.save(content(4))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/run cannot be written to"):
        Checkpoints(tmp_path / "file" / "run").save(content(1))
    with pytest.raises(CheckpointError, match=r"file cannot be read: .*Not a directory"):
        Checkpoints(tmp_path / "file").load()


# --- in the background ----------------------------------------------------------------------------


def test_the_caller_goes_on_while_it_is_written(tmp_path, monkeypatch):
    made = Checkpoints(tmp_path)
    made.lock()
    write, go = os.write, threading.Event()

    def waiting(fd: int, data: Any) -> int:
        assert go.wait(20)
        return write(fd, data)

    monkeypatch.setattr(os, "write", waiting)
    snapshot = content(1)
    made.save(snapshot)
    assert made.steps() == []
    for t in snapshot.tensors["model"].values():
        t.zero_()
    snapshot.facts["names"].append("later")
    go.set()
    made.wait()
    assert told(made.load()) == told(content(1))


def test_one_save_waits_for_the_other(tmp_path, monkeypatch):
    writers = set()
    write = os.write

    def slow(fd: int, data: Any) -> int:
        writers.add(threading.current_thread().name)
        time.sleep(0.001)
        assert sum(t.name.startswith("checkpoint") for t in threading.enumerate()) == 1
        return write(fd, data)

    made = Checkpoints(tmp_path)
    made.lock()
    monkeypatch.setattr(os, "write", slow)
    for step in (1, 2, 3):
        made.save(content(step))
    made.wait()
    assert all_whole(tmp_path) == [2, 3]
    assert writers == {"checkpoint 1", "checkpoint 2", "checkpoint 3"}


def test_a_failure_in_the_background_is_told_once(tmp_path, monkeypatch):
    made = Checkpoints(tmp_path)
    made.lock()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(5, os.write))
        made.save(content(1))
        made._thread.join()
    with pytest.raises(CheckpointError, match="step 1 could not be saved"):
        made.save(content(2))
    assert made.steps() == [], "nothing was begun"
    made.wait()
    made.save(content(2))
    made.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(5, os.write))
        made.save(content(3))
        with pytest.raises(CheckpointError, match="step 3 could not be saved"):
            made.wait()
    made.wait()
    assert all_whole(tmp_path) == [2]


def test_a_failure_keeps_no_copies(tmp_path, monkeypatch):
    """It may wait for long until it is asked for."""
    copies = []
    owned = checkpoint_file._owned

    def noted(*args: Any) -> Tensor:
        copies.append(weakref.ref(t := owned(*args)))
        return t

    monkeypatch.setattr(checkpoint_file, "_owned", noted)
    made = Checkpoints(tmp_path)
    made.lock()
    monkeypatch.setattr(os, "write", failing(5, os.write))
    made.save(content(1))
    made._thread.join()
    assert copies
    assert not any(copy() is not None for copy in copies)
    with pytest.raises(CheckpointError, match="No space left"):
        made.wait()


def test_not_only_disks_fail(tmp_path, monkeypatch):
    """Whatever it is comes out of the thread as it is, and leaves no folder."""
    made = Checkpoints(tmp_path)
    made.lock()
    monkeypatch.setattr(os, "write", failing(5, os.write, MemoryError("none left")))
    made.save(content(1))
    with pytest.raises(MemoryError, match="none left"):
        made.wait()
    assert not hidden(tmp_path)


def test_a_failure_that_nobody_asked_for(tmp_path, monkeypatch):
    made = Checkpoints(tmp_path)
    made.lock()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(5, os.write))
        made.save(content(1))
        made._thread.join()
    seen: list[str] = []
    monkeypatch.setattr(warnings, "warn", lambda text, **kwargs: seen.append(text))
    del made
    gc.collect()  # an error that was not raised yet knows the frames it went through
    assert len(seen) == 1
    assert seen[0].startswith("the last checkpoint failed: step 1 could not be saved")


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path):
    first, second = filled(tmp_path, 1), Checkpoints(tmp_path)
    first.save(content(2))
    holder = f"being written to by process {os.getpid()} on "
    with pytest.raises(CheckpointError, match=holder):
        second.lock()
    with pytest.raises(CheckpointError, match=holder):
        second.save(content(9))
    assert second.load().step == 2, "reading needs no lock"
    first.close()
    second.save(content(3))
    second.wait()
    with pytest.raises(CheckpointError, match="being written to"):
        first.save(content(4))
    del second  # as good as closed
    first.save(content(5))
    assert all_whole(tmp_path) == [3, 5]


def test_closing_twice_and_before_anything(tmp_path):
    made = Checkpoints(tmp_path)
    made.close()
    made.save(content(1))
    made.close()
    made.close()
    assert all_whole(tmp_path) == [1]


def test_a_failed_last_save_gives_the_lock_back(tmp_path, monkeypatch):
    made = Checkpoints(tmp_path)
    made.lock()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(5, os.write))
        made.save(content(1))
        with pytest.raises(CheckpointError, match="step 1 could not"):
            made.close()
    Checkpoints(tmp_path).lock()


@pytest.mark.parametrize("why", ["no fcntl", "no locks"])
def test_where_files_cannot_be_locked(tmp_path, monkeypatch, why):
    """It is said, and what another run may be writing at this moment is not deleted."""
    if why == "no fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        import fcntl

        error = OSError(errno.ENOSYS, "Function not implemented")
        monkeypatch.setattr(fcntl, "flock", failing(1, fcntl.flock, error, ever=True))
    (tmp_path / ".saving-step-00000001-01234567").mkdir()
    made = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="cannot be locked .*see to it yourself") as seen:
        made.save(content(1))
    assert len(seen) == 1
    made.save(content(2))
    made.wait()
    assert all_whole(tmp_path) == [1, 2]
    assert hidden(tmp_path) == [".saving-step-00000001-01234567"]


def test_what_cannot_be_cleared_away_does_not_stop_a_save(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".saving-step-00000001-01234567").symlink_to(elsewhere)  # rmtree refuses a link
    made = Checkpoints(folder)
    made.save(content(1))
    made.wait()
    assert all_whole(folder) == [1]
    assert elsewhere.is_dir()


# --- processes that end ---------------------------------------------------------------------------


class Nursery:
    """One helper process that has imported everything; what is called in it runs in a fork."""

    def __init__(self) -> None:
        code = "from tests.training.test_checkpoint import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, call: Callable[..., None], *args: Any) -> int:
        """The process id; what it tells is read with ``next``."""
        self.process.stdin.write(json.dumps([call.__name__, *map(str, args)]) + "\n")
        self.process.stdin.flush()
        return int(next(self).removeprefix("pid "))

    def __next__(self) -> str:
        line = self.process.stdout.readline()
        assert line, "the helper process is gone"
        return line.removesuffix("\n")

    def rest(self) -> list[str]:
        """All that it tells until its end, which is the last of it."""
        lines = [next(self)]
        while not lines[-1].startswith("end "):
            lines.append(next(self))
        return lines

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


write = os.write


def tell(text: str) -> None:
    write(1, f"{text}\n".encode())


def serve() -> None:
    """In the helper process: forks and runs what it is asked for, one after the other."""
    while line := sys.stdin.readline():
        name, *args = json.loads(line)
        gate, opened = os.pipe()
        if (pid := os.fork()) == 0:
            os.read(gate, 1)
            globals()[name](*args)
            sys.exit(0)  # as any program: threads are waited for
        tell(f"pid {pid}")
        os.write(opened, b"!")
        os.close(gate)
        os.close(opened)
        tell(f"end {os.waitpid(pid, 0)[1]}")


def saving(folder: str, background: str, seed: str) -> None:
    """A run that saves and saves, slowly, telling each thing before it does it."""
    rng = random.Random(int(seed))

    def slow(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tell(name)
            time.sleep(rng.uniform(0, 0.004))
            return None if name == "fsync" else call(*args, **kwargs)

        return wrapped

    made = Checkpoints(Path(folder), background=background == "True")
    made.lock()
    for name in ("write", "fsync", "rename", "unlink", "rmdir"):
        setattr(os, name, slow(name))
    for step in itertools.count(made.load().step + 1):
        tell(f"enter {step}")
        made.save(content(step))
        made.wait()
        tell(f"leave {step}")


def killed(nursery: Nursery, folder: Path, times: int) -> int:
    """Kill a run this many times; returns how often between a save's first byte and its rename."""
    filled(folder, 1)
    rng = random.Random(times)
    complete = inside = 0
    for i in range(times):
        pid = nursery.start(saving, folder, i % 4 > 1, i)
        if i % 2:  # at a random thing it does
            lines = [next(nursery) for _ in range(rng.randrange(1, 80))]
        else:  # at a random time
            lines = [next(nursery)]
            time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        lines += nursery.rest()
        assert lines.pop() == f"end {int(signal.SIGKILL)}", "it was running until then"
        begun = [n for n, line in enumerate(lines) if line.startswith("enter")]
        since = lines[begun[-1] :] if begun else []
        inside += "write" in since and "rename" not in since
        complete = max([complete, *(int(n) for n in map(after("leave "), lines) if n)])
        entered = max([complete, *(int(n) for n in map(after("enter "), lines) if n)])

        all_whole(folder)  # all that looks like a checkpoint is one
        newest = Checkpoints(folder).load()
        assert told(newest) == told(content(newest.step))
        assert complete <= newest.step <= max(entered, 1)
    filled(folder, newest.step + 1)
    assert len(all_whole(folder)) == 2
    assert not hidden(folder)
    return inside


def after(start: str) -> Callable[[str], str | None]:
    return lambda line: line.removeprefix(start) if line.startswith(start) else None


@pytest.mark.timeout(60)
def test_killed_at_any_moment(tmp_path, nursery):
    assert killed(nursery, tmp_path, 6) >= 1


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_killed_at_fifty_moments(tmp_path, nursery):
    assert killed(nursery, tmp_path, 60) >= 20


def holding(folder: str) -> None:
    """A run that has the lock, and a worker forked from it, as data loaders do."""
    made = Checkpoints(Path(folder))
    made.save(content(1))
    made.wait()
    if (worker := os.fork()) == 0:
        try:
            made.save(content(2))
        except CheckpointError:
            tell("the worker may not write")
        time.sleep(60)
        os._exit(0)
    time.sleep(0.01)
    tell(f"worker {worker}")
    time.sleep(60)


def test_a_killed_run_leaves_no_lock(tmp_path, nursery):
    pid = nursery.start(holding, tmp_path)
    lines = {next(nursery), next(nursery)}
    assert "the worker may not write" in lines
    worker = next(int(line.split()[1]) for line in lines if line.startswith("worker"))
    try:
        with pytest.raises(CheckpointError, match=f"written to by process {pid} on "):
            Checkpoints(tmp_path).save(content(2))
        os.kill(pid, signal.SIGKILL)
        nursery.rest()
        os.kill(worker, 0)  # it lives on for a while, and does not matter
        filled(tmp_path, 2)
        assert all_whole(tmp_path) == [1, 2]
    finally:
        os.kill(worker, signal.SIGKILL)


def leaving(folder: str, errors: str, fail: str) -> None:
    """A program that ends while its last checkpoint is written."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    made = Checkpoints(Path(folder))
    made.lock()

    def slow(fd: int, data: Any) -> int:
        time.sleep(0.02)
        if fail == "True":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    os.write = slow
    made.save(content(1))
    tell(f"steps {made.steps()}")


@pytest.mark.parametrize("fail", [False, True])
def test_the_program_ends_while_it_is_written(tmp_path, nursery, fail):
    nursery.start(leaving, tmp_path / "run", tmp_path / "errors", fail)
    assert nursery.rest() == ["steps []", "end 0"]
    assert all_whole(tmp_path / "run") == ([] if fail else [1])
    errors = (tmp_path / "errors").read_text()
    assert ("the last checkpoint failed: step 1 could not be saved" in errors) == fail
    assert fail or not errors


def limited(folder: str) -> None:
    """A file may not be longer than 10,000 bytes for a while: the kernel itself refuses."""
    made = Checkpoints(Path(folder), background=False)
    made.save(content(1))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        made.save(content(2, size=5000))
    except CheckpointError as error:
        tell(str(error))
    tell(f"{made.steps()} {hidden(Path(folder))}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    made.save(content(2))
    tell(f"{made.steps()}")


def test_a_limit_of_the_system(tmp_path, nursery):
    nursery.start(limited, tmp_path)
    error, during, then, end = nursery.rest()
    assert re.match("step 2 could not be saved: .*File too large.* It needs 4..,... bytes", error)
    assert (during, then, end) == ("[1] []", "[1, 2]", "end 0")
    assert all_whole(tmp_path) == [1, 2]


def test_a_lock_that_served_no_run_leaves_no_folder(tmp_path: Path) -> None:
    unused = Checkpoints(tmp_path / "runs" / "a" / "checkpoints")
    unused.lock()
    unused.close()
    assert not list(tmp_path.iterdir())
    unused.lock()
    (tmp_path / "runs" / "a" / "run.json").write_text("{}")
    unused.close()
    assert unused.folder.is_dir()  # something stands beside it: all stays
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    earlier = Checkpoints(tmp_path / "mine" / "checkpoints")
    earlier.lock()
    earlier.close()
    assert earlier.folder.is_dir()  # it was there before


def test_a_lock_on_a_folder_that_is_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = tmp_path / "run" / "checkpoints", []

    def interrupted(file: Path) -> FolderLock:
        """Between opening the file and locking it, a run that was never begun removes both."""
        lock = FolderLock(file)
        files.append(file)
        if len(files) == 1:
            shutil.rmtree(tmp_path / "run")
        return lock

    monkeypatch.setattr(checkpoint, "FolderLock", interrupted)
    checkpoints = Checkpoints(folder)
    checkpoints.lock()
    assert len(files) == 2
    with pytest.raises(CheckpointError, match="is being written to by"):
        Checkpoints(folder).lock()
    checkpoints.close()
