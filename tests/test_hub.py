"""A name is a folder here, or a repository of the hub, or an error that says which was tried."""

from pathlib import Path
from typing import Any

import pytest

from addnorm import hub
from addnorm.errors import Mendable


class Wrong(Mendable):
    """As a caller promises to its own."""


def test_a_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    assert hub.local_folder("gpt2", Wrong) == Path("gpt2")
    assert hub.local_folder(tmp_path, Wrong) == tmp_path
    assert hub.local_folder("openai-community/gpt2", Wrong) is None
    Path("file").write_text("")
    with pytest.raises(Wrong, match=r"file is a file: give the folder that it is in"):
        hub.local_folder("file", Wrong)


@pytest.mark.parametrize("name", ["a/b/c", "../a", "", "ä", "a b", "-a", Path("gpt2")])
def test_what_is_no_name_of_the_hub_is_not_asked_for(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":  # the current folder, as pathlib has it
        assert hub.local_folder(name, Wrong) == Path()
        return
    with pytest.raises(Wrong, match=r"there is no folder .*looked for"):
        hub.local_folder(name, Wrong)


def test_what_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, *, allow_patterns: list[str]) -> str:
        assert (name, allow_patterns) == ("some/name", ["a", "b"])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.download("some/name", ("b", "a", "b"), Wrong, "") == tmp_path

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(Wrong, match=r"no folder 'a/b' here.*ConnectionError: no network\)\. Walk"):
        hub.download("a/b", (), Wrong, "Walk there")
