"""The register of kinds of models: open to others, and clear about what it does not know."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm import Tokenizer
from addnorm.files import folders, register
from addnorm.files.folders import WeightsError
from addnorm.pretrained import Loaded, ModelKind, kind_of
from addnorm.uses.labels import Labels

# --- a model from outside, with a file format of its own ------------------------------------------


class WordCount(nn.Module):
    """Logits (B, 2) from the number of words in a text."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))

    def forward(self, texts: Sequence[str]) -> Tensor:
        n = torch.tensor([len(text.split()) for text in texts])
        return torch.stack([torch.zeros(len(texts)), self.slope * (n - 3)], -1)


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    card = folders.read_json(folder / "config.json")
    model = WordCount(float((folder / "slope.txt").read_text()))
    return Loaded(model.eval(), None, ("short", "long"), card)


def write(model: WordCount, folder: Path, tokenizer: object, labels: object) -> None:
    def fill(work: Path) -> None:
        (work / "slope.txt").write_text(str(model.slope.item()))
        folders.write_json(work / "config.json", {"model_type": "word_count"})

    folders.write(folder, fill)


def use(loaded: Loaded) -> Labels:
    return Labels(lambda texts: loaded.model(texts).softmax(-1), loaded.labels)


KIND = ModelKind(("word_count",), WordCount, "a counter of words", read, write, use)

# --------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(register, "_KINDS", dict(register._KINDS))
    register.register(KIND)
    return


@pytest.mark.usefixtures("registered")
def test_a_model_from_outside_with_a_format_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addnorm.save(WordCount(0.5), tmp_path / "m")
    model, tokenizer, labels, card = addnorm.load(tmp_path / "m")
    assert model(["one two three four"]).tolist() == [[0.0, 0.5]]
    assert (tokenizer, labels) == (None, ("short", "long"))
    assert card == {"model_type": "word_count"}
    assert (tmp_path / "m" / folders.CHECKSUMS).exists()

    from addnorm.cli import main

    assert main(["predict", str(tmp_path / "m"), "a b c d e f g", "a", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["label"] for one in answers] == ["long", "short"]
    assert main(["generate", str(tmp_path / "m"), "a"]) == 2
    assert "is a counter of words" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_a_cell_of_a_notebook_runs_again_and_another_model_is_refused() -> None:
    register.register(KIND)
    with pytest.raises(ValueError, match="'word_count' is registered already, for a counter of"):
        register.register(ModelKind(("word_count",), nn.Linear, "a line", read, write))
    with pytest.raises(ValueError, match="'gpt2' is registered already, for a language model"):
        register.register(ModelKind(("toy", "gpt2"), nn.Linear, "a line", read, write))
    assert not register.is_known("toy"), "nothing of it is registered"


def test_what_has_no_format_is_told() -> None:
    with pytest.raises(
        WeightsError, match=r"no format for a Linear, only for Bert, .*TextClassifier,? ?.*;"
    ):
        kind_of(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["gtp2", None, 3, ["gpt2"]])
def test_an_unknown_model_type_is_told(name: object, tmp_path: Path) -> None:
    folders.write_json(tmp_path / "config.json", {"model_type": name})
    with pytest.raises(WeightsError, match=r"config\.json: model_type is .*, expected one of gpt2"):
        addnorm.load(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert register.tokenizer_beside(tmp_path) is None
    Tokenizer.bytes().save(tmp_path)
    tokenizer = register.tokenizer_beside(tmp_path)
    assert tokenizer is not None
    assert tokenizer.identity == Tokenizer.bytes().identity
    (tmp_path / "addnorm_tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="the tokenizer beside the model cannot be read: "):
        register.tokenizer_beside(tmp_path)
