"""What TARGET may be, and what is said of one that is not a model."""

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import addnorm
from addnorm.cli import main
from addnorm.cli.target import open_target
from addnorm.linting import Report
from addnorm.linting.report_text import print_report
from tests.model_files import GOOD, write


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as it may be, whatever terminal runs the tests."""
    monkeypatch.setenv("COLUMNS", "100")


def test_a_model_without_values_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "from torch import nn\nmodel = nn.Linear(3, 3, device='meta')\n"
    target, good = write(tmp_path, text), write(tmp_path, GOOD, "good.py")
    for words in ([target], ["--diff", f"{good}:make", target]):
        assert main(["lint", *words]) == 2
        told = capsys.readouterr().err
        assert f"{target}:model has no values: 2 of its 2 parameters and buffers" in told
        assert "build the model on the CPU" in told


def test_a_module_without_a_spec_is_none_to_look_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as the installed command is
    assert main(["lint", "__main__"]) == 2
    assert "__main__ is neither a file, nor a folder, nor a module" in capsys.readouterr().err


OWN = """
from math import sin
from torch import nn
x = 5
layer = nn.Linear(2, 2)
class Net(nn.Sequential):
    part = nn.ReLU
def made(width):
    return Net(layer)
whole = made(2)
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope", "there is no 'nope' in it; there are layer, Net, made, whole"),
        ("laier", "there is no 'laier' in it; did you mean layer?"),
        ("x", "net.py:x is an int, neither a model nor a function"),
        ("x.nope", "there is no 'nope' in it; there is no model, no function and no class in it"),
        ("whole.nope", "there is no 'nope' in it; there is 0"),
        ("Net.nope", "there is no 'nope' in it; there is no model"),
        ("~nobody-of-this-name/net.py:x", "cannot be looked up"),
        ("x" * 300 + ".py:x", "cannot be looked up"),
    ],
)
def test_what_is_not_in_a_file_is_told_with_what_is(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = name if ":" in name else f"{write(tmp_path, OWN)}:{name}"
    assert main(["lint", target]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from torch import nn\na = nn.Linear(2, 2)\nb = nn.Linear(2, 2)\n", ":b  (a model)"),
        ("def one():\n    return 1\ndef two():\n    return 2\n", ":two  (a function)"),
        ("x = 1\n", "has no model and no function"),
        ("def make():\n    return 3\n", "returned int"),
        ("x = 1\n  y = (2\n", "net.py:2: IndentationError: unexpected indent\n  y = (2\n"),
        ("def broken(:\n", "SyntaxError: invalid syntax\n  def broken(:\n             ^\n"),
        ("raise SystemExit(3)\n", "ends the program (exit status 3)"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_files_without_one_model_are_told(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", write(tmp_path, text)]) == 2
    assert says in capsys.readouterr().err


def test_a_factory_that_raises_is_told_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import torch\n\n"
        "def parts():\n"
        "    return torch.nn.MultiheadAttention(50, 4)\n\n"
        "def make(width=50):\n"
        "    return parts()\n"
    )
    target = write(tmp_path, text)
    assert main(["lint", f"{target}:make"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("AssertionError: embed_dim must be divisible by num_heads")
    assert second == f"  {target}:4, in parts: return torch.nn.MultiheadAttention(50, 4)"


def test_an_error_in_a_library_is_told_by_the_line_that_called_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "import json\ndef read(text):\n    return json.loads(text)\n", "parts_of_it.py")
    text = "import parts_of_it\ndef make():\n    return parts_of_it.read('{')\n"
    assert main(["lint", write(tmp_path, text)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "JSONDecodeError: Expecting property name" in first
    assert second == f"  {tmp_path}/parts_of_it.py:3, in read: return json.loads(text)"
    # Neither what is installed nor another's folder is the user's own.
    for folder in ("mine/site-packages", "other"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, "def fail():\n    raise KeyError(1)\n", "deep_in_it.py")
        text = (
            "import sys\n"
            f"sys.path.insert(0, {str(tmp_path / folder)!r})\n"
            "sys.modules.pop('deep_in_it', None)\n"
            "import deep_in_it\n"
            "sys.path.pop(0)\n"
            "deep_in_it.fail()\n"
        )
        target = write(tmp_path / "mine", text)
        assert main(["lint", target]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith("KeyError: 1")
        assert second == f"  {target}:6, in <module>: deep_in_it.fail()"
    # Nothing of the user's own ran.
    text = "import functools, json\nmake = functools.partial(json.loads, '{')\n"
    assert main(["lint", f"{write(tmp_path, text)}:make"]) == 2
    assert "json/decoder.py:" in capsys.readouterr().err.splitlines()[1]


def test_a_path_that_leads_nowhere_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def offline(*given: object, **more: object) -> str:
        raise OSError("no network\nand a second line\nand a third")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", GOOD)
    for target, says in {
        "inner/nope": "inner/nope is neither a file, nor a folder, nor a module",
        "nope": "nope is neither a file, nor a folder, nor a module",
        "inner/nett": "inner/nett is neither a file, nor a folder, nor a module; did you mean",
        "json": "json is a module: name the model in it, json:NAME",
    }.items():
        assert main(["lint", target]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith(f"addnorm: {says}")
        assert second.startswith(
            "It could not be downloaded from the Hugging Face hub either: OSError: no"
        )
        assert "second line" not in second
    for target in ("inner/net", "inner.net"):
        assert main(["lint", target]) == 2
        assert capsys.readouterr().err == (
            f"addnorm: {target} is not a folder; did you mean inner/net.py?\n"
        )


# --- what a target may be -------------------------------------------------------------------------


def test_a_file_may_import_what_lies_beside_it_and_name_a_model(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 8\n", "sizes.py")
    text = (
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "import sizes\n"
        "@dataclass\n"
        "class Config:\n"
        "    width: 'int' = sizes.WIDTH\n"
        "class Holder:\n"
        "    model = nn.Linear(Config().width, 3)\n"
        "net = nn.Linear(sizes.WIDTH, 2)\n"
        "alias = net\n"
        "def main():\n"
        "    return 7\n"
    )
    target = write(tmp_path, text)
    paths = list(sys.path)
    assert open_target(target).model.out_features == 2
    assert open_target(f"{target}:Holder.model").model.out_features == 3
    assert sys.path == paths


def test_a_module_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "my_nets_for_lint.py")
    monkeypatch.chdir(tmp_path)
    assert len(open_target("my_nets_for_lint:make").model) == 3


def test_a_class_of_a_tutorial_is_taken(tmp_path: Path) -> None:
    text = (
        "from torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.block = Block(3)\n"
        "def train():\n"
        "    raise RuntimeError('not to be called')\n"
    )
    assert type(open_target(write(tmp_path, text)).model).__name__ == "Net"


PARTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Norm()

class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("not this one")
"""


def test_of_several_classes_the_one_that_holds_the_others_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = "import torch\n" + PARTS.partition("class Broken")[0]
    found = open_target(write(tmp_path, whole))
    assert type(found.model).__name__ == "Net"
    assert found.name.endswith("net.py:Net")
    assert found.note == "Of 3 classes in the file, Net was chosen: it contains the others."
    few_facts = Report(facts={"model": "Net", "parameters": 1, "seconds": 0.0})
    print_report(few_facts, Console(width=100), remark=found.note)
    assert found.note in capsys.readouterr().out.splitlines()[1]
    # One stands alone: it may be meant as well.
    assert main(["lint", write(tmp_path, "import torch\n" + PARTS)]) == 2
    told = capsys.readouterr().err
    assert "has several models; choose one of" in told
    assert "net.py:Broken  (a class)" in told


def test_our_folders_and_runs_are_opened(tmp_path: Path) -> None:
    from addnorm import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=31, context_length=16, dim=8, n_layers=1, n_heads=2))
    model.save_pretrained(tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        assert isinstance(open_target(str(folder)).model, GPT)


def test_a_folder_of_transformers_with_and_without_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "whole")
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path / "config")
    whole = open_target(str(tmp_path / "whole"))
    assert type(whole.model).__name__ == "BertForMaskedLM"
    weight = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(whole.model.state_dict()[weight], model.state_dict()[weight])
    assert not whole.note
    bare = open_target(str(tmp_path / "config"))
    assert type(bare.model).__name__ == "BertForMaskedLM"
    assert "No weights there" in bare.note


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "addnorm.hf", raising=False)
    monkeypatch.delattr(addnorm, "hf", raising=False)
    assert main(["lint", str(tmp_path)]) == 2
    assert "pip install 'addnorm[hf]'" in capsys.readouterr().err


def test_folders_that_hold_no_model_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    assert main(["lint", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "transformers cannot load" in told
    assert len(told.splitlines()) <= 2
