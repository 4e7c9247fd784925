"""What the command says, and to whom: any terminal, any encoding, a pipe that is closed, a full
disk; and which errors it takes for its user's and which for its own."""

import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import GPT, GPTConfig, Tokenizer
from addnorm.cli import main, schemes
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable

ROOT = Path(__file__).parents[2]
# A stream that is written at once fails at once, and what fails at the very end is not seen.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
ESCAPE = "\x1b[2J\x9b\x7f\r\x00"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "small"
    config = GPTConfig(vocab_size=257, context_length=40, dim=16, n_layers=1, n_heads=2)
    GPT(config).save_pretrained(path, tokenizer=Tokenizer.bytes())
    return str(path)


def raised(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit status of a command that ends so."""

    def run(options: Any) -> int:
        raise error

    monkeypatch.setattr(schemes, "run", run)
    return main(["schemes"])


# --- streams --------------------------------------------------------------------------------------


def said(words: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(words) == 0
    return stdout.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_encoding_of_stdout_will_do(
    folder: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", folder, "é日", "--regex", "[\ufffd\x85\U0001f642]{9}", "--seed", "1"]
    want = said(words, "utf-8", monkeypatch)
    assert {*want} == {*"é日\ufffd\x85\U0001f642\n"}
    escaped = want.encode(encoding, "backslashreplace").decode(encoding)
    assert said(words, encoding, monkeypatch) == escaped
    line = said([*words, "--json"], "utf-8", monkeypatch)
    assert "é日" in line
    assert json.loads(said([*words, "--json"], encoding, monkeypatch)) == json.loads(line)


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    program = f'"{sys.executable}" -m addnorm'
    return subprocess.run(
        command.replace("addnorm", program),
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=BUFFERED,
        check=False,
    )


@pytest.mark.parametrize("words", ["--version", "schemes --help"])
def test_a_disk_that_is_full_is_one_line(words: str) -> None:
    done = shell(f"addnorm {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "addnorm: cannot write the output: No space left on device\n"


def test_a_pipe_that_is_closed_is_no_news() -> None:
    done = shell("{ addnorm --version; echo $? >&2; } | true")
    assert done.stderr in ("1\n", "0\n"), "0 where the pipe took it all before it was closed"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "addnorm", "schemes", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=BUFFERED,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_stdout_or_stderr_stops_nothing() -> None:
    assert shell("addnorm --version >&-").returncode == 0
    assert shell("addnorm nonsense 2>&-").returncode == 2
    assert shell("addnorm nonsense 2>/dev/full").returncode == 2


def at_a_terminal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal gets to see."""
    screen, side = os.openpty()
    with open(side, "w", encoding="utf-8", newline="\n") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(words) == 0
    shown = b""
    with contextlib.suppress(OSError):  # Input/output error: there is no more
        while piece := os.read(screen, 4096):
            shown += piece
    os.close(screen)
    return shown.decode()


def test_a_terminal_is_not_steered_by_what_is_written(
    folder: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["generate", folder, f"a\tb{ESCAPE}", "--regex", f"é{re.escape(ESCAPE)}", "--seed", "1"]
    shown = at_a_terminal(words, monkeypatch)
    visible = r"\u001b[2J\u009b\u007f\u000d\u0000"
    assert shown.replace("\r\n", "\n").expandtabs() == f"a\tb{visible}é{visible}\n".expandtabs()
    shown = at_a_terminal([*words, "--json"], monkeypatch)
    assert json.loads(shown)["text"] == f"é{ESCAPE}"
    assert not {*ESCAPE} - {*"[2J\r"} & {*shown}
    shown = at_a_terminal([*words, "--samples", "2"], monkeypatch)
    assert shown.count(visible) == 4
    monkeypatch.undo()
    assert main(words) == 0  # to a file or a pipe: as it is
    assert capfdbinary.readouterr().out == f"a\tb{ESCAPE}é{ESCAPE}\n".encode()


def test_a_terminal_is_not_steered_by_the_sample_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("\x1b[2J\x07" * 999)
    settings = "model.dim=16 model.n_layers=1 model.n_heads=2 model.context_length=16 steps=1"
    settings += f" tokens_per_step=32 samples=1 threads=1 cache={tmp_path / 'cache'}"
    words = ["train", "--data", str(tmp_path / "text"), "--recipe", "char_cpu", *settings.split()]
    threads = torch.get_num_threads()
    try:
        shown = at_a_terminal([*words, "--out", str(tmp_path / "run")], monkeypatch)
    finally:
        torch.set_num_threads(threads)
    told = shown[shown.index("bits per byte on") :]
    assert r"\u001b" in told or r"\u0007" in told
    assert not {"\x1b", "\x07"} & {*told}


# --- whose error ----------------------------------------------------------------------------------


def test_what_the_user_can_mend_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/x/y")
    for error, status, told in (
        (Mendable("do this"), 2, "do this"),
        (Refusal("do that"), 2, "do that"),
        (Refusal("stopped", status=130), 130, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (full, 1, "cannot write /x/y: No space left on device"),
    ):
        assert raised(monkeypatch, error) == status
        assert capsys.readouterr().err == f"addnorm: {told}\n"
    error = Mendable("cannot write cache: no space")
    error.__context__ = full  # as where it is raised because of the other
    assert raised(monkeypatch, error) == 1


def test_memory_that_is_not_there_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    for short in (error.value, MemoryError("no room"), torch.OutOfMemoryError("CUDA: none\nmore")):
        assert raised(monkeypatch, short) == 1
        said = capsys.readouterr().err
        assert said.startswith("addnorm: there is not enough memory for this: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("v"), KeyError("k"), RecursionError(), RuntimeError("r")),
        OSError(errno.ENOENT, "none", "x"),
    ],
)
def test_everything_else_is_our_bug(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / f"addnorm-error-{os.getpid()}.txt").symlink_to(precious)
    assert raised(monkeypatch, error) == 70
    said = capsys.readouterr().err
    assert f"this is a bug in addnorm: {type(error).__name__}" in said
    found = re.search(r"The traceback is in (.*); please report it", said)
    assert found is not None
    log = Path(found[1])
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert precious.read_text() == "mine", "no name that others can foresee"


def test_a_bug_is_told_where_no_file_can_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert raised(monkeypatch, KeyError("k")) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "please report it" in said


@pytest.mark.parametrize(
    "words", [["generate", "a"], ["eval", __file__], ["lint"], ["export", "hf", "--out", "x"]]
)
def test_no_command_takes_our_bug_for_its_users_mistake(
    folder: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(GPT, "__init__", broken)
    monkeypatch.chdir(tmp_path)  # where x would be written
    command, *rest = words
    first = [rest.pop(0)] if command == "export" else []
    assert main([command, *first, folder, *rest]) == 70
    assert "a bug in addnorm: ValueError: not enough values" in capsys.readouterr().err


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["export", "hf", "MODEL", "--out", ""],
        ["train", "--data", "t.txt", "--out="],
        ["train", "--resume", ""],
        ["schemes", "pre_norm", "--out", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(
    folder: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as --out "$FOLDER", where FOLDER is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([folder if word == "MODEL" else word for word in words])
    assert 'the path is empty; "." is the current folder' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
