"""How a classifier judges whole texts, whatever their length: by windows, of which the mean counts.

A model of texts is called with ids, and which of them are real. Here a text is cut into the windows
that it can read, and what it finds of each is put together.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.rows import padded, windows
from addnorm.data.tokenizer import Tokenizer
from addnorm.temporary import evaluation_mode


@final
class TextFrame(NamedTuple):
    """How much a model reads at once, and what stands around it."""

    context_length: int
    """The most ids of one call, those around a text included."""
    begin: tuple[int, ...] = ()
    """What every window begins with."""
    end: tuple[int, ...] = ()
    """What every window ends with."""

    @property
    def room(self) -> int:
        """The most ids of a text that one call reads."""
        return self.context_length - len(self.begin) - len(self.end)

    def around(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """A part of a text with what begins and ends it."""
        if not (self.begin or self.end):
            return ids
        return np.concatenate([np.array(self.begin, np.int64), ids, np.array(self.end, np.int64)])

    def windows(self, ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The parts by which a text is judged, each as the model reads it."""
        return [self.around(part) for part in windows(ids, self.room)]


def text_ids(text: str, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The ids of a text, however long; one without any has the id 0, whatever that stands for, so
    that there is something to read."""
    return np.array(tokenizer.encode(text) or [0], np.int64)


def shares(logits: Tensor, several: bool) -> Tensor:
    """Logits (..., labels) as probabilities: of labels that exclude each other, or of each label by
    itself, where a text may have several."""
    return logits.sigmoid() if several else logits.softmax(-1)


def probabilities(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    frame: TextFrame,
    several: bool = False,
) -> Tensor:
    """(texts, labels) in float32 on the CPU: of each text the mean over its windows, as ``frame``
    cuts them. They go through the model together, however many they are; there must be one at
    least. ``several``: as in ``shares``."""
    parts = [frame.windows(text_ids(text, tokenizer)) for text in texts]
    device = next(model.parameters()).device
    rows = padded([w for of_text in parts for w in of_text])
    batch = {n: t.to(device) for n, t in rows.items()}
    with evaluation_mode(model.modules()), torch.inference_mode():
        p = shares(model(batch["ids"], batch["valid"]).float(), several).cpu()
    return torch.stack([of_text.mean(0) for of_text in p.split([len(ws) for ws in parts])])
