"""Translations of messages: the memory, the scores and their intervals, and eole by a stand-in."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the memory is scikit-learn's")
pytest.importorskip("sacrebleu", reason="the scores are sacrebleu's")

from addnorm.data.pairs import Pair
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import pair
from benchmarks import eole_runs
from benchmarks import translate_messages as benchmark
from benchmarks.translators import Outputs

REFERENCES = [f"die Datei {i} kann nicht geöffnet werden, weil {i + 1} fehlt" for i in range(40)]
GOOD = [text.replace("kann nicht", "kann nie") for text in REFERENCES]
BAD = [text[: len(text) // 2] for text in REFERENCES]


def test_the_memory_answers_with_the_nearest_source() -> None:
    pairs = [("cannot open file", "1"), ("cannot close file", "2"), ("no such branch", "3")]
    texts = ["can't close the file", "which branch?"]
    rows, questions = (
        [Pair(*row, "") for row in some] for some in (pairs, [(a, "") for a in texts])
    )
    assert benchmark.nearest(rows, [questions, questions[1:]], 3) == [["2", "3"], ["3"]]


def test_scores_are_sacrebleus() -> None:
    for metric in benchmark.scores(REFERENCES):
        rows = benchmark.sums(metric, GOOD, REFERENCES)
        score = metric.corpus_score(GOOD, [REFERENCES]).score
        assert benchmark.value(metric, rows) == pytest.approx(score)
        # a draw in which the first sentence comes twice and the second not at all
        draw = [0, 0, *range(2, 40)]
        texts, references = ([side[i] for i in draw] for side in (GOOD, REFERENCES))
        weights = np.bincount(draw, minlength=40)[:, None]
        score = metric.corpus_score(texts, [references]).score
        assert benchmark.value(metric, rows * weights) == pytest.approx(score)


def test_the_difference_is_equal_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "DRAWS", 60)
    bleu, _ = benchmark.scores(REFERENCES)
    good, bad = (benchmark.sums(bleu, texts, REFERENCES) for texts in (GOOD, BAD))
    assert str(benchmark.difference(bleu, [good, good], [good])) == "+0.00 [+0.00, +0.00]: equal"
    difference = benchmark.difference(bleu, [good], [bad])
    assert 0 < difference.low <= difference.mean <= difference.high
    assert str(difference).endswith("more")
    assert str(benchmark.difference(bleu, [bad], [good])).endswith("less")
    assert str(benchmark.difference(bleu, [good, bad], [good, bad])).endswith("equal"), (
        "seeds count"
    )


def test_the_table_has_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "DRAWS", 60)
    arms = {"memory": [Outputs(BAD, 0.0, "n")], "ours": [Outputs(GOOD, 2.0, "9 steps")] * 2}
    lines = benchmark.table(arms, REFERENCES).splitlines()
    assert any(line.startswith("| ours |") and "| 2.0 | 9 steps |" in line for line in lines)
    assert any(line.startswith("| memory |") and line.count("more") == 2 for line in lines)
    assert any(line.startswith("BLEU") and "tok:13a" in line for line in lines)


def test_a_whole_benchmark_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, low in (("train", 0), ("val", 20), ("test", 30)):
        lines = [f"open file {i}\töffne Datei {i}\n" for i in range(low, low + 10)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    settings = "steps=2 warmup=1 eval_every=1 save_every=1 rows_per_step=4 tokenizer=bytes"
    model = "model.dim=8 model.n_heads=2 model.encoder_layers=1 model.decoder_layers=1"
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1", "--beams", "1"]
    words += ["--eole", str(stand_in(tmp_path)), "--set", *settings.split(), *model.split()]
    assert benchmark.main(words) == 0
    first = capsys.readouterr().out
    assert all(f"| {name} |" in first for name in ("source", "memory", "ours", "eole"))
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out in first, "nothing is done twice"
    card = json.loads((tmp_path / "out" / "seed1" / "eole" / "train.json").read_text())
    assert card["model"]["hidden_size"] == 8
    assert card["training"]["batch_size"] == 4


def stand_in(folder: Path) -> Path:
    """A command that saves models when it is trained, never ends, and answers with sources."""
    file = folder / "eole"
    file.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = train ]; then mkdir -p model/step_100 model/step_200\n'
        "while true; do :; done; fi\n"
        'test "$3" = model/step_200 && cp test.src test.out\n'
    )
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return file


def test_eole_reads_ids_as_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    rows = [Pair("ab", "c", ""), Pair("a" * 30, "d", "")]
    sides = {"train": rows, "test": [Pair("b", "", "")]}
    eole_runs.write_data(tmp_path, pair(tokenizer, tokenizer), sides, 20)
    assert (tmp_path / "train.src").read_text() == "97 98\n", "what is too long is left out"
    assert (tmp_path / "train.tgt").read_text() == "99\n"
    assert (tmp_path / "test.src").read_text() == "98\n"
    assert len((tmp_path / "vocab.src").read_text().splitlines()) == tokenizer.vocab_size
