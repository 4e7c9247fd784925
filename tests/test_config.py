"""Settings: what is set is what counts, what is wrong is named, and nothing else happens."""

import random
import string
from pathlib import Path
from typing import Any

import pytest

from addnorm.training import config as settings
from addnorm.training.config import ConfigError
from addnorm.training.recipes import RECIPES, Config

START = Config()


def test_every_kind_of_value() -> None:
    c = START.changed(
        {
            "steps": "500",
            "lr": "3e-4",
            "optimizer": "muon",
            "model.dim": 64,
            "model.scheme": "mix_ln(0.5)",
            "model.bias": "false",
            "micro_rows": "none",
            "sinks": "tensorboard, wandb",
            "data": "a=b.txt",
            "cache": "/tmp/x",
        }
    )
    assert (c.loop.steps, c.loop.lr, c.loop.optimizer, c.loop.micro_rows) == (
        500,
        3e-4,
        "muon",
        None,
    )
    assert (c.about.model.dim, c.about.model.scheme, c.about.model.bias) == (
        64,
        "mix_ln(0.5)",
        False,
    )
    assert c.sinks == ("tensorboard", "wandb")
    assert (c.about.data, c.about.cache) == ("a=b.txt", Path("/tmp/x"))
    assert START.loop.steps == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, r"unknown setting 'step'; did you mean .*steps"),
        ({"dim": 3}, r"unknown setting 'dim'; did you mean .*model\.dim"),
        ({"model.width": 3}, r"unknown setting 'model\.width'"),
        ({"model.vocab_size": 3}, r"unknown setting 'model\.vocab_size'"),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": "nan"}, "lr must be a number, got 'nan'"),
        ({"lr": -1}, "lr must not be negative"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, got 'sgd'"),
        ({"precision": 16}, "precision must be auto, fp32, bf16 or fp16, got 16"),
        ({"micro_rows": "x"}, "micro_rows must be a whole number or none, got 'x'"),
        ({"model.n_heads": 3}, r"model\.n_heads=3: 3 heads do not divide the width 256"),
        ({"model.scheme": "pre_nrm"}, r"model\.scheme=pre_nrm: .*pre_norm"),
        ({"model.norm": "bn"}, r"model\.norm=bn: unknown norm 'bn'"),
        ({"model.bias": "maybe"}, r"model\.bias must be true or false, got 'maybe'"),
        ({"task": "vision"}, "task is language in this recipe"),
        (
            {"init_from": "x", "adapt.kind": "adalora", "parallel": "fsdp"},
            "adapt.kind=adalora compares whole matrices",
        ),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        START.changed(changes)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_both_formats(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]().changed({"seed": 7, "sinks": "wandb"})
    assert Config.from_json(config.to_json()) == config
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    again = RECIPES[name]().changed(settings.from_toml(file))
    assert again == config


def test_a_file_that_is_no_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="cannot read"):
        settings.from_toml(file)
    file.write_text("steps 5")
    with pytest.raises(ConfigError, match="is not TOML"):
        settings.from_toml(file)
    file.write_text("\ufeffsteps = 5\n", encoding="utf-8")  # as editors on Windows save it
    assert settings.from_toml(file) == {"steps": 5}
    with pytest.raises(ConfigError, match="'steps' is not key=value"):
        settings.from_assignments(["steps"])
    assert settings.from_assignments(["a=1", "a=2", "b = c=d"]) == {"a": "2", "b": "c=d"}


def test_a_thousand_edits() -> None:
    """Keys with letters changed, values of other kinds, absurd numbers: always settings that hold
    or an error that names the key or the value; never another exception."""
    rng = random.Random(0)
    keys = [key for part in (START.about, START.loop) for key, _, _ in settings.keys(part)]
    keys += ["sinks", "task"]
    values: list[Any] = [
        "", " ", "none", "None", "true", "0", "-1", "1e400", "nan", "inf", "-inf", "1_0", "0x10",
        "9" * 400, "é", "\x00", "[1]", "{}", "a" * 500, "1.5", "pre_norm", "parallel(", "mix_ln(2)",
        0, -1, 1, 10**30, 1.5, -0.0, 1e308, True, False, None, [], ["a"], [1], "cuda:99", "../..",
        "drop_path(mix_ln(0.25), p=0.1)", "bpe:", "bpe:-4", "hf:", 2**63, "١٢",
    ]  # fmt: skip
    messages: list[tuple[str, str]] = []
    changes = 0
    for _ in range(1000):
        key, value = rng.choice(keys), rng.choice(values)
        if rng.random() < 0.4:
            place = rng.randrange(len(key))
            key = key[:place] + rng.choice([*string.printable, ""]) + key[place + 1 :]
        try:
            changed = START.changed({key: value})
            assert Config.from_json(changed.to_json()) == changed
            changes += 1
        except ConfigError as error:
            messages.append((key, str(error)))
    assert len(messages) > 300
    assert changes > 50
    unnamed = [(k, m) for k, m in messages if k not in m and repr(k) not in m]
    assert not unnamed


def test_every_setting_is_told() -> None:
    """The docstring under each field is its help."""
    import ast
    import inspect

    from addnorm.training import classify, language, loop_settings

    for module, name in ((loop_settings, "Loop"), (language, "Language"), (classify, "Classify")):
        tree = ast.parse(inspect.getsource(module))
        found = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        for here, after in zip(found.body, found.body[1:], strict=False):
            if isinstance(here, ast.AnnAssign) and ast.unparse(here.target) != "model":
                assert isinstance(after, ast.Expr), ast.unparse(here)
