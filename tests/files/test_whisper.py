"""Whisper's folders, beside transformers on random weights; our own folders of recognizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm.files.folders import CONFIG, GENERATION, WeightsError
from addnorm.models.speech import Speech, SpeechConfig

transformers = pytest.importorskip("transformers")

ODD = {
    "vocab_size": 53,
    "num_mel_bins": 13,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 29,
    "decoder_ffn_dim": 29,
    "d_model": 42,
    "max_source_positions": 37,
    "max_target_positions": 19,
    "decoder_start_token_id": 50,
    "eos_token_id": 51,
    "pad_token_id": 52,
    "bos_token_id": 51,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [3, 51],
}


@pytest.fixture(scope="module")
def whisper() -> Any:
    """Theirs, no parameter of which is what it begins with."""
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**ODD)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(float("norm.weight" in name), 0.3)
    return model


@pytest.fixture
def folder(whisper: Any, tmp_path: Path) -> Path:
    whisper.save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


FEATURES = torch.randn(3, 13, 74, generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_transformers(whisper: Any, folder: Path) -> None:
    model = addnorm.load(folder).model
    ids = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = whisper(input_features=FEATURES, decoder_input_ids=ids).logits
        torch.testing.assert_close(model(FEATURES, ids), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", [False, True])
def test_generate_is_that_of_transformers(whisper: Any, folder: Path, prefix: bool) -> None:
    """What may not be written, and what must stand at the beginning, is obeyed."""
    if prefix:
        whisper.generation_config.forced_decoder_ids = [[1, 40]]
        changed(
            folder / GENERATION, is_multilingual=False, no_timestamps_token_id=40, max_length=12
        )
    how = {"max_length": 12} if prefix else {}
    try:
        want = whisper.generate(FEATURES, **how)
    finally:
        whisper.generation_config.forced_decoder_ids = None
    out = addnorm.load(folder).model.generate(FEATURES)
    out = out[:, 2 if prefix else 1 :]
    assert out.tolist() == want.tolist()
    assert out.shape[1] > 8


def test_several_languages_begin_with_theirs(folder: Path) -> None:
    changed(
        folder / GENERATION,
        is_multilingual=True,
        no_timestamps_token_id=40,
        lang_to_id={"<|en|>": 41, "<|de|>": 42},
        task_to_id={"transcribe": 43},
    )
    assert addnorm.load(folder).model.prefix == (41, 43, 40)
    changed(folder / GENERATION, forced_decoder_ids=[[1, 42], [2, 43]])
    model = addnorm.load(folder).model
    assert model.prefix == (42, 43, 40)
    assert model.rules.banned == ((5,), (6,), (40, 3), (40, 51))  # the last two behind the prefix
    changed(folder / GENERATION, forced_decoder_ids=[[1, None], [2, 43]], lang_to_id={})
    with pytest.raises(WeightsError, match="of several languages"):
        addnorm.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder_ffn_dim": 30}, "encoder_ffn_dim is 29 and decoder_ffn_dim is 30"),
        ({"activation_function": "mish"}, "activation_function is 'mish'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true"),
        ({"d_model": 45}, "belong to different models"),
        ({"encoder_layers": 4}, "are missing from the weights"),
        ({"decoder_layers": 1}, "has no place for"),
        ({"num_mel_bins": None}, "num_mel_bins"),
    ],
)
def test_what_is_not_understood_is_refused(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    changed(folder / CONFIG, **values)
    with pytest.raises(WeightsError, match=message):
        addnorm.load(folder)


def test_our_own_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Speech(SpeechConfig(vocab_size=9, n_mels=5, dim=8, n_heads=2, decoder_layers=1))
    addnorm.save(model, tmp_path / "a")
    again = addnorm.load(tmp_path / "a").model
    x, ids = torch.randn(1, 5, 20), torch.tensor([[0, 3]])
    for ours, theirs in zip(model.eval()(x, ids), again(x, ids), strict=True):
        assert torch.equal(ours, theirs)
    changed(tmp_path / "a" / CONFIG, strides=7)
    with pytest.raises(WeightsError, match=CONFIG):
        addnorm.load(tmp_path / "a")


def test_a_whisper_in_our_format_writes_the_same(folder: Path, tmp_path: Path) -> None:
    model = addnorm.load(folder).model
    addnorm.save(model, tmp_path / "ours")
    again = addnorm.load(tmp_path / "ours").model
    assert torch.equal(model.generate(FEATURES, 6), again.generate(FEATURES, 6))
