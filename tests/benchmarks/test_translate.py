"""The words of the dictionary stand on one side each, and errors are counted as they are."""

import json
from pathlib import Path

import pytest

from addnorm.training.display import Display
from addnorm.training.run import train
from benchmarks import translate
from benchmarks.datasets.cmudict import Spoken, entries, side
from benchmarks.translate import ErrorRates, error_rates, interval, table
from benchmarks.translators import ProcessorTime

TEXT = """\
'bout B AW1 T
a AH0
a(2) EY1
abbot AE1 B AH0 T
abbot's AE1 B AH0 T S
d'artagnan D AH0 R T AE1 NG Y AH0 N # foreign french
read(2) R EH1 D
read R EH1 D
"""


def test_entries_are_words_and_phonemes_each_line_once() -> None:
    assert entries(TEXT) == [
        Spoken("a", "AH"),
        Spoken("a", "EY"),
        Spoken("abbot", "AE B AH T"),
        Spoken("abbot's", "AE B AH T S"),
        Spoken("d'artagnan", "D AH R T AE NG Y AH N"),
        Spoken("read", "R EH D"),
    ]
    assert entries(TEXT, stress=True)[1] == Spoken("a", "EY1")


def test_a_word_and_its_possessive_stand_on_one_side() -> None:
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    sides = [side(word) for word in words]
    assert all(
        side(f"{word}'s") == side(f"{word}'") == where
        for word, where in zip(words, sides, strict=True)
    )
    shares = {name: sides.count(name) / 600 for name in ("train", "val", "test")}
    assert shares["train"] == pytest.approx(0.88, abs=0.05)
    assert shares["test"] == pytest.approx(0.10, abs=0.05)


def test_errors_are_counted_against_the_nearest_way() -> None:
    spoken = {"a": ["AH", "EY"], "abbot": ["AE B AH T"], "read": ["R EH D", "R IY D Z"]}
    outputs = {"a": "EY", "abbot": "AE B T", "read": "R IY D"}
    rates = error_rates(outputs, spoken)
    assert rates.per == pytest.approx((0 + 1 + 1) / (1 + 4 + 4))
    assert rates.wer == pytest.approx(2 / 3)


def test_the_interval_is_a_t_distributions() -> None:
    assert interval([0.1]) == "10.00%"
    assert interval([0.1, 0.2, 0.3]) == "20.00% ± 24.84%"  # 4.303 * 0.1 / sqrt(3)
    assert "± 24.84%" in table([ErrorRates(x, 0.5, 9) for x in (0.1, 0.2, 0.3)], [1.0])


def test_a_seed_is_not_learned_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val", "test"):
        lines = [f"{a}{b}\t{a.upper()} {b.upper()}\n" for a in "abc" for b in "xyz"]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    settings = "steps=6 warmup=2 eval_every=2 save_every=2 rows_per_step=4 target_tokenizer=bytes"
    model = "model.dim=8 model.n_heads=2 model.encoder_layers=1 model.decoder_layers=1"
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1", "--beams", "2"]
    words += ["--set", *settings.split(), *model.split()]
    folder = tmp_path / "out" / "seed1"
    config = translate.settings(tmp_path, dict(word.split("=") for word in words[8:]))
    folder.mkdir(parents=True)
    times = ProcessorTime(folder / "minutes.json")
    train(
        config, out=folder / "run", until=4, observers=[times], display=Display(quiet=True), seed=1
    )
    before = json.loads((folder / "minutes.json").read_text())
    assert set(before) == {"2", "4"}
    assert translate.main(words) == 0
    first = capsys.readouterr().out
    assert "9 words, 1 seeds" in first
    minutes = json.loads((folder / "minutes.json").read_text())
    assert minutes["6"] > minutes["4"] == before["4"], "what it took before counts too"
    (folder / "run" / "best").rename(folder / "gone")
    assert translate.main(words) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit, match="give another --out"):
        translate.main([*words, "steps=8"])
