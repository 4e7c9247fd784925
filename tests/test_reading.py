"""The one door by which files of others are read: what comes out is what was meant, or a
``Mendable`` that names the file."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from addnorm import reading
from addnorm.errors import Mendable
from addnorm.reading import DEEPEST, Unreadable, Utf8Decoder


class Promised(Mendable):
    """What a caller of the door promises to its own callers."""


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


READERS: list[Callable[[Path, type[Mendable]], Any]] = [
    reading.raw,
    reading.text,
    reading.lines,
    reading.json_file,
    reading.json_object,
    reading.toml_file,
]


@pytest.mark.parametrize("read", READERS)
def test_what_the_system_refuses_names_the_file(
    read: Callable[[Path, type[Mendable]], Any], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases = {
        tmp_path / "no.txt": "No such file or directory",
        tmp_path: "it is a folder, and a file is expected",
        link: f"it is a link to {tmp_path / 'gone'}, which is not there",
        loop: "Too many levels of symbolic links",
        tmp_path / ("x" * 300): "File name too long",
        write(tmp_path / "file", "") / "inside": "Not a directory",
        Path("/proc/self/mem"): "Input/output error: copy it from elsewhere",
    }
    for path, why in cases.items():
        with pytest.raises(Promised) as error:
            read(path, Promised)
        assert str(error.value).startswith(f"cannot read {path}: {why}")


@pytest.mark.parametrize("read", READERS[1:])
def test_what_is_no_text_is_told_with_the_byte(
    read: Callable[[Path, type[Mendable]], Any], tmp_path: Path
) -> None:
    for content, why in (
        (b"ab\xff", "byte 2 is 0xff): convert the file first"),
        (b"\xef\xbb\xbfab\xff", "byte 5 is 0xff"),
        ("text".encode("utf-16"), "byte 0 is 0xff): it looks like UTF-16: convert it first"),
        ("text €".encode()[:-1], "byte 5 is 0xe2"),  # cut within a character
    ):
        file = write(tmp_path / "file", content)
        with pytest.raises(Promised, match=re.escape(f"{file} is not UTF-8 (")) as error:
            read(file, Promised)
        assert why in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    mark = "\ufeff"
    assert reading.text(write(tmp_path / "t", f"{mark}a{mark}")) == f"a{mark}"
    assert reading.lines(write(tmp_path / "l", f"{mark}a\nb")) == ["a", "b"]
    assert reading.json_object(write(tmp_path / "j", f'{mark}{{"a": 1}}')) == {"a": 1}
    assert reading.toml_file(write(tmp_path / "c", f"{mark}a = 1")) == {"a": 1}
    for cut in range(1, 6):
        decoder, data = Utf8Decoder("x"), f"{mark}aé".encode()
        assert decoder.decode(data[:cut]) + decoder.decode(data[cut:], final=True) == "aé"


def test_lines_end_at_newlines_and_nowhere_else(tmp_path: Path) -> None:
    odd = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\rb"
    file = write(tmp_path / "f", f"{odd}\r\n\n c \n")
    assert reading.lines(file) == [odd, "", " c "]
    assert reading.lines(write(tmp_path / "e", "")) == []
    assert reading.lines(write(tmp_path / "n", "\n")) == []
    assert reading.lines(write(tmp_path / "b", "a\n\n")) == ["a", ""]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"a": 1, "b"', "is not valid JSON: Expecting ':' delimiter at character 12 of 12"),
        ('{"a": 1,\n  b', "double quotes at line 2, column 3 of 12 characters"),
        ("<html>404</html>", "is not valid JSON: Expecting value at character 0"),
        ("version https://git-lfs.github.com/spec/v1\n", "is only a pointer of Git LFS"),
        ("[" * 100_000, f"has lists or objects more than {DEEPEST} deep"),
        ("[" * 200 + "]" * 200, f"has lists or objects more than {DEEPEST} deep"),
        ('{"a":' * 200 + "1" + "}" * 200, f"has lists or objects more than {DEEPEST} deep"),
        (f'{{"a": {"1" * 5000}}}', "has a number of thousands of digits"),
    ],
)
def test_what_is_no_json_names_the_file_and_the_remedy(
    content: str, why: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.json", content)
    with pytest.raises(Promised) as error:
        reading.json_file(file, Promised)
    assert str(error.value).startswith(f"{file} ")
    assert why in str(error.value)
    assert "download it again" in str(error.value) or "git lfs pull" in str(error.value)


def test_json_may_be_as_deep_as_anybody_needs(tmp_path: Path) -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert reading.json_file(write(tmp_path / "x", deep))
    with pytest.raises(Unreadable, match="deep inside each other"):
        reading.json_file(write(tmp_path / "x", f"[{deep}]"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[1]", "a list"),
        ('"x"', "the text 'x'"),
        ("1e400", "the number inf"),
        ("null", "null"),
        ("true", "true"),
    ],
)
def test_an_object_is_asked_for(content: str, kind: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.json", content)
    with pytest.raises(Unreadable, match=re.escape(f"{file} holds {kind}, expected a JSON obj")):
        reading.json_object(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a = ", "is not TOML: Invalid value"),
        (f"a = {'1' * 5000}", "is not TOML"),
        ("a = " + "[" * 100_000, "deep inside each other"),
        ("a = " + "[" * 150 + "]" * 150, "deep inside each other"),
    ],
)
def test_what_is_no_toml_names_the_file(content: str, why: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.toml", content)
    with pytest.raises(Promised, match=re.escape(str(file))) as error:
        reading.toml_file(file, Promised)
    assert why in str(error.value)


def test_a_field_is_of_its_type_and_no_other() -> None:
    values = {"s": "x", "i": 1, "f": 1.5, "b": True, "l": [], "o": {}, "n": None}
    types: dict[str, tuple[type, ...]] = {"s": (str,), "i": (int, float), "f": (float,)}
    types |= {"b": (bool,), "l": (list,), "o": (dict,), "n": ()}
    for key, fitting in types.items():
        for kind in (str, int, float, bool, list, dict):
            if kind in fitting:
                assert reading.field(values, key, kind, "x.json") == values[key]
            else:
                with pytest.raises(Promised, match=f"x.json: '{key}' is .*, expected "):
                    reading.field(values, key, kind, "x.json", Promised)
    with pytest.raises(Promised, match=r"x.json: 'z' is missing"):
        reading.field(values, "z", str, "x.json", Promised)
    with pytest.raises(Unreadable, match=r"'s' is the text 'x{56}\.\.\., expected a number"):
        reading.field({"s": "x" * 10**6}, "s", float, "x.json")


def test_a_place_can_be_asked_for(tmp_path: Path) -> None:
    assert reading.place(tmp_path / "no") == tmp_path / "no"
    assert reading.place("~/x") == Path.home() / "x"
    for word in ("~nobody-of-this-name/x", "x" * 5000):
        with pytest.raises(Promised, match="cannot be looked up"):
            reading.place(word, Promised)


def test_what_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "no" / "x"
    with (
        pytest.raises(Promised, match=re.escape(f"cannot write {file}: No such file")),
        reading.system_errors(tmp_path, Promised, "write"),
    ):
        file.write_text("x")
    with (
        pytest.raises(Promised, match=re.escape(f"cannot write {tmp_path}: Bad file descriptor")),
        reading.system_errors(tmp_path, Promised, "write"),
    ):
        os.write(10**6, b"")  # this error has no name of a file
