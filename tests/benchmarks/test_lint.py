"""The benchmark of lint: every fault is one, every control runs, and the figures are counted right.

How many faults lint finds is not asked here.
"""

import ast
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import nn

from addnorm.linting.check import rules_by_name
from benchmarks import lint, lint_faults, lint_faults_more, lint_faults_unseen, lint_hosts
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
SEEN = [*lint_faults.FAULTS, *lint_faults_more.FAULTS]
UNSEEN = list(lint_faults_unseen.FAULTS)
TWINS = HOSTS | lint_faults_more.MORE_HOSTS | lint_faults_unseen.MORE_HOSTS
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
    assert set(counts) == set(RULES) == rules_by_name().keys()
    assert min(counts.values()) >= 2, counts.most_common()[-1]
    assert {f.rule for f in SEEN} == {f.rule for f in UNSEEN} == set(RULES)
    assert {a for f in SEEN + UNSEEN for a in f.also} <= set(RULES)
    assert all(f.also for f in SEEN + UNSEEN if f.either)


def test_the_unseen_are_like_the_seen() -> None:
    for rules in FAMILIES.values():
        seen, unseen = (sum(f.rule in rules for f in some) for some in (SEEN, UNSEEN))
        # the smallest family has 4 of 99: one fault more or less is 1 % of all
        assert abs(seen / len(SEEN) - unseen / len(UNSEEN)) < 0.03


def test_nobody_has_seen_the_hosts_of_the_unseen() -> None:
    assert not {f.host for f in UNSEEN} & {f.host for f in SEEN}
    assert {f.host for f in UNSEEN} <= set(lint_faults_unseen.MORE_HOSTS)
    assert len({f.host for f in UNSEEN}) >= 5


def test_there_are_enough() -> None:
    assert len(UNSEEN) >= 60
    assert 0.3 < len(UNSEEN) / len(SEEN + UNSEEN) < 0.4
    assert len(CONTROLS) >= 30
    foreign = {f.host for f in SEEN if f.host.startswith(("hf_", "torch_", "x_"))}
    assert len(foreign) >= 3


def test_what_tutorials_get_wrong_is_there() -> None:
    assert set(lint_faults.TUTORIAL_MISTAKES.values()) <= {f.name for f in SEEN}


@pytest.mark.parametrize("module", [lint_hosts, lint_faults, lint_faults_more, lint_faults_unseen])
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
    masks = {"mask", "src_mask", "attention_mask", "pad", "src_pad", "padding_mask"}
    for name in masks & set(blanked):
        blanked[name] = blanked[name].clone()
        blanked[name][-1] = name in ("pad", "src_pad", "padding_mask")
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


def behaviour(case: Case, host: str, lift: float = 0.0) -> list[torch.Tensor]:
    """Outputs and gradients with weights moved off their start, where norms are all alike.

    ``lift`` is added to biases: it takes a large mean to show that a variance is inexact.
    """
    model = case.model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype), alpha=0.1)
            if p.dim() == 1:
                p.add_(lift)
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
        different = differs(behaviour(wrong, fault.host), its_behaviour)
        if not different and fault.rule == "norm-low-precision":
            twins = (built(fault.host, make) for make in (fault.make, TWINS[fault.host]))
            different = differs(*(behaviour(case, fault.host, lift=100.0) for case in twins))
        assert different
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


def test_every_twin_is_a_control() -> None:
    controls = {c.name: c for c in lint._controls()}
    assert len(controls) == len(lint._controls())
    assert {f"host {f.host}" for f in SEEN + UNSEEN} <= set(controls)
    for host, known in lint_faults_unseen.KNOWN.items():
        assert set(known) <= set(RULES)
        if available(host):
            assert controls[f"host {host}"].known == known


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


def test_either_rule_is_as_good_where_a_fault_says_so() -> None:
    for either, found in ((True, 1), (False, 0)):
        fault = Fault("one", RIGHT, "gpt", gpt, ("dead-branch", "linear-mlp"), either)
        mine = outcome("seen", "one", ("linear-mlp", "error"))
        for rule, in_twin in (("unused-norm", 0), ("linear-mlp", 1)):
            twins = outcome("control", "host gpt", (rule, "error"))
            told = {("seen", "one"): mine, ("control", "host gpt"): twins}
            table = lint.judged({"seen": [fault]}, (), told)["recall"]["seen"]
            assert table[RIGHT]["found"] == found * (not in_twin)


def test_recall_of_all_is_no_missed_target() -> None:
    result = judged(outcome("control", "host gpt"), outcome("seen", "found", (RIGHT, "error")))
    assert result["missed targets"] == []


def test_the_unseen_are_not_told() -> None:
    result = judged(outcome("control", "host gpt"), outcome("unseen", "secret"), kind="unseen")
    assert result["missed"]
    assert not result["told"]
    assert "secret" not in lint.page(result)
    assert "0 of 1 found: 0.0%" in lint.page(result)
    assert result["missed targets"] == []  # there is none for the unseen


def test_a_known_defect_is_no_false_alarm() -> None:
    name = "torch Transformer post-norm"
    result = judged(outcome("control", name, ("double-norm", "error")), controls=[name])
    assert result["missed targets"] == []
    assert result["controls"]["true"][0][:2] == (name, "double-norm")
    assert result["controls"]["with an alarm"] == {"error": 0, "warning": 0, "note": 0}


def test_the_page_says_what_was_run_and_how() -> None:
    name = "host gpt"
    found = outcome("seen", "found", (RIGHT, "error"), seconds=41.0)
    told = " ".join(lint.page(judged(outcome("control", name), found, controls=[name])).split())
    assert "1 faults in 1 models, 0 of which come" in told
    assert "and 1 correct models" in told
    assert "42 seconds of lint" in told
    assert "make bench-lint" in told
    assert lint.FIRST_LOOK in told


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
from addnorm.linting import Finding, Report
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


def whole(path: Path, *words: str) -> dict[str, Any]:
    """The figures of the whole benchmark, which has to meet its targets."""
    command = [sys.executable, "-m", "benchmarks.lint", "--jobs", "2", "--json", str(path), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert path.exists(), done.stderr
    result = json.loads(path.read_text())["result"]
    told = "\n".join([*result["missed targets"], *result["told"]])  # of the unseen nothing is told
    seen, controls = result["recall"]["seen"].values(), result["controls"]
    assert sum(r["found"] for r in seen) / sum(r["faults"] for r in seen) >= lint.RECALL, told
    assert controls["unknown"] <= lint.UNKNOWN, told
    assert controls["with an alarm"]["error"] == 0, told
    assert not result["missed targets"], told
    assert done.returncode == 0, done.stderr
    return result


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_targets_are_met(tmp_path, capsys) -> None:
    unseen = whole(tmp_path / "all.json")["recall"]["unseen"].values()
    found, faults = (sum(r[key] for r in unseen) for key in ("found", "faults"))
    with capsys.disabled():
        print(f"\nof {faults} unseen faults {found} were found: {found / faults:.1%}")
