"""Translations: their objects and scores, what is not answered, and how good they are."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import Tokenizer
from addnorm.cli import main
from addnorm.data.tokenizer.pair import pair
from addnorm.errors import Mendable
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.uses.translation_scores import bleu_and_chrf, is_chinese, translation_scores

SOURCE, TARGET = Tokenizer.characters("abcdef "), Tokenizer.bytes()
START, END = 257, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = Seq2Seq(
        Seq2SeqConfig(
            vocab_size=SOURCE.vocab_size + 1,
            target_vocab_size=258,
            start_id=START,
            pad_id=START,
            end_id=END,
            context_length=9,
            dim=16,
            encoder_layers=1,
            decoder_layers=1,
            logits_bias=True,
        )
    )
    with torch.no_grad():  # few letters, and an end now and then
        model.logits_bias.data.fill_(-20.0)
        model.logits_bias.data[[97, 98, 99, END]] = 0.0
        model.tokens.weight.mul_(20.0)
        model.target_tokens.weight.mul_(20.0)
    folder = tmp_path_factory.mktemp("model") / "m"
    model.save_pretrained(folder, tokenizer=pair(SOURCE, TARGET))
    return folder


def test_each_answer_has_input_output_and_score(folder: Path) -> None:
    loaded = addnorm.load(folder)
    model, both = loaded.model, loaded.tokenizer
    sources = ["abc", "fade bed", "f", ""]
    results = loaded.predict(sources, n_best=3, length_penalty=0.7)
    assert [answer["input"] for answer in results] == [s for s in sources for _ in range(3)]
    for i in range(len(sources)):
        scores = [answer["score"] for answer in results[3 * i : 3 * i + 3]]
        assert scores == sorted(scores, reverse=True)
    for answer in results:
        ids = torch.tensor([[START, *answer["output"].encode()]])
        source = torch.tensor([both.encode(answer["input"])])
        with torch.no_grad():
            logprobs = model(source, ids[:, :9]).log_softmax(-1)[0]
        tokens = [*ids[0, 1:].tolist(), END][:9]  # one of 9 tokens is cut off by the context
        total = sum(float(logprobs[place, id]) for place, id in enumerate(tokens))
        assert math.isclose(answer["score"], total / len(tokens) ** 0.7, abs_tol=1e-4)
    together = loaded.predict(sources)
    for answer in together:
        (alone,) = loaded.predict([answer["input"]], beams=4, length_penalty=1.0, batch_size=1)
        assert alone["output"] == answer["output"]
        assert math.isclose(alone["score"], answer["score"], abs_tol=1e-5)
    ids = model.generate(torch.tensor([both.encode("abc")]), beams=4)[0, 1:].tolist()
    assert loaded.predict(["abc"])[0]["output"].encode() == bytes(i for i in ids if i < 256)


def test_what_cannot_be_translated_is_told_in_its_place(folder: Path, capsys: Any) -> None:
    inputs = ["abc", "abcdefabc", "xyz", "fad"]
    answers = addnorm.load(folder).predict(inputs)
    assert ["error" in answer for answer in answers] == [False, True, True, False]
    assert "10 tokens with its end, and the model reads 9: divide it" in answers[1]["error"]
    assert main(["predict", str(folder), "abc", "xyz", "--json", "--beams", "2"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].keys() == {"input", "output", "score"}
    assert lines[1].keys() == {"input", "error"}
    assert main(["predict", str(folder), "abc", "--n-best", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["predict", str(folder), "abc", "--n-best", "5"]) == 2
    assert "--n-best=5 results need as many beams, and --beams=4" in capsys.readouterr().err
    with pytest.raises(Mendable, match="unknown option 'top'"):
        addnorm.load(folder).predict(["a"], top=2)


def test_without_a_tokenizer_it_says_what_can_be_done(tmp_path: Path) -> None:
    model = Seq2Seq(Seq2SeqConfig(vocab_size=9, dim=8, encoder_layers=1, decoder_layers=1))
    addnorm.save(model, tmp_path / "m")
    with pytest.raises(Mendable, match="no tokenizer beside the model, only ids can be translated"):
        addnorm.load(tmp_path / "m").predict(["a"])


def test_eval_measures_what_predict_says(folder: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("sacrebleu")
    sources = ["abc", "fade", "f f f", "abcdefabcdef"]
    outputs = [a.get("output", "") for a in addnorm.load(folder).predict(sources, beams=2)]
    targets = [outputs[0] or "-", "nothing of the kind", outputs[2] + "x", "too long"]
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{s}\t{t}\n" for s, t in zip(sources, targets, strict=True)))
    assert main(["eval", str(folder), str(file), "--json", "--beams", "2"]) == 0
    figures = json.loads(capsys.readouterr().out)
    want = bleu_and_chrf(outputs, targets)
    assert figures["bleu"] == want["bleu"]
    assert figures["chrf"] == want["chrf"]
    assert "tok:13a" in figures["bleu_signature"]
    assert figures["exact_match"] == (outputs[0] == targets[0]) / 4
    assert (figures["pairs"], figures["unusable"]) == (4, 1)
    sides = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for side, lines in zip(sides, (sources, targets), strict=True):
        side.write_text("\n".join(lines))
    assert main(["eval", str(folder), *map(str, sides), "--json", "--beams", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_scores_are_those_of_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    outputs, right = ["the cat sat on the mat .", "no"], ["the cat sat on a mat .", "yes"]
    scores = translation_scores(outputs, right)
    assert scores["bleu"] == sacrebleu.corpus_bleu(outputs, [right]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(outputs, [right]).score
    assert scores["exact_match"] == 0.0
    chinese = ["打开文件 %s 时出错", "没有"]
    assert is_chinese(chinese)
    assert not is_chinese(["ファイルを開く際のエラー", "データ"])
    assert not is_chinese(["a file called 文件"])
    assert not is_chinese([""])
    assert "tok:zh" in bleu_and_chrf(chinese, chinese)["bleu_signature"]
    assert bleu_and_chrf(chinese, chinese)["bleu"] == pytest.approx(100.0)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    less = translation_scores(outputs, right)
    assert less == {
        "exact_match": 0.0,
        "note": "bleu and chrf need sacrebleu: pip install 'addnorm[translate]'",
    }
