"""Where in somebody's code a module is written."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import torch
from torch import nn

TORCH = Path(torch.__file__).parent


def modules_around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The module at a path, then those around it, the model last. A path that leads on to something
    else, as that of a parameter does, begins with the innermost module on it."""
    names = path.split(".") if path else []
    for count in range(len(names), -1, -1):
        try:
            yield model.get_submodule(".".join(names[:count]))
        except AttributeError:
            continue


def forward_line(model: nn.Module, path: str) -> tuple[str, int]:
    """(file, line) of the forward of the innermost module on a path that is not torch's own;
    ("", 0) where there is none, or its code is in no file."""
    for module in modules_around(model, path):
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if isinstance(code, CodeType) and is_of_a_user(code.co_filename):
            return code.co_filename, code.co_firstlineno
    return "", 0


def is_of_a_user(file: str) -> bool:
    """Whether there is such a file, and it is not torch's."""
    path = Path(file)
    return path.is_file() and not path.resolve().is_relative_to(TORCH.resolve())
