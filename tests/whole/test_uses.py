"""What the uses have in common: they learn on any scheme, and lint finds nothing wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import addnorm
from addnorm import schemes
from addnorm.cli import main
from addnorm.data.tokenizer import Tokenizer
from addnorm.models.bert import Bert
from addnorm.models.bert_config import BertConfig
from addnorm.models.classifier import BODIES, ClassifierConfig, TextClassifier
from addnorm.models.decisions import DecisionConfig, DecisionModel
from addnorm.models.gpt import GPT
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.models.gpt_config import GPTConfig
from addnorm.models.recurrent import CELLS, RecurrentConfig, RecurrentLM
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig
from addnorm.tasks.recipes import RECIPES
from tests.nets import stir
from tests.whole.test_mistakes import base, material

__all__ = ["material"]  # a fixture

SIZES = {"vocab_size": 257, "context_length": 32, "dim": 16}
HEADED = {**SIZES, "n_layers": 2, "n_heads": 2}


def bert(head: str) -> Bert:
    return Bert(BertConfig(**HEADED, head=head))


# As they are saved by the tasks: the heads that have one, and every body and cell.
GOOD: dict[str, Callable[[], nn.Module]] = {
    **{
        f"classifier on {body}": lambda body=body: TextClassifier(  # type: ignore[misc]
            ClassifierConfig(**SIZES, classes=2, n_heads=2, body=body, pairs=50)
        )
        for body in BODIES
    },
    "classifier on a gpt": lambda: GPTClassifier(GPTConfig(**HEADED), 2),
    **{f"bert {head}": lambda head=head: bert(head) for head in ("masked", "classify", "answer")},  # type: ignore[misc]
    "seq2seq": lambda: Seq2Seq(
        Seq2SeqConfig(**SIZES, n_heads=2, encoder_layers=2, decoder_layers=2)
    ),
    **{
        cell: lambda cell=cell: RecurrentLM(RecurrentConfig(**SIZES, n_layers=2, cell=cell))  # type: ignore[misc]
        for cell in CELLS
    },
    "gpt": lambda: GPT(GPTConfig(**HEADED)),
    **{
        f"classifier of pictures by {how[0]}": lambda how=how: ViT(  # type: ignore[misc]
            ViTConfig(
                **{"classes": 2, "height": 8, "width": 12, "patch": 4, "dim": 16},
                n_layers=2,
                n_heads=2,
                embedding=how[0],
                pooling=how[1],
            )
        )
        for how in (("patches", "class"), ("convolutions", "mean"))
    },
    **{
        f"decisions by {kind}": lambda kind=kind: DecisionModel(  # type: ignore[misc]
            DecisionConfig(
                **{"states": 5, "actions": 3, "state_kind": kind, "action_kind": kind},
                **{"dim": 16, "n_layers": 2, "n_heads": 2, "context_length": 32},
            )
        )
        for kind in ("number", "vector")
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_lint_finds_nothing_wrong(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder as a run has it; what is told is at most a note."""
    torch.manual_seed(0)
    model = GOOD[name]()
    labels = ["a", "b"] if "classif" in name else None
    tokenizer = None if isinstance(model, ViT | DecisionModel) else Tokenizer.bytes()
    addnorm.save(model, tmp_path / "model", tokenizer=tokenizer, labels=labels)
    assert main(["lint", str(tmp_path), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {finding["severity"] for finding in findings} <= {"note"}


LEARNED = (
    "classify_text",
    "classify_gpt2",
    "pretrain_bert",
    "finetune_bert",
    "answer",
    "translate",
    "classify_images",
    "decide",
    "transcribe",
    "classify_sounds",
)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes.names())
@pytest.mark.parametrize("recipe", [*LEARNED, "chat"])
def test_a_step_on_any_scheme(recipe: str, scheme: str, material: Path, tmp_path: Path) -> None:
    """Its loss is a number, and a gradient reaches every parameter, of a model that is not as it
    began: there some are zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {**base(recipe, material), "model.scheme": scheme}
    if recipe == "classify_gpt2":
        GPT(GPTConfig(**HEADED, scheme=scheme)).save_pretrained(
            tmp_path / "gpt", tokenizer=Tokenizer.bytes()
        )
        settings = {**base(recipe, material), "init_from": str(tmp_path / "gpt")}
    task = RECIPES[recipe]().changed(settings).build()
    model: Any = stir(task.model()).train()
    total, count, _ = task.loss(model, task.batch("train", 0, 0, 0, 1))
    loss = total / count
    loss.backward()
    assert loss.isfinite()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    without = {name for name, g in gradients.items() if not g.any()}
    # a number more for all places of a passage changes no probability: its gradient is a rounding
    assert without <= ({"head.bias"} if recipe == "answer" else set())
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    model.after_step(1)
    total, count, _ = task.loss(model, task.batch("train", 0, 1, 0, 1))
    assert total.isfinite()
