"""Preparing: found again, whole or not there, by several at once, and flat in memory."""

import os
import shutil
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from addnorm.data import packing, preparation
from addnorm.data.preparation import prepare
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from addnorm.progress import ProgressBar
from tests.data.samples import SAMPLE, Parts, stored, write

CRASH = """
import os, sys
from pathlib import Path
from addnorm.data import preparation
from addnorm.data.sources import Texts
from addnorm.data.tokenizer import Tokenizer

left = int(sys.argv[2])

def fsync(file):
    global left
    left -= 1
    if left < 0:
        os._exit(9)  # as after SIGKILL: no handler, no finally

os.fsync = fsync
source = Texts([f"document {i} of some" for i in range(50)])
preparation.prepare(source, Tokenizer.bytes(), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("syncs", [0, 2, 5])
def test_a_crash_leaves_nothing_that_is_taken_for_finished(tmp_path, syncs):
    done = subprocess.run([sys.executable, "-c", CRASH, tmp_path, str(syncs)])
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    source = Texts([f"document {i} of some" for i in range(50)])
    assert not prepare(source, Tokenizer.bytes(), tmp_path).reused
    assert left.exists(), "it may belong to somebody who is still writing"
    shutil.rmtree(next(p for p in tmp_path.iterdir() if p != left))
    for path in (*left.iterdir(), left):
        os.utime(path, (1, 1))
    prepare(source, Tokenizer.bytes(), tmp_path)
    assert len([*tmp_path.iterdir()]) == 1, "what was abandoned is cleared away"


def test_an_error_leaves_nothing(tmp_path):
    class Broken(Parts):
        seen = 0

        def parts(self):
            yield "some text", True
            self.seen += 1
            if self.seen == 2:  # while tokenizing
                raise OSError("the disk is gone")
            yield "more text", True

    with pytest.raises(OSError, match=r"the disk is gone"):
        prepare(Broken([]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []

    class Growing(Broken):
        def parts(self):
            self.seen += 1
            yield "some text " * self.seen, True

    with pytest.raises(DataError, match=r"parts was changed while it was being read"):
        prepare(Growing([]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []
    with pytest.MonkeyPatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(full))
        with pytest.raises(DataError, match=f"cannot write to {tmp_path}: No space left"):
            prepare(Texts(["some text"]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []
    file = write(tmp_path / "file", "")
    with pytest.raises(DataError, match=f"cannot write to {file}: "):
        prepare(Texts(["some text"]), Tokenizer.bytes(), file)


def test_two_at_once_both_end_well(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=20)
    found = []
    encoder = preparation.encoder_for

    def together(tokenizer):
        both.wait()  # neither has finished
        return encoder(tokenizer)

    monkeypatch.setattr(preparation, "encoder_for", together)
    source = Texts([SAMPLE])
    threads = [
        threading.Thread(target=lambda: found.append(prepare(source, Tokenizer.bytes(), tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.folder for p in found] == [found[0].folder] * 2
    assert [*tmp_path.iterdir()] == [found[0].folder]
    assert sorted(p.reused for p in found) == [False, True]
    assert stored(found[0], "val") == stored(found[1], "val")


def test_workers_change_no_byte(tmp_path, kinds, monkeypatch):
    monkeypatch.setattr(packing, "BATCH", 2000)
    source = Texts([SAMPLE * (i + 1) for i in range(20)])
    one = prepare(source, kinds["bpe"], tmp_path / "1")
    two = prepare(source, kinds["bpe"], tmp_path / "2", workers=2)
    for path in one.folder.iterdir():
        assert path.read_bytes() == (two.folder / path.name).read_bytes()
    with pytest.raises(DataError, match=r"texts: not in this tokenizer's vocabulary"):
        prepare(source, Tokenizer.characters("abc"), tmp_path / "3", workers=1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"val_fraction": 0}, "val_fraction is 0: more than 0 and less than 1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"split": "random"}, "no split 'random', only 'auto', 'documents', 'tail'"),
        ({"workers": 0}, "workers is 0: at least 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        prepare(Texts(["text"]), Tokenizer.bytes(), tmp_path, **option)


class Terminal(StringIO):
    def isatty(self):
        return True


def test_progress_is_told(tmp_path, capsys, monkeypatch):
    def told(stderr=None, **options):
        with monkeypatch.context() as patch:
            if stderr is not None:
                patch.setattr(sys, "stderr", stderr)
            prepare(Texts([SAMPLE * 50], name="book"), Tokenizer.bytes(), tmp_path, **options)
        shutil.rmtree(tmp_path)
        return stderr.getvalue() if stderr else "".join(capsys.readouterr())

    assert told() == "", "it was soon over"
    assert told(progress=False, stderr=Terminal()) == ""
    monkeypatch.setattr(preparation, "INTERVAL", 0.0)
    assert "tokenizing book: 0 of 0 MB\n" in told()
    assert told(progress=False) == ""
    encode = packing._ByBytes.encode
    shown = threading.Event()
    start = ProgressBar._start

    def started(self):
        start(self)
        shown.set()

    monkeypatch.setattr(ProgressBar, "_start", started)

    def slowly(self, texts):
        assert shown.wait(20)
        return encode(self, texts)

    monkeypatch.setattr(packing._ByBytes, "encode", slowly)
    monkeypatch.setattr(preparation, "PATIENCE", 1000)
    assert "tokenizing book" in told(stderr=Terminal(), progress=True)
    monkeypatch.setattr(preparation, "PATIENCE", 0.01)
    shown.clear()
    assert "tokenizing book" in told(stderr=Terminal())


@pytest.mark.parametrize("split", ["documents", "tail"])
def test_what_a_tokenizer_may_learn_from(tmp_path, split):
    """Exactly the text that training will see."""
    source = Texts([f"document {i} é {i * i}" for i in range(50)])
    prepared = prepare(source, Tokenizer.bytes(), tmp_path, split=split, val_fraction=0.2)
    tokens = prepared.split("train")
    ids = [i for i in tokens.read(0, len(tokens)).tolist() if i != 256]
    learned = "".join(preparation.training_texts(source, split=split, val_fraction=0.2))
    assert learned == Tokenizer.bytes().decode(ids)


MEMORY = """
import sys
from pathlib import Path
from addnorm.data.preparation import prepare
from addnorm.data.sources import open_source
from addnorm.data.tokenizer import Tokenizer

folder, kind = Path(sys.argv[1]), sys.argv[2]
text = (folder / "small.txt").read_text()
tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.train(text, 1000, kind)
peaks = []
for name in ("small.txt", "large.txt"):
    prepare(open_source(str(folder / name)), tokenizer, folder / "cache")
    # not ru_maxrss, which begins with what the process had that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(line.split()[1] for line in status if line.startswith("VmHWM")))
print(*peaks)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_memory_does_not_grow_with_the_text(tmp_path, kind):
    """One document of 60 MB after one of 4 MB: all that is in flight is in both."""
    generator = np.random.default_rng(0)
    words = [
        "".join(map(chr, generator.integers(97, 123, n))) for n in range(2, 12) for _ in range(99)
    ]
    line = " ".join(generator.choice(words, 700_000)) + "\n"
    write(tmp_path / "small.txt", line[: 4 << 20])
    write(tmp_path / "large.txt", line[: 4 << 20] * 15)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, kind], check=True, capture_output=True, text=True
    )
    small, large = map(int, done.stdout.split())
    # The files of ids are written, not mapped; 30 MB is half of the text, and a quarter of its ids.
    assert large - small < 30 * 1024, (small, large)
    assert large < 400 * 1024
