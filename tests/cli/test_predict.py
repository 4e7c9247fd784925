"""The command ``addnorm predict``, and what the other commands say of a classifier."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import GPT, GPTConfig, Tokenizer
from addnorm.cli import main, predict
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from tests.nets import stir

BYTES = Tokenizer.bytes()
LABELS = ("bad", "good", "so-so")
TEXTS = ["a fine day", "", "x" * 300]


@pytest.fixture(scope="module")
def model() -> TextClassifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        vocab_size=257, classes=3, context_length=32, dim=8, n_layers=1, n_heads=2, pairs=99
    )
    return stir(TextClassifier(config)).eval()


@pytest.fixture(scope="module")
def run(model: TextClassifier, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("runs") / "mood"
    addnorm.save(model, path / "model", tokenizer=BYTES, labels=LABELS)
    return str(path)


def wanted(model: TextClassifier, texts: Sequence[str]) -> list[list[float]]:
    """By the definition: each text alone, the mean over its windows."""
    return [model.probabilities([text], BYTES)[0].tolist() for text in texts]


def from_stdin(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


# --- answers --------------------------------------------------------------------------------------


def test_one_line_for_each_text(
    run: str, model: TextClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", run, *TEXTS, "--batch-size", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TEXTS)
    for line, text, p in zip(lines, TEXTS, wanted(model, TEXTS), strict=True):
        best = max(range(3), key=p.__getitem__)
        label, share, *rest = line.split(maxsplit=2)
        assert label == LABELS[best]
        assert float(share.removesuffix("%")) == pytest.approx(100 * p[best], abs=0.051)
        assert "".join(rest) == (text if len(text) <= 60 else f"{text[:57]}...")


def test_json_has_every_label(
    run: str, model: TextClassifier, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", run, *TEXTS, "--json", "--top", "3"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, text, p in zip(told, TEXTS, wanted(model, TEXTS), strict=True):
        assert list(one) == ["input", "label", "probability", "probabilities"]
        assert one["input"] == text
        # padding beside longer texts moves the last bits
        assert [one["probabilities"][label] for label in LABELS] == pytest.approx(p, abs=1e-5)
        assert one["probability"] == max(one["probabilities"].values())
        assert one["label"] == next(iter(one["probabilities"]))


def test_top(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", run, "a", "--top", "2"]) == 0
    line = capsys.readouterr().out.split()
    assert line[0] in LABELS
    assert line[2] in LABELS
    assert float(line[1][:-1]) >= float(line[3][:-1])
    assert main(["predict", run, "a", "--top", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["probabilities"]) == 2
    assert main(["predict", run, "a", "--top", "9", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["probabilities"]) == 3


# --- inputs ---------------------------------------------------------------------------------------


def test_every_line_of_stdin_has_its_answer(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, also an empty line, an end without a newline, and those of Windows."""
    from_stdin("\ufeffgrüße\r\n\nb\x0cc\nlast".encode(), monkeypatch)
    assert main(["predict", run, "-", "--json", "--batch-size", "3"]) == 0
    told = [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["grüße", "", "b\x0cc", "last"]


def test_stdin_stands_among_texts(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_stdin(b"b\nc\n", monkeypatch)
    assert main(["predict", run, "a", "-", "d", "--json"]) == 0
    told = [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["a", "b", "c", "d"]


def test_a_line_is_answered_when_it_is_read(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch of one; what comes next may take a day."""
    seen: list[str] = []

    class Slow(io.BytesIO):
        def __next__(self) -> bytes:
            seen.append(capsys.readouterr().out)
            return super().__next__()

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slow(b"a\nb\n")))
    assert main(["predict", run, "-", "--batch-size", "1"]) == 0
    assert [len(out.splitlines()) for out in seen] == [0, 1, 1]


def test_files_are_read_whole(
    run: str, model: TextClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("two\nlines\n")
    assert main(["predict", run, "--files", str(file), "--json", "--top", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["input"] == str(file)
    (p,) = wanted(model, ["two\nlines\n"])
    assert [told["probabilities"][label] for label in LABELS] == pytest.approx(p)


def test_a_name_of_a_file_is_a_text_and_that_is_said(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a word is a text or a file is never guessed."""
    (tmp_path / "a.md").write_text("text")
    assert main(["predict", run, str(tmp_path / "a.md"), "b.md", "\0", "x" * 5000]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 4
    assert told.err.count("was taken for a text; --files reads the file of this name") == 1


def test_the_rows_of_a_table(
    run: str, model: TextClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text('id,text\n1,"a fine, sunny day"\n2,\n')
    assert main(["predict", run, str(file), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == ["a fine, sunny day", ""]
    p = wanted(model, ["a fine, sunny day", ""])
    assert [answer["probability"] for answer in answers] == pytest.approx([*map(max, p)])
    file.rename(tmp_path / "mine.tsv")
    (tmp_path / "mine.tsv").write_text("label\tsentence\ngood\ta day\n")
    assert main(["predict", run, str(tmp_path / "mine.tsv")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    file.write_text("id,review\n1,a fine day\n")
    assert main(["predict", run, "a text", str(file)]) == 2
    assert f"{file} has no column text: its first line names id, review" in capsys.readouterr().err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no input: give at least one text, or - for the lines of stdin"),
        (["a", "--top", "0"], "--top must be at least 1, got 0"),
        (["a", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["-", "-"], "stdin can be read once"),
        (["--files", "nowhere.txt"], "there is no file nowhere.txt: a name that ends"),
        (["a", "nowhere.csv"], "there is no file nowhere.csv: a name that ends in .txt, .jsonl, "),
        (["nowhere.json"], "there is no file nowhere.json: a name that ends in .txt, .jsonl, "),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], message: str, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", run, *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_stdin_that_is_closed_or_no_text(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["predict", run, "-"]) == 2
    assert "there is no stdin" in capsys.readouterr().err
    from_stdin(b"a\n\xff\n", monkeypatch)
    assert main(["predict", run, "-"]) == 2
    assert "stdin is not UTF-8 (byte 2 is 0xff)" in capsys.readouterr().err
    from_stdin(b"a\n\xc3", monkeypatch)
    assert main(["predict", run, "-"]) == 2
    assert "stdin is not UTF-8" in capsys.readouterr().err


def test_a_language_model_gives_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPTConfig(vocab_size=257, context_length=8, dim=8, n_layers=1, n_heads=2)
    addnorm.save(GPT(config), tmp_path / "run" / "model", tokenizer=BYTES)
    assert main(["predict", str(tmp_path / "run"), "a"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "is a language model" in told
    assert "addnorm generate" in told


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "a"],
        *(["export", kind, "RUN", "--out", "OUT"] for kind in ("hf", "gguf")),
    ],
    ids=" ".join,
)
def test_commands_for_language_models_say_which_one_serves_a_classifier(
    words: list[str], run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": run, "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    assert capsys.readouterr().err == (
        f"addnorm: {run} is a text classifier, and this command needs a language model: use "
        f"addnorm predict {run}\n"
    )
    assert not (tmp_path / "out").exists()


def test_lint_opens_the_run_of_a_classifier(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", run, "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)


# --- ends -----------------------------------------------------------------------------------------


def test_values_that_are_not_finite(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor([[0.2, 0.3, 0.5], [float("nan")] * 3])

    monkeypatch.setattr(TextClassifier, "probabilities", broken)
    assert main(["predict", run, "a", "b"]) == 1
    told = capsys.readouterr()
    assert "the probabilities of input 2 are not finite" in told.err
    assert not told.out


def test_what_there_is_when_interrupted(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> Any:
        yield predict.Input("a", "a")
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_stdin_inputs", lines)
    assert main(["predict", run, "-", "--batch-size", "1"]) == 130
    told = capsys.readouterr()
    assert told.out.endswith(" a\n")
    assert "interrupted" in told.err


def test_a_reader_that_has_enough(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is read in vain once nobody listens."""
    read: list[str] = []

    def lines() -> Any:
        for name in "abc":
            read.append(name)
            yield predict.Input(name, name)

    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(predict, "_stdin_inputs", lines)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["predict", run, "-", "--batch-size", "1"]) == 1
    assert read == ["a"]


# --- files of inputs ------------------------------------------------------------------------------


def test_inputs_from_files_and_answers_into_one(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that cannot be used has its place, the others are answered, and the status is 1."""
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n\n{"txt": "x"}\n{"text": "six"\n[7]\n')
    out = tmp_path / "out.jsonl"
    words = [str(tmp_path / "a.txt"), "alone", str(tmp_path / "b.jsonl"), "--batch-size", "2"]
    assert main(["predict", run, *words, "--json", "--out", str(out)]) == 1
    assert not capsys.readouterr().out
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [a["input"] for a in answers[:5]] == ["one", "", "three", "alone", "four"]
    assert all(a["label"] in LABELS for a in answers[:5])
    assert [list(a) for a in answers[5:]] == [["input", "error"]] * 3
    assert answers[5]["input"] == {"txt": "x"}
    assert "b.jsonl:4" in answers[6]["error"]
    assert "b.jsonl:5: expected an object" in answers[7]["error"]
    assert main(["predict", run, *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert sum(line.startswith("error: ") for line in lines) == 3
    again = addnorm.load(run).predict(["one", "alone"])
    for a, b in zip(again, (answers[0], answers[3]), strict=True):
        assert a == {**b, "probability": pytest.approx(b["probability"], abs=1e-6)}


def test_an_option_that_a_model_does_not_have(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", run, "a", "--beams", "4"]) == 2
    assert f"--beams has no effect: {run} takes --top" in capsys.readouterr().err
    assert main(["eval", run, "a.csv", "--beams", "4"]) == 2
    assert f"--beams has no effect: {run} takes --top" in capsys.readouterr().err


def test_an_evaluation(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.csv"
    file.write_text("text,label\na fine day,good\nx,bad\n")
    assert main(["eval", run, str(file), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    labels = [a["label"] for a in addnorm.load(run).predict(["a fine day", "x"])]
    assert figures["accuracy"] == ((labels[0] == "good") + (labels[1] == "bad")) / 2
    assert main(["eval", run, str(file)]) == 0
    assert f"accuracy {figures['accuracy']:.4f}\ntexts 2\n" in capsys.readouterr().out
    assert main(["eval", run, str(file), "--stride", "2"]) == 2
    assert "--stride has no effect" in capsys.readouterr().err
