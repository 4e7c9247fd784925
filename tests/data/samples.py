"""Texts, and what was made of them, for the tests of this room."""

import hashlib
import json
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from addnorm.data.prepared import Prepared
from addnorm.data.sources import Source

END = "<|endoftext|>"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SAMPLE = """The cat sat on the mat; the hat that the cat had sat on was flat.
We'll say it's the cat's, they've said, and I'm sure she'd know. 12 123 1234!

日本語の日本は日本。 Ünïcödé ünïcödé 🙂🙂 🙂
    def the(cat):\r\n\treturn cat + "the"   # the   cat.\n\n\n   .\n .
"""
ODD = [*"\n \r.'1²_ié日🙂\u3000\x1f\x85\u0301", "the", "'s", "e\u0301", "cat.\n\n", "a.\n", "  a"]
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.lists(st.sampled_from([*ODD, SAMPLE[:80]]), max_size=40).map("".join)


def stored(prepared: Prepared, name: str) -> list[list[int]]:
    """The ids of each document of a split, end-of-text tokens included."""
    tokens = prepared.split(name)
    ends = [*tokens.starts[1:].tolist(), len(tokens)]
    return [tokens.read(a, b).tolist() for a, b in zip(tokens.starts.tolist(), ends, strict=True)]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class Parts(Source):
    """One document and another, in parts as given."""

    name = "parts"

    def __init__(self, parts: list[str]):
        self._parts = [part for part in parts if part]

    def parts(self):
        for i, part in enumerate(self._parts):
            yield part, i == len(self._parts) - 1
        yield "another", True

    def identity(self):
        return hashlib.sha256(json.dumps(self._parts).encode()).hexdigest()
