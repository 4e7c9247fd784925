"""How probable a model finds the answers of conversations: the loss of a training on them, their
perplexity and bits per byte.

What is scored are the tokens of answers and the marks that end them, each after all that its row
has before it; ``ChatTokenizer.rows`` says what is in a row, and what of a long conversation has no
room there.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.data.chat import ChatRow, ChatTokenizer
from addnorm.data.rows import padded
from addnorm.temporary import evaluation_mode

IGNORED = -100  # what F.cross_entropy passes over
MOST_NATS = 700.0  # the exponential of more is no float64
ROWS = 32  # that go through the model at once in an evaluation


class DialogueScore(NamedTuple):
    """How probable answers are, all together: ``nats``, -log p of ``tokens`` tokens, the ends of
    answers among them; ``bytes``: how many the texts have in UTF-8."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """exp(nats per token), finite."""
        return math.exp(min(self.loss, MOST_NATS))

    @property
    def bits_per_byte(self) -> float:
        """Bits of texts and ends, over the bytes of texts."""
        return self.nats / math.log(2) / max(self.bytes, 1)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        derived = {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return {**derived, **self._asdict()}


def answer_batch(rows: Sequence[ChatRow]) -> dict[str, Tensor]:
    """Rows of unlike length as ``ids`` and which of them are a ``target``, both (rows, longest),
    with ids that nobody reads behind the shorter ones."""
    ids = padded([row.ids for row in rows])["ids"]
    target = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        target[i, : len(row.target)] = torch.from_numpy(row.target)
    return {"ids": ids, "target": target}


def answer_nats(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(nats, tokens) of the targets of a batch, summed in float32."""
    ids, target = batch["ids"], batch["target"][:, 1:]
    logits = model(ids[:, :-1]).float()  # (B, T, V)
    targets = ids[:, 1:].masked_fill(~target, IGNORED)
    nll = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nll, target.sum()


def answer_bytes(chat: ChatTokenizer, rows: Sequence[ChatRow]) -> int:
    """How many bytes the answers to learn have, without the marks at their ends."""
    texts = (row.ids[row.target & (row.ids != chat.eos_id)] for row in rows)
    return sum(len(chat.tokenizer.decode_bytes(ids.tolist())) for ids in texts)


def total_nats(model: nn.Module, parts: Iterable[Sequence[ChatRow]]) -> tuple[float, int]:
    """(nats, tokens) of the answers in all rows; those of a part go through the model together."""
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    with evaluation_mode(model.modules()), torch.no_grad():
        for part in parts:
            batch = {name: t.to(device) for name, t in answer_batch(part).items()}
            nll, count = answer_nats(model, batch)
            nats, tokens = nats + float(nll), tokens + int(count)
    return nats, tokens


def score_rows(
    model: nn.Module,
    chat: ChatTokenizer,
    rows: Sequence[ChatRow],
    *,
    batch_size: int = ROWS,
    progress: Callable[[int, int], None] = lambda count, total: None,
) -> DialogueScore:
    """The answers in all rows, ``batch_size`` of them at a time. ``progress`` is told how many are
    done, and of how many. ``FloatingPointError`` if the model computes NaN."""

    def parts() -> Iterator[Sequence[ChatRow]]:
        for first in range(0, len(rows), batch_size):
            yield rows[first : first + batch_size]
            progress(min(first + batch_size, len(rows)), len(rows))

    nats, tokens = total_nats(model, parts())
    if not math.isfinite(nats):
        raise FloatingPointError("the likelihood of the answers is not finite")
    return DialogueScore(nats, tokens, answer_bytes(chat, rows))
