"""How probable answers are: token by token, and what is counted."""

import math
from typing import Any

import pytest
import torch

from addnorm import GPT, GPTConfig, Tokenizer
from addnorm.data.chat import END, ROLE_MARKS, TOKENS, ChatTokenizer
from addnorm.data.dialogues import Turn
from addnorm.uses.dialogue_scores import DialogueScore, score_rows
from tests.nets import stir

CHAT = ChatTokenizer(Tokenizer.bytes().with_special([*ROLE_MARKS.values(), END]), TOKENS)
TALK = [
    (Turn("user", "你好"), Turn("assistant", "好"), Turn("user", "a"), Turn("assistant", "bc")),
    (Turn("user", "x" * 50), Turn("assistant", "y" * 30)),
]


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "n_layers": 1, "n_heads": 2, "context_length": 40}
    return stir(GPT(GPTConfig(vocab_size=CHAT.vocab_size, **shape)))


def test_as_token_by_token(model: GPT) -> None:
    rows = [row for talk in TALK for row in CHAT.rows(talk, 40)]
    nats, count = 0.0, 0
    model.train()
    for row in rows:
        ids = torch.from_numpy(row.ids)
        for place in row.target.nonzero()[0].tolist():
            with torch.no_grad():
                logits = model.eval()(ids[None, :place])[0, -1]
            nats -= float(logits.log_softmax(-1)[ids[place]])
            count += 1
    model.train()
    amounts_so_far: list[tuple[int, int]] = []
    for size in (1, 32):
        score = score_rows(
            model,
            CHAT,
            rows,
            batch_size=size,
            progress=lambda *amounts: amounts_so_far.append(amounts),
        )
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert score.tokens == count
    assert amounts_so_far == [(1, 2), (2, 2), (2, 2)]
    assert model.training
    # three and two bytes, each with an end; of the long answer what has room, and no end
    cut = int(rows[1].target.sum())
    assert 15 < cut < 30
    assert (score.tokens, score.bytes) == (3 + 1 + 2 + 1 + cut, 3 + 2 + cut)


def test_the_figures() -> None:
    score = DialogueScore(nats=6 * math.log(8), tokens=6, bytes=9)
    assert score.to_json() == {
        "perplexity": pytest.approx(8.0),
        "bits_per_byte": pytest.approx(2.0),
        "nats": score.nats,
        "tokens": 6,
        "bytes": 9,
    }
    assert DialogueScore(0.0, 0, 0).perplexity == 1.0


def test_nan_is_told(model: GPT) -> None:
    with torch.no_grad():
        model.tokens.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the likelihood of the answers is not finite"):
        score_rows(model, CHAT, CHAT.rows(TALK[0], 40))
