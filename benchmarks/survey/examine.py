"""One architecture, built and linted in a process of its own with limits.

The libraries are imported once; each architecture is examined by a fork, so that neither memory nor
a crash nor a hook of one reaches the next.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from addnorm.anatomy import make_inputs
from addnorm.linting import run as linting
from benchmarks.survey.architectures import Architecture, seeded

SECONDS = 60
"""Of one CPU, for one architecture: a busy machine makes nobody slow."""
MEMORY = 10 * 2**30
PATIENCE = 40
"""As many times as long may it take by the clock."""
LARGE = 30_000_000
"""Parameters beyond which a model counts as not shrunk."""


@dataclass(frozen=True)
class Result:
    """What became of one architecture; a line of the file of results."""

    name: str
    family: str
    third: int
    state: str
    """"linted", "not built", "no inputs", "crash", "over 60 s" or "killed"."""
    why: str = ""
    seconds: float = 0.0
    """Of lint alone."""
    parameters: int = 0
    questions: int = 0
    """How many rules."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[dict[str, str]] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


Task = Callable[[Architecture], Result]


def examined(
    architecture: Architecture, task: Task | None = None, seconds: int = SECONDS
) -> Result:
    """What lint says of it, by a fork that is ended when it takes too much."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, architecture, task or linted, seconds))
    process.start()
    sender.close()
    result: Result | None = None
    try:
        if receiver.poll(seconds * PATIENCE):
            result = receiver.recv()
    except EOFError:
        pass  # it ended without an answer: its exit status says why
    if result is None and process.is_alive():
        process.join(1)
        process.kill()
    process.join()
    if result is not None:
        return result
    over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
    state = f"over {seconds} s" if over else "killed"
    return _result(architecture, state, f"exit status {process.exitcode}")


def _answer(sender: Connection, architecture: Architecture, task: Task, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    make_inputs.SECONDS *= PATIENCE  # by the clock too, and bounded by the attempts
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sender.send(task(architecture))
    sender.close()


def build(architecture: Architecture) -> Result:
    """Whether it can be built, without any lint."""
    try:
        model = seeded(architecture)
    except Exception as error:
        return _result(architecture, "not built", _short(error))
    count = sum(p.numel() for p in model.parameters())
    if count > LARGE:
        return _result(architecture, "not built", f"{count} parameters after shrinking")
    return _result(architecture, "built", parameters=count)


def linted(architecture: Architecture) -> Result:
    """What lint says of it, with inputs that it makes up."""
    torch.set_num_threads(1)
    try:
        model = seeded(architecture)
    except Exception as error:
        return _result(architecture, "not built", _short(error))
    count = sum(p.numel() for p in model.parameters())
    if count > LARGE:
        return _result(architecture, "not built", f"{count} parameters after shrinking")
    began = time.process_time()
    try:
        report = linting.lint(model, causal=architecture.causal)
    except Exception as error:
        return _result(architecture, "crash", _short(error) + "\n" + traceback.format_exc())
    seconds = round(time.process_time() - began, 2)
    if any(unknown.rule == "lint" for unknown in report.unknown):
        why = report.unknown[0].why
        return _result(architecture, "no inputs", why, seconds=seconds, parameters=count)
    return _result(
        architecture,
        "linted",
        seconds=seconds,
        parameters=count,
        questions=len(report.checked),
        findings=[
            {
                "rule": f.rule,
                "severity": f.severity,
                "module": f.module,
                "message": f.message,
                "evidence": {k: str(v)[:80] for k, v in dict(f.evidence).items()},
            }
            for f in report.findings
        ],
        unknown=[{"rule": u.rule, "module": u.module, "why": u.why[:300]} for u in report.unknown],
    )


def _result(architecture: Architecture, state: str, why: str = "", **more: Any) -> Result:
    return Result(architecture.name, architecture.family, architecture.third, state, why, **more)


def _short(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}"
