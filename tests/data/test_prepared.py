"""A prepared data set: read across files, and damage is noticed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from addnorm.data import preparation
from addnorm.data import prepared as prepared_file
from addnorm.data.preparation import prepare
from addnorm.data.prepared import Prepared
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from tests.data.samples import SAMPLE, stored, write


def test_tokens_are_read_across_files(sample):
    _, prepared = sample
    tokens = prepared.split("train")
    assert len([*prepared.folder.glob("train-0*.bin")]) > 5
    whole = np.concatenate([np.array(ids) for ids in stored(prepared, "train")])
    assert len(whole) == len(tokens)
    for start in (0, 9_999, 10_000, 10_001, len(tokens) - 10):
        for stop in (start, start + 1, start + 10, 20_000, 20_001, 35_000, len(tokens)):
            if start <= stop <= len(tokens):
                found = tokens.read(start, stop)
                assert type(found) is np.ndarray
                assert np.array_equal(found, whole[start:stop]), (start, stop)
    assert np.shares_memory(tokens.read(0, 10_000), tokens.read(0, 1)), "no copy within a file"
    for start, stop in ((-1, 3), (3, 2), (0, len(tokens) + 1)):
        with pytest.raises(IndexError, match=r"tokens .* of the"):
            tokens.read(start, stop)
    data = pickle.dumps(tokens)
    assert len(data) < 10_000, "files are mapped again, not copied"
    assert np.array_equal(pickle.loads(data).read(0, len(tokens)), whole)
    with pytest.raises(ValueError, match=r"no split 'test', only 'train' and 'val'"):
        prepared.split("test")


def test_what_was_prepared_is_found_again(sample, monkeypatch, tmp_path):
    source, prepared = sample
    assert not prepared.reused
    assert Prepared.open(prepared.folder).summary == prepared.summary

    def prepare_again(source, tokenizer, **options):
        return prepare(source, tokenizer, prepared.folder.parent, **options)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "encoder_for", lambda tokenizer: pytest.fail("tokenized again"))
        found = prepare_again(Texts(list(source.documents()), name="else"), Tokenizer.bytes())
    assert found.reused
    assert found.folder == prepared.folder
    others = [
        prepare_again(Texts([*source.documents(), "one more"]), Tokenizer.bytes()),
        prepare_again(source, Tokenizer.characters(SAMPLE)),
        prepare_again(source, Tokenizer.bytes(), val_fraction=0.2),
        prepare_again(source, Tokenizer.bytes(), split="tail"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "eos_id", None)
        others.append(prepare_again(source, Tokenizer.bytes()))
    assert not any(other.reused for other in others)
    assert len({prepared.folder, *(other.folder for other in others)}) == 6


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", ["train-00001.bin", "val-starts.bin", "meta.json"])
@pytest.mark.parametrize("harm", [flip, cut_short, Path.unlink])
def test_damage_is_found(sample, monkeypatch, full, name, harm):
    source, prepared = sample
    monkeypatch.setattr(prepared_file, "FULL", 10**9 if full else 0)
    Prepared.open(prepared.folder)
    harm(prepared.folder / name)
    told = f"{prepared.folder} .*{name}"
    if harm is not Path.unlink or name != "meta.json":
        told += ".*[Dd]elete the folder"
    with pytest.raises(DataError, match=told):
        prepare(source, Tokenizer.bytes(), prepared.folder.parent)
    if name != "meta.json":
        with pytest.raises(DataError, match=told):
            prepared.verify()


def test_a_large_data_set_is_opened_by_samples_and_verified_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_file, "SAMPLE", 4)
    prepared = prepare(Texts(["abcdefg " * 1000]), Tokenizer.bytes(), tmp_path)
    path = prepared.folder / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # between the first sample and the second
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        Prepared.open(prepared.folder)
    monkeypatch.setattr(prepared_file, "FULL", 100)
    opened = Prepared.open(prepared.folder)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        opened.verify()
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        Prepared.open(prepared.folder)


def test_a_figure_that_was_changed_is_found(sample):
    _, prepared = sample
    path = prepared.folder / "meta.json"
    path.write_text(path.read_text().replace('"documents": ', '"documents": 1'))
    with pytest.raises(DataError, match=r"meta.json is not what was written. Delete the folder"):
        Prepared.open(prepared.folder)


def test_another_format_is_refused(sample):
    _, prepared = sample
    meta = json.loads((prepared.folder / "meta.json").read_text())
    del meta["checksum"]
    meta["format"] = 99
    meta["checksum"] = prepared_file.checksum(meta)
    write(prepared.folder / "meta.json", json.dumps(meta))
    with pytest.raises(DataError, match=r"has format 99, this version of addnorm reads 1"):
        Prepared.open(prepared.folder)
