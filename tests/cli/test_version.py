"""``addnorm --version``, alone and with ``--verbose``."""

import platform
import re

import pytest
import torch

import addnorm
from addnorm import ops
from addnorm.cli import main
from addnorm.ops import AttentionCall, AttentionKernel, attention, verification


@pytest.fixture(autouse=True)
def _one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "VERIFIED_DTYPES", (torch.float32,))


def test_verbose_says_what_computes_and_how_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--verbose"]) == 0
    first, second, rest = capsys.readouterr().out.split("\n", 2)
    assert first == f"addnorm {addnorm.__version__}"
    assert second.startswith(f"torch {torch.__version__}, Python {platform.python_version()}, ")
    assert re.search(r"^add_norm +aten +cpu +float32 +\d+ +[\d.]+ +64.00  ok ", rest, re.MULTILINE)
    assert re.search(r"^attention +reference +cpu +float32 ", rest, re.MULTILINE)


def test_a_wrong_kernel_is_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    def ours(call: AttentionCall) -> torch.Tensor:
        return attention.reference(call._replace(scale=1.0))

    withdraw = ops.register(AttentionKernel("ours", ours))
    try:
        assert main(["--version", "--verbose"]) == 1
    finally:
        withdraw()
    assert re.search(r"^attention +ours .* WRONG ", capsys.readouterr().out, re.MULTILINE)


def test_nothing_else_may_follow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--loud"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "--version is followed by --verbose or by nothing, not '--loud'" in captured.err
