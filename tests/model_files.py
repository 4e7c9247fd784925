"""Files that make a model, for commands to open."""

from pathlib import Path

GOOD = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
"""


def write(folder: Path, text: str, name: str = "net.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)
