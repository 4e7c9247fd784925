"""The command ``addnorm schemes``, from its arguments to its files."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import addnorm
from addnorm import cli, schemes
from addnorm.catalogue import combinators, entry
from addnorm.cli import main
from addnorm.cli.arguments import read
from addnorm.cli.schemes import Options, command
from addnorm.lab.measurement import everything
from addnorm.lab.setup import Setup

TINY = shlex.split("--width 8 --heads 2 --depths 1 2 --tokens 4 --batch 2 --seeds 2")


def options(*words: str) -> Options:
    return read(Options, words, "addnorm schemes", "")


# --- measuring ------------------------------------------------------------------------------------


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["pre_norm", "rezero", "drop_path(mix_ln(0.5), p=0.2)"]
    out = tmp_path / "deep" / "folder"
    assert main(["schemes", *names, *TINY, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert sorted(p.name for p in out.iterdir()) == ["schemes.html", "schemes.json"]
    numbers = json.loads((out / "schemes.json").read_text())
    assert [d["text"] for d in numbers["designs"]] == names
    assert numbers["setup"]["width"] == 8
    assert numbers["setup"]["init"] == "fan_in"
    assert "pre_norm" in (out / "schemes.html").read_text()

    lines = told.out.splitlines()
    assert max(len(line) for line in lines if str(out) not in line) <= 100
    assert "\x1b" not in told.out
    assert "init fan_in" in told.out
    assert str(out / "schemes.html") in told.out
    row = next(line for line in lines if line.strip().startswith("pre_norm"))
    values = numbers["designs"][0]["values"]["stream_mean_square"]["2"]
    exponent = numbers["designs"][0]["exponents"]["stream_mean_square"]
    assert f"{values['median']:.3g}" in row
    assert f"{exponent['median']:+.2f} [{exponent['low']:+.2f}, {exponent['high']:+.2f}]" in row
    still = next(line for line in lines if line.strip().startswith("rezero"))
    assert still.split()[-3:] == ["0", "-", "-"]


def test_all_designs_are_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemes", *TINY, "--seeds", "1", "--init", "own", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "schemes.json").read_text())
    assert [d["text"] for d in numbers["designs"]] == everything()
    assert set(schemes.names()) < set(everything())
    assert len(everything()) == len(schemes.names()) + 1
    out = capsys.readouterr().out
    assert "pre_norm, writers unscaled" in out
    assert "init own" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 100
    assert "init own" in (tmp_path / "schemes.html").read_text()


def test_the_command_measures_the_same_again(tmp_path: Path) -> None:
    """The page's command line, typed as it stands, gives the same numbers."""
    first, second = tmp_path / "a", tmp_path / "b"
    main(["schemes", "parallel(pre_norm)", *TINY, "--qk-norm", "--out", str(first)])
    told = json.loads((first / "schemes.json").read_text())
    words = shlex.split(told["command"])
    assert words[:2] == ["addnorm", "schemes"]
    main([*words[1:], "--out", str(second)])
    again = json.loads((second / "schemes.json").read_text())
    assert again == told


@pytest.mark.parametrize(
    "setup",
    [
        Setup(),
        Setup(32, (2, 3), 2, 5, 7, 1, 9, "own", "relu", qk_norm=True),
    ],
)
def test_command_and_options_are_inverse(setup: Setup) -> None:
    names = ("pre_norm", "fan_in(pre_norm, factors=False)")
    parsed = options(*shlex.split(command(names, setup))[2:])
    assert parsed.setup == setup
    assert parsed.names == names


def test_defaults() -> None:
    assert options() == Options()
    assert Options().setup == Setup()
    assert Setup().depths == (6, 12, 24, 48)
    assert (Setup().width, Setup().seeds, Setup().init) == (64, 3, "fan_in")
    assert Options().out == Path("out/schemes")


def test_a_name_given_twice_is_measured_once(tmp_path: Path) -> None:
    main(["schemes", "no_norm", "no_norm", *TINY, "--out", str(tmp_path)])
    numbers = json.loads((tmp_path / "schemes.json").read_text())
    assert len(numbers["designs"]) == 1
    assert numbers["command"].count("no_norm") == 1


# --- telling --------------------------------------------------------------------------------------


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemes", "--list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    rows = [line.split() for line in out.splitlines()]
    for name in [*schemes.names(), *combinators()]:
        e = entry(name)
        start = e.usage().split()[0]
        row = next(r for r in rows if r and r[0] == start)
        assert str(e.year) in row
        assert e.equation.split()[0] in row
        assert e.paper.split()[0].rstrip(",") in " ".join(row)


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemes", "--explain", "sandwich", *TINY]) == 0
    told = schemes.explain("sandwich", dim=8, n_heads=2, blocks=2, tokens=4)
    assert capsys.readouterr().out.strip() == str(told)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"addnorm {addnorm.__version__}"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    for c in cli.COMMANDS:
        assert f"  {c.name} " in out
        assert c.summary in out


def test_help_of_schemes_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["schemes", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for option in ("--width", "--depths", "--heads", "--tokens", "--batch", "--seeds", "--list"):
        assert option in out
    for option in ("--first-seed", "--init {fan_in,own}", "--qk-norm", "--out", "--explain NAME"):
        assert option in out
    assert "--setup." not in out
    assert "6 12 24 48" in out


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["--help"], ["torch", "numpy", "rich", "tyro"]),
        (["--version"], ["torch", "numpy", "rich", "tyro"]),
        *(([c.name, "--help"], ["torch", "numpy", "transformers"]) for c in cli.COMMANDS),
    ],
)
def test_help_does_not_wait_for_torch(words: list[str], slow: list[str]) -> None:
    code = (
        "import sys\nfrom addnorm.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as e: assert e.code == 0\n"
        f"assert not {{*sys.modules}} & {{*{slow!r}}}, {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_installed_command(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "addnorm"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"addnorm {addnorm.__version__}"
    wrong = subprocess.run([script, "scheems"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "unknown command 'scheems'; did you mean schemes?" in wrong.stderr


# --- refusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["pre_nrom"], "did you mean pre_norm"),
        (["pre_norm", "mix_ln(frac=2)"], "a share of the blocks"),
        (["mix_ln(fraq=1)"], "did you mean frac"),
        (["drop_path(no_residual)"], "without a residual"),
        (["--explain", "sandwhich"], "did you mean sandwich"),
        (["--explain", "None"], "cannot read 'None'"),
    ],
)
def test_a_design_that_is_none(
    args: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["schemes", *args, *TINY, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""
    assert not out.exists()  # a typo leaves nothing behind


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["schemes", "no_norm", *TINY, "--out", str(tmp_path / "file")]) == 2
    assert f"cannot write {tmp_path / 'file'}: there is a file of this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--initt", "own"], "--init"),
        (["--init", "xavier"], "fan_in"),
        (["--width", "wide"], "wide"),
        (["--heads", "7"], "7 heads do not divide the width 64"),
        (["--depths", "2", "2"], "depths must be different"),
        (["--depths", "2", "1000000"], "depths must be at most 1,000 blocks, got (2, 1000000)"),
        (["--seeds", "1000000"], "seeds must be at most 1,000"),
        (["--width", "1" + "0" * 30], "width must be at most 268435456"),
        (["--first-seed", "9" * 20], "first_seed must be from 0 to 2**63 - 1"),
    ],
)
def test_options_that_do_not_fit(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["schemes", *args])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""
