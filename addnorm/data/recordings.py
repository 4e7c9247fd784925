"""Recordings with what is said in them, or with labels, from the formats that people have.

A folder in the shape of LJSpeech (``metadata.csv`` of ``id|text`` or ``id|text|text as spoken``,
and ``wavs/``), NeMo's manifests (lines of JSON), or, for labels, a folder with a sub-folder of
sounds for each. Here only lists are read; ``addnorm.data.audio`` reads the sounds themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from addnorm import reading
from addnorm.checks import is_number
from addnorm.data.audio import RATE, SUFFIXES, Sound, is_sound, read_sound, remarks_on
from addnorm.data.decoding import Decoders
from addnorm.data.labelled import class_folders
from addnorm.data.sources import DataError
from addnorm.errors import value_in_short
from addnorm.words import a_few, plural

METADATA, WAVS = "metadata.csv", "wavs"
SPOKEN = (
    "a folder with metadata.csv (id|text) and wavs/ as LJSpeech has them, or a .jsonl of objects "
    'such as {"audio_filepath": "a.wav", "text": "..."}'
)
LABELLED = (
    "a folder with a sub-folder of sounds per label, or a .jsonl of objects such as "
    '{"audio_filepath": "a.wav", "label": "..."}'
)


@final
@dataclass(frozen=True)
class Recording:
    """Where a sound is, and what is said in it: its text, or its label."""

    file: Path
    text: str
    where: str
    """FILE:LINE of a list, or the folder."""
    start: float = 0.0
    """Seconds of the file that come before it."""
    length: float = 0.0
    """Seconds; 0: all that follows."""


class Recordings(NamedTuple):
    """What a folder or a manifest holds."""

    rows: list[Recording]
    remarks: list[str]
    """What is odd about it or was left out, in sentences."""


class HeardSound(NamedTuple):
    """A recording that was read."""

    row: Recording
    sound: Sound


def read_recordings(data: str | Path) -> Recordings:
    """All recordings with their texts, in their order; those without a word are left out, and told.
    A ``DataError`` names the line that is wrong, or the sounds that are missing."""
    place = _place(data, SPOKEN)
    rows = _metadata(place / METADATA) if place.is_dir() else _manifest(place, "text")
    return _checked(data, list(rows))


def read_labelled_sounds(data: str | Path) -> Recordings:
    """All sounds with their labels, as their ``text``; errors are those of ``read_recordings``."""
    place = _place(data, LABELLED)
    rows = _class_folders(place) if place.is_dir() else _manifest(place, "label")
    return _checked(data, list(rows))


def read_sounds(rows: Sequence[Recording], rate: int = RATE) -> tuple[list[HeardSound], list[str]]:
    """(each recording with its sound at ``rate``, what is odd about them, in sentences). One of
    which nothing can be heard is left out, and told; a ``DataError`` if that is so of all."""
    results, failures = [], []

    def read(row: Recording) -> Sound:
        return read_sound(row.file, rate, row.start, row.length)

    with Decoders(read) as decoders:
        for outcome in decoders.outcomes(rows):
            if outcome.error is None:
                results.append(HeardSound(outcome.item, outcome.sure()))
            else:
                failures.append(str(outcome.error))
    if not results:
        raise DataError(f"none of {plural(len(rows), 'sound')} can be used: {a_few(failures, 2)}")
    remarks = remarks_on((row.file, sound) for row, sound in results)
    if failures:
        remarks.append(
            f"{plural(len(failures), 'sound')} left out: {a_few(failures, between='; ')}"
        )
    return results, remarks


def _place(data: str | Path, formats: str) -> Path:
    """Where ``data`` is; a ``DataError`` if there is nothing, or no folder and no manifest."""
    place = reading.place(data, DataError)
    if not place.exists():
        raise DataError(f"there is no {data}: give {formats}")
    if not place.is_dir() and place.suffix.lower() not in (".jsonl", ".json"):
        raise DataError(f"{data} is none of the formats for sounds: give {formats}")
    return place


def _checked(data: str | Path, rows: list[Recording]) -> Recordings:
    """The rows, of which each file is there; those without a text are left out, and told."""
    if missing := [row for row in rows if not row.file.is_file()]:
        raise DataError(
            f"{missing[0].where}: there is no file {missing[0].file}; of "
            f"{plural(len(rows), 'sound')} {len(missing):,} are missing"
        )
    complete = [row for row in rows if row.text.strip()]
    if not complete:
        raise DataError(f"{data} holds no sound with a text or label")
    empty = [row.where for row in rows if not row.text.strip()]
    remarks = [f"{plural(len(empty), 'sound')} without a text left out ({a_few(empty, 2)})"]
    return Recordings(complete, remarks if empty else [])


def _metadata(file: Path) -> Iterator[Recording]:
    """The lines of LJSpeech's list, without quotes; of three fields the last counts, in which
    numbers are written out. The sound of an id is ``wavs/ID.wav``, or of another format."""
    if not file.is_file():
        raise DataError(f"{file.parent} has no {METADATA}: give {SPOKEN}")
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip():
            continue
        where, fields = f"{file}:{number}", line.split("|")
        if len(fields) not in (2, 3):
            raise DataError(
                f"{where}: {plural(len(fields), 'field')}, and a line is id|text, or id|text|text "
                "as it is spoken"
            )
        base = file.parent / WAVS / fields[0].strip()
        names = [base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)]
        sound = next((name for name in names if name.is_file()), names[1])
        yield Recording(sound, fields[-1].strip(), where)


def _manifest(file: Path, key: str) -> Iterator[Recording]:
    """The objects of a manifest; the names of sounds are relative to it. ``key``: what the text or
    label is called."""
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        value = reading.json_value(line, where, DataError)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {value_in_short(value)}")
        name, text = (_text(value, name, where) for name in ("audio_filepath", key))
        start, length = (_seconds(value, name, where) for name in ("offset", "duration"))
        # a duration without an offset says how long the file is, and may be rounded
        yield Recording(
            file.parent / Path(name).expanduser(),
            text.strip(),
            where,
            start,
            length if "offset" in value else 0.0,
        )


def _text(value: Mapping[str, Any], name: str, where: str) -> str:
    """What an object has under a name, which must be a text."""
    if name not in value:
        raise DataError(f"{where}: the object has {', '.join(value) or 'nothing'}, and no {name}")
    if not isinstance(value[name], str):
        raise DataError(f"{where}: {name} must be a text, got {value_in_short(value[name])}")
    return str(value[name])


def _seconds(value: Mapping[str, Any], name: str, where: str) -> float:
    """What an object has under a name, which must be a time; 0 where it has nothing."""
    seconds = value.get(name, 0.0)
    if seconds is None:
        return 0.0
    if not is_number(seconds) or seconds < 0:
        raise DataError(f"{where}: {name} must be seconds, got {value_in_short(seconds)}")
    return float(seconds)


def _class_folders(folder: Path) -> Iterator[Recording]:
    """The sounds of each sub-folder, whose name is their label, in the order of their names; other
    files are passed over. A ``DataError`` if there is none, or one without sounds."""
    names = class_folders(folder)
    if not names:
        raise DataError(f"{folder} has no sub-folders: give {LABELLED}")
    for name in names:
        files = sorted(file for file in (folder / name).rglob("*") if is_sound(file))
        if not files:
            raise DataError(f"{folder / name} has no sounds ({', '.join(SUFFIXES)})")
        yield from (Recording(file, name, str(folder / name)) for file in files)
