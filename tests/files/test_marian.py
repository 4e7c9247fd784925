"""Marian's folders: read as transformers reads them, written as it reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from addnorm.files.folders import CONFIG, GENERATION, SAFETENSORS, WeightsError
from addnorm.generation.search import search
from addnorm.models.seq2seq import Seq2Seq

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 37,
    "d_model": 21,  # odd: there is a sine more than cosines
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 33,
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": 36,
    "decoder_start_token_id": 36,
    "init_std": 0.3,  # far from zero: what is results differs from row to row
}
SEPARATE = {
    "share_encoder_decoder_embeddings": False,
    "decoder_vocab_size": 29,
    "pad_token_id": 28,
    "decoder_start_token_id": 28,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shared": ({}, {"bad_words_ids": [[36], [3, 5]], "renormalize_logits": True}),
    "separate": (SEPARATE, {"bad_words_ids": [[28]], "num_beams": 4, "early_stopping": True}),
    "padding 0": (
        {
            "scale_embedding": False,
            "activation_function": "gelu",
            "pad_token_id": 0,
            "decoder_start_token_id": 5,
            "eos_token_id": 2,
            "forced_eos_token_id": None,
        },
        {},
    ),
}


def theirs(folder: Path, sizes: dict[str, Any], how: dict[str, Any]) -> Any:
    """Random weights, none of them special."""
    torch.manual_seed(len(sizes))
    model = transformers.MarianMTModel(transformers.MarianConfig(**{**SIZES, **sizes})).eval()
    model.final_logits_bias.normal_()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name or "norm" in name:
                p.add_(0.2 * torch.randn_like(p))
    for name, value in how.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return model


def batch(rows: int, length: int, most: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(most, (rows, length), generator=torch.Generator().manual_seed(rows))
    return ids, torch.arange(length) < torch.tensor([length - 2 * i for i in range(rows)])[:, None]


@pytest.fixture(scope="module", params=CASES)
def both(request: Any, tmp_path_factory: Any) -> tuple[Any, Seq2Seq, Path]:
    folder = tmp_path_factory.mktemp("marian")
    model = theirs(folder, *CASES[request.param])
    return model, Seq2Seq.from_pretrained(folder), folder


def test_logits_are_theirs(both: Any) -> None:
    other, ours, _ = both
    ids, valid = batch(4, 9, 37)
    target = torch.randint(ours.config.targets, (4, 6))
    with torch.no_grad():
        want = other(ids, attention_mask=valid.long(), decoder_input_ids=target).logits
        results = ours(ids, target, valid)
    torch.testing.assert_close(results, want, atol=1e-5, rtol=1e-5)
    count = sum(p.numel() for p in other.parameters() if p.requires_grad)
    bias = ours.config.targets  # a buffer there
    assert sum(p.numel() for p in ours.parameters()) == count + bias


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("length", [2, 15])
def test_what_is_generated_is_theirs(both: Any, beams: int, length: int) -> None:
    other, ours, _ = both
    for rows, columns in ((1, 1), (5, 11)):
        ids, valid = batch(rows, columns, 37)
        for penalty in (1.0, 0.3) if beams > 1 else (1.0,):
            want = other.generate(
                ids,
                attention_mask=valid.long(),
                num_beams=beams,
                length_penalty=penalty,
                max_new_tokens=length,
                return_dict_in_generate=True,
                output_scores=True,
            )
            options: dict[str, Any] = {"beams": beams, "length_penalty": penalty}
            assert torch.equal(ours.generate(ids, length, valid=valid, **options), want.sequences)
            if beams > 1:
                with torch.no_grad():
                    bound = ours.bind(ids, valid)
                results = search(bound, rows, ours.rules, max_new_tokens=length, **options)
                scores = torch.tensor([of_row[0].score for of_row in results])
                torch.testing.assert_close(scores, want.sequences_scores, atol=1e-5, rtol=1e-5)


def test_what_is_written_is_read_by_both(both: Any, tmp_path: Path) -> None:
    other, ours, folder = both
    ours.save_pretrained(tmp_path / "again", format="marian")
    mine, others = (load_file(f / SAFETENSORS) for f in (tmp_path / "again", folder))
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    again = transformers.MarianMTModel.from_pretrained(tmp_path / "again").eval()
    ids, valid = batch(3, 7, 37)
    mask = valid.long()
    options = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 9}
    assert torch.equal(again.generate(ids, **options), other.generate(ids, **options))
    back = Seq2Seq.from_pretrained(tmp_path / "again", dropout=0.0)
    assert back.rules == ours.rules
    assert back.config.dropout == 0.0
    assert ours.config.dropout == other.config.dropout


def test_old_folders_say_everything_in_config_json_and_store_every_copy(tmp_path: Path) -> None:
    other = theirs(tmp_path, {}, {})
    (tmp_path / GENERATION).unlink()
    card = json.loads((tmp_path / CONFIG).read_text())
    card |= {"bad_words_ids": [[36]], "num_beams": 6, "max_length": 20, "normalize_before": False}
    (tmp_path / CONFIG).write_text(json.dumps(card))
    state = other.state_dict()
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / SAFETENSORS, {"format": "pt"})
    ours = Seq2Seq.from_pretrained(tmp_path)
    other = transformers.MarianMTModel.from_pretrained(tmp_path).eval()
    ids, valid = batch(2, 6, 36)
    want = other.generate(ids, attention_mask=valid.long())  # by all that the folder says
    assert torch.equal(ours.generate(ids, beams=6, valid=valid), want)
    state["model.encoder.embed_positions.weight"] = torch.randn(33, 21)
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / SAFETENSORS, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"embed_positions.weight are not the sines of Marian"):
        Seq2Seq.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (CONFIG, {"decoder_ffn_dim": 41}, "encoder_ffn_dim is 40 and decoder_ffn_dim is 41"),
        (CONFIG, {"d_model": "big"}, "d_model"),
        (CONFIG, {"activation_function": "tanh"}, "activation_function is 'tanh', expected one of"),
        (CONFIG, {"d_model": 20}, "20"),
        (CONFIG, {"d_model": 24}, "has shape .*, expected .*belong to different models"),
        (CONFIG, {"decoder_layers": 4}, "decoder.layers.3.* are missing from the weights"),
        (CONFIG, {"decoder_layers": 2}, "holds model.decoder.layers.2.*has no place for"),
        (GENERATION, {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3, which addnorm does"),
        (GENERATION, {"do_sample": True}, "do_sample is True"),
        (GENERATION, {"bad_words_ids": [3]}, r"bad_words_ids is \[3\], expected lists of ids"),
        (GENERATION, {"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\], expected one id"),
        (GENERATION, {"max_length": 1}, "max_length is 1, expected at least 2"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    theirs(tmp_path, {}, {})
    card = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(card | changes))
    with pytest.raises(WeightsError, match=message):
        Seq2Seq.from_pretrained(tmp_path)
