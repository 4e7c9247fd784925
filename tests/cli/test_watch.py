"""Watching: what is run again, when, and for what there is nothing to watch."""

import os
import sys
from pathlib import Path

import pytest

from addnorm.cli.watch import watch
from addnorm.errors import Mendable


def test_it_is_run_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a command that counts, and a pause that changes files: a hidden one, one of an
    environment, one of another kind, then one that counts."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "model.py"
    target.write_text("x = 1\n")
    for folder in (".git", "env", "package"):
        (tmp_path / folder).mkdir()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    edits = [".git/a.py", "env/b.py", "notes.txt", "package/new.py"]
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        (tmp_path / edits[len(pauses) - 1]).write_text("y = 2\n")

    command = [sys.executable, "-c", "import sys; print('examined'); sys.exit(1)"]
    assert watch([f"{target}:make"], command, rounds=2, pause=pause) == 1
    out = capfd.readouterr().out
    assert out.count("examined") == 2
    assert "watching 1 file; Ctrl-C ends" in out
    assert len(pauses) == len(edits)


def test_a_change_that_keeps_the_size_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "model.py"
    target.write_text("x = 1\n")

    def pause(_: float) -> None:
        target.write_text("x = 2\n")
        os.utime(target, ns=(1, 1))

    assert watch([str(target)], [sys.executable, "-c", ""], rounds=2, pause=pause) == 0


def test_an_interruption_ends_it_with_the_last_status(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()

    def pause(_: float) -> None:
        raise KeyboardInterrupt

    command = [sys.executable, "-c", "import sys; sys.exit(1)"]
    assert watch([str(tmp_path / "model.py")], command, pause=pause) == 1


@pytest.mark.parametrize("target", ["openai-community/gpt2", "", "folder"])
def test_there_must_be_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(Mendable, match="--watch is for code"):
        watch([target], rounds=0)
    with pytest.raises(Mendable, match=r"there is no file .*gone\.py"):
        watch(["gone.py:make"], rounds=0)
