"""What is written is whole or not there; what is read back is what was written."""

import hashlib
from pathlib import Path

import pytest

from addnorm import disk


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What came down to the disk and what was renamed, in order."""
    noted: list[str] = []
    replace, rename = Path.replace, Path.rename

    def replacing(self: Path, to: Path) -> Path:
        noted.append(f"replace {Path(to).name}")
        return replace(self, to)

    def renaming(self: Path, to: Path) -> Path:
        noted.append(f"rename {Path(to).name}")
        return rename(self, to)

    monkeypatch.setattr(disk, "sync", lambda path: noted.append(f"sync {path.name}"))
    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "rename", renaming)
    return noted


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    disk.write_text(tmp_path / "a.txt", "grün\n")
    assert calls == ["sync .a.txt", "replace a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_failed_is_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fails() -> None:
        with disk.whole_file(file) as work:
            work.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ZeroDivisionError), disk.whole_file(file):
        raise ZeroDivisionError  # before anything was written


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.txt").write_text("a half that is longer than the whole")
    disk.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_scratch_folder_is_beside_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"

    def fails() -> None:
        with disk.scratch(path) as work:
            assert work.parent == path.parent
            assert work.name.startswith(".a.")
            (work / "file").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list(path.parent.iterdir()) == []


def test_a_folder_is_shown_when_all_of_it_is_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    with disk.scratch(tmp_path / "a") as work:
        for name in "yx":
            (work / name).write_text(name)
        disk.show(work, tmp_path / "a")
    assert calls == [
        *("sync x", "sync y", f"sync {work.name}", "rename a", f"sync {tmp_path.name}"),
    ]
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"x", "y"}
    with disk.scratch(tmp_path / "a") as work:
        (work / "z").write_text("")
        with pytest.raises(OSError):  # noqa: PT011 (which one depends on the system)
            disk.show(work, tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"x", "y"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_get_their_places_in_order_and_none_before_all_are_there(
    tmp_path: Path, calls: list[str]
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "b").write_text("old")
    with disk.scratch(to) as work:
        for name in "ba":
            (work / name).write_text("new")
        disk.publish(work / "b", work / "a", to=to)
    assert calls == ["sync b", "sync a", "replace b", "replace a", "sync to"]
    assert {p.name: p.read_text() for p in to.iterdir()} == {"a": "new", "b": "new"}


def test_down_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    disk.sync(tmp_path / "a")
    disk.sync(tmp_path)
    assert len(synced) == 2


def test_what_is_not_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 2000)
    sha = hashlib.sha256(b"x" * 2000).hexdigest()
    assert disk.digest(file) == sha
    assert disk.difference(file, 2000, sha) is None
    assert disk.difference(file, 2000, sha[::-1]) == (
        "is not what was written: a bit has flipped, or it was changed"
    )
    assert disk.wrong_size(file, 2000) is None
    assert disk.difference(file, 3000, sha) == "is truncated: 2,000 bytes, and 3,000 were written"
    assert disk.wrong_size(file, 1999) == "is too long: 2,000 bytes, and 1,999 were written"
    assert disk.difference(tmp_path / "b", 1, sha) == "is missing"
    assert disk.difference(tmp_path, 1, sha) == "is not a file"
