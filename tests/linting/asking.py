"""Asking those rules that change one thing in the inputs, and look who notices.

Each is shown faulty models in three styles (written out, torch.nn, transformers with one line
changed), which it must find and name, and their correct twins, of which it must say nothing.
"""

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn

from addnorm.anatomy.inputs import inputs_from
from addnorm.anatomy.make_inputs import make_inputs
from addnorm.anatomy.specimen import Specimen
from addnorm.linting.check import CHECKS, Check
from addnorm.linting.findings import Finding, Unknown
from addnorm.linting.rule import Rule
from addnorm.linting.rules import arguments, future, masks, modes, positions, samples
from addnorm.linting.subject import Subject


def checks_of(*files: ModuleType) -> tuple[Check, ...]:
    """The checks that stand in some files of ``linting/rules``, in the order in which they run."""
    own = [id(value) for file in files for value in vars(file).values()]
    return tuple(check for check in CHECKS if id(check) in own)


CHECKS_ON_CHANGES = checks_of(future, samples, masks, arguments, positions, modes)


SAID = Path(__file__).parent / "said.txt"
"""A line for each case of each rule: ``rule | case | test in which it is said``."""


@functools.cache
def cases_by_test() -> dict[str, set[tuple[str, str]]]:
    """The id of a test -> the rules and cases for which it is listed."""
    cases: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for line in SAID.read_text().splitlines():
        rule, case, test = line.split(" | ")
        cases[test].add((rule, case))
    return cases


@contextmanager
def cases_said() -> Iterator[set[tuple[str, str]]]:
    """The rules and cases of all findings that are made meanwhile."""
    pairs: set[tuple[str, str]] = set()
    call = Rule.__call__

    def listen(rule: Rule, case: str, module: str, /, **more: Any) -> Finding:
        finding = call(rule, case, module, **more)
        pairs.add((rule.name, case))
        return finding

    with mock.patch.object(Rule, "__call__", listen):
        yield pairs


def ask(
    model: nn.Module, *rules: str, inputs: Any = None, causal: bool | None = None
) -> list[Finding | Unknown]:
    """What is said of these rules, the subject made as lint makes it."""
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        for p in probe.parameters():
            if p.is_floating_point() and bool((p == p.flatten()[0]).all()):
                p.add_(0.1 * torch.randn_like(p))
    call = make_inputs(copy.deepcopy(probe)) if inputs is None else inputs_from(inputs)
    subject = Subject(model, Specimen(probe, call), causal)
    said = [
        one
        for check in CHECKS_ON_CHANGES
        if {*check.names} & {*rules}
        for one in check.run(subject)
    ]
    return [one for one in said if one.rule in rules]


def the(said: list[Finding | Unknown], rule: str) -> Finding:
    found = [one for one in said if one.rule == rule]
    assert len(found) == 1, said
    assert isinstance(found[0], Finding), found
    assert all(not isinstance(v, float) or math.isfinite(v) for v in found[0].evidence.values())
    return found[0]
