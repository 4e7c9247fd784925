"""The benchmark of lint: every fault is one, every control runs, and the figures are counted right.

How many faults lint finds is not asked here.
"""

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest
import torch
from torch import nn

from benchmarks import lint, lint_faults, lint_faults_unseen, lint_hosts
from benchmarks.lint_controls import CONTROLS
from benchmarks.lint_hosts import (
    FAMILIES,
    HOSTS,
    RULES,
    VOCAB,
    Case,
    Fault,
    available,
    built,
    edited,
    gpt,
    hf_gpt2,
    patched,
)

ROOT = Path(lint.__file__).parent.parent
SEEN, UNSEEN = list(lint_faults.FAULTS), list(lint_faults_unseen.FAULTS)
TWINS = HOSTS | lint_faults_unseen.MORE_HOSTS
# The unseen ones are not named, so that a failure here does not show them.
CASES = [pytest.param(f, id=f.name) for f in SEEN]
CASES += [pytest.param(f, id=f"unseen-{i}") for i, f in enumerate(UNSEEN)]

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True",  # nn.Transformer has no way to ask for less
    "ignore:optimizer contains a parameter group with duplicate",  # a fault says so itself
    "ignore:The PyTorch API of nested tensors",
)


# --- what there is --------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    for some in (SEEN + UNSEEN, CONTROLS):
        counts = Counter(one.name for one in some)
        assert max(counts.values()) == 1, counts.most_common(1)


def test_every_rule_is_covered() -> None:
    counts = Counter(f.rule for f in SEEN + UNSEEN)
    assert set(counts) == set(RULES)
    assert min(counts.values()) >= 2, counts.most_common()[-1]
    assert {f.rule for f in SEEN} == set(RULES)
    assert {a for f in SEEN + UNSEEN for a in f.also} <= set(RULES)
    for family, rules in FAMILIES.items():
        assert any(f.rule in rules for f in UNSEEN), family


def test_there_are_enough() -> None:
    assert len(SEEN + UNSEEN) >= 90
    assert 0.3 < len(UNSEEN) / len(SEEN + UNSEEN) < 0.4
    assert len(CONTROLS) >= 30
    foreign = {f.host for f in SEEN if f.host.startswith(("hf_", "torch_", "x_"))}
    assert len(foreign) >= 3


def test_what_tutorials_get_wrong_is_there() -> None:
    assert set(lint_faults.TUTORIAL_MISTAKES.values()) <= {f.name for f in SEEN}


@pytest.mark.parametrize("module", [lint_hosts, lint_faults, lint_faults_unseen])
def test_no_host_is_made_of_our_parts(module) -> None:
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("addnorm")
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("addnorm") for a in node.names)


# --- a fault is a fault ---------------------------------------------------------------------------


def structure(case: Case) -> list[object]:
    """Parameters with what they share and hold, and where the optimizer has them."""
    named = list(case.model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, p in named:
        first.setdefault(id(p), name)
    seen: list[object] = [
        (n, first[id(p)], tuple(p.shape), p.requires_grad, p.double().sum().item())
        for n, p in named
    ]
    groups = [] if case.optimizer is None else case.optimizer.param_groups
    return seen + [(g["weight_decay"], [first.get(id(p)) for p in g["params"]]) for g in groups]


def calls(case: Case, host: str) -> list[object]:
    """The case's inputs, and the same with a sample that is all padding."""
    inputs = case.inputs
    if inputs is None:
        inputs = torch.randint(5, VOCAB, (3, 11), generator=torch.Generator().manual_seed(0))
    if host.startswith("hf_") and torch.is_tensor(inputs):
        mask = torch.ones_like(inputs)
        mask[0, 6:] = 0
        return [{"input_ids": inputs}, {"input_ids": inputs, "attention_mask": mask}]
    if host == "classifier":
        blank = inputs.clone()
        blank[-1] = 0
        return [inputs, blank]
    blanked = dict(inputs) if isinstance(inputs, dict) else {}
    for name in {"mask", "src_mask", "pad"} & set(blanked):
        blanked[name] = blanked[name].clone()
        blanked[name][-1] = name == "pad"
        return [inputs, blanked]
    return [inputs]


def forward(model: nn.Module, inputs: object) -> torch.Tensor:
    torch.manual_seed(0)
    if isinstance(inputs, dict):
        out = model(**inputs)
    elif isinstance(inputs, tuple):
        out = model(*inputs)
    else:
        out = model(inputs)
    return getattr(out, "logits", out).float()


def behaviour(case: Case, host: str) -> list[torch.Tensor]:
    """Outputs and gradients with weights moved off their start, where norms are all alike."""
    model = case.model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype), alpha=0.1)
    outputs = [forward(model, inputs) for inputs in calls(case, host)]
    (outputs[0] ** 2).mean().backward()
    grads = [torch.zeros(1) if p.grad is None else p.grad.float() for p in model.parameters()]
    return [torch.nan_to_num(x.detach(), nan=1e3) for x in [*outputs, *grads]]


def differs(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """The twins' arithmetic is the same, bit for bit, so that any difference is the edit's.

    1e-6 of the largest value is ten times fp32's rounding; it is there for edits that are mere
    reorderings, and the smallest that are not (an eps of 1e-6, moved) reach twice of it.
    """
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or (x - y).abs().max() > 1e-6 * y.abs().max():
            return True
    return False


@cache
def twin(host: str) -> tuple[Case, list[object], list[torch.Tensor]]:
    case = built(host, TWINS[host])
    return case, structure(case), behaviour(case, host)


@pytest.mark.parametrize("fault", CASES)
def test_a_fault_is_a_fault(fault: Fault) -> None:
    right, its_structure, its_behaviour = twin(fault.host)
    # from the twin's seed: what differs is the edit, not the draw
    wrong = built(fault.host, fault.make)
    assert wrong.causal is right.causal
    assert fault.rule not in fault.also
    assert (wrong.optimizer is None) == (right.optimizer is None)
    if structure(wrong) == its_structure:
        assert differs(behaviour(wrong, fault.host), its_behaviour)
    else:
        forward(wrong.model.eval(), calls(wrong, fault.host)[0])


def test_a_twin_does_not_differ_from_itself() -> None:
    for host in ("gpt", "encoder2017", "modern"):
        case = built(host, TWINS[host])
        assert structure(case) == twin(host)[1]
        assert not differs(behaviour(case, host), twin(host)[2])


def test_an_edit_whose_place_is_gone_or_not_unique_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'x \+ y' is there 0 times in GPTBlock\.forward"):
        edited(gpt, "GPTBlock.forward", "x + y", "y")()
    with pytest.raises(ValueError, match="is there 3 times"):
        edited(gpt, "GPTAttention.forward", ".transpose(1, 2)\n        ", "")()
    if available("hf_gpt2"):
        with pytest.raises(ValueError, match="is there 0 times"):
            patched(hf_gpt2, "GPT2Block.forward", "no such text", "")()
        with pytest.raises(ValueError, match="no GPT3Block"):
            patched(hf_gpt2, "GPT3Block.forward", "residual", "")()


# --- a control runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_a_control_runs(control) -> None:
    case = built(control.name, control.make)
    inputs = case.inputs
    if inputs is None:
        inputs = torch.randint(5, VOCAB, (3, 11))
    with torch.no_grad():
        out = forward(case.model.eval(), inputs)
    assert torch.isfinite(out).all()
    assert set(control.known) <= set(RULES)


def test_ours_are_there_on_every_scheme() -> None:
    from addnorm import schemes

    assert {f"addnorm {n}" for n in schemes.names()} <= {c.name for c in CONTROLS}
    assert {f"host {n}" for n in HOSTS if available(n)} <= {c.name for c in CONTROLS}


def test_a_model_comes_from_the_seed_of_its_name() -> None:
    one, same, other = (built(n, gpt).model.tok.weight for n in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- the counting ---------------------------------------------------------------------------------

RIGHT = "no-residual"


def outcome(kind, name, *found, unknown=(), checked=RULES, crash="", seconds=1.0) -> lint.Outcome:
    return lint.Outcome(
        kind,
        name,
        tuple((rule, severity, "", "") for rule, severity in found),
        tuple((rule, "", "") for rule in unknown),
        tuple(checked),
        seconds,
        crash,
    )


def judged(*outcomes, kind="seen", controls=()):
    faults = [Fault(o.name, RIGHT, "gpt", gpt) for o in outcomes if o.kind == kind]
    told = {(o.kind, o.name): o for o in outcomes}
    return lint.judged({kind: faults}, controls, told)


def test_found_means_found_here_and_not_in_the_twin() -> None:
    clean = outcome("control", "host gpt")
    result = judged(
        clean,
        outcome("seen", "found", (RIGHT, "note"), unknown=[RIGHT]),
        outcome("seen", "silent", ("dead-branch", "error")),
        outcome("seen", "unknown", unknown=[RIGHT]),
        outcome("seen", "crash", crash="ValueError: x"),
    )
    assert result["recall"]["seen"] == {RIGHT: {"faults": 4, "found": 1, "unknown": 1}}
    why = {name: why for _, _, name, why, _ in result["missed"]}
    assert why == {"silent": "silent", "unknown": "unknown", "crash": "crash"}
    assert result["missed targets"] == ["recall on seen faults 25.0% < 95%"]

    alarmed = replace(clean, findings=((RIGHT, "error", "", ""),))
    result = judged(alarmed, outcome("seen", "found", (RIGHT, "error")))
    assert result["recall"]["seen"][RIGHT]["found"] == 0
    assert result["missed"][0][3] == "the twin has it too"


def test_recall_of_all_is_no_missed_target() -> None:
    result = judged(outcome("control", "host gpt"), outcome("seen", "found", (RIGHT, "error")))
    assert result["missed targets"] == []


def test_the_unseen_are_not_told() -> None:
    result = judged(outcome("control", "host gpt"), outcome("unseen", "secret"), kind="unseen")
    assert result["missed"]
    assert not result["told"]
    assert "secret" not in lint.page(result)
    assert "0 of 1 found: 0.0%" in lint.page(result)


def test_a_known_defect_is_no_false_alarm() -> None:
    name = "torch Transformer post-norm"
    result = judged(outcome("control", name, ("double-norm", "error")), controls=[name])
    assert result["missed targets"] == []
    assert result["controls"]["true"][0][:2] == (name, "double-norm")
    assert result["controls"]["with an alarm"] == {"error": 0, "warning": 0, "note": 0}


def test_false_alarms_count_once_by_their_gravest() -> None:
    found = (RIGHT, "note"), (RIGHT, "error"), (RIGHT, "warning"), ("dead-branch", "note")
    result = judged(outcome("control", "host gpt", *found), controls=["host gpt"])
    alarms = result["controls"]["alarms"]
    assert alarms[RIGHT] == {"error": ["host gpt"], "warning": [], "note": []}
    assert alarms["dead-branch"]["note"] == ["host gpt"]
    assert "false alarms that are errors" in result["missed targets"][0]
    only = judged(outcome("control", "host gpt", (RIGHT, "warning")), controls=["host gpt"])
    assert only["missed targets"] == []


def test_unknown_is_counted_by_rule_and_model() -> None:
    many = [f"rule {i}" for i in range(40)]
    names = ["host gpt", "host modern"]
    asked = outcome("control", names[1], checked=many)
    unknown = ["rule 1"] * 3 + ["rule 2"]  # however often, and whatever was found elsewhere
    few = outcome("control", names[0], ("rule 2", "note"), unknown=unknown, checked=many)
    result = judged(few, asked, controls=names)
    assert result["controls"]["unknown"] == 2 / 80
    assert result["missed targets"] == []
    six = outcome("control", names[0], unknown=many[:6], checked=many)
    assert judged(six, asked, controls=names)["missed targets"] == ["unknown on controls 7.5% > 5%"]


def test_a_crash_on_a_control_is_a_missed_target() -> None:
    result = judged(outcome("control", "host gpt", crash="ValueError: x"), controls=["host gpt"])
    assert any("raised an exception on ['host gpt']" in line for line in result["missed targets"])


def test_seconds() -> None:
    names = ["host gpt", "host modern", "host seq2seq"]
    some = [outcome("control", n, seconds=s) for n, s in zip(names, (1.0, 9.0, 2.0), strict=True)]
    controls = judged(*some, controls=names)["controls"]
    assert (controls["median seconds"], controls["worst seconds"]) == (2.0, 9.0)
    assert controls["slowest"] == "host modern"


STAND_IN = """
from addnorm.linting.report import Finding, Report
def lint(model, inputs=None, *, causal=None, optimizer=None):
    norms = [m for m in model.modules() if "GPTNorm" in type(m).__name__]
    found = []
    if len(norms) == 4:  # one less for each of three blocks
        found = [Finding(rule="shared-norm", severity="error", module="", evidence={"norms": 4},
                         message="", remedy="")]
    return Report(tuple(found), (), ("shared-norm",))
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_command(tmp_path) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    path = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; from benchmarks.lint import main; main()"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", path, "--lint", "stand_in:lint", "--jobs", "1", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--seen", "--only", "gpt: one norm at both")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 found: 100.0%" in done.stdout
    done = run("--seen", "--only", "gpt: unbiased", "--json", str(tmp_path / "all.json"))
    assert done.returncode == 1
    assert "missed: norm-unbiased-variance: gpt: unbiased variance (silent" in done.stderr
    assert (tmp_path / "all.json").exists()
    assert run("--only", "no such").stderr == "nothing is called 'no such'\n"
    assert "--write is for the whole" in run("--write", "--seen").stderr
