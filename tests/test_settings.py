"""Settings: what is set is what counts, what is wrong is named, and nothing else happens."""

import hashlib
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import GPT, GPTConfig, Tokenizer, settings, train
from addnorm.data.dialogues import Turn, to_object
from addnorm.records import objects
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings
from addnorm.tasks.recipes import RECIPES, chat, classify_text
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.run import Run
from addnorm.training.run_folder import read
from tests.tasks import test_classify, test_earlier, test_texts, test_unlabelled
from tests.training import test_sinks, test_training
from tests.training.test_training import ALONE, small

START = Config(task=LanguageSettings())


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
    assert (c.task.model.dim, c.task.model.scheme, c.task.model.bias) == (
        64,
        "mix_ln(0.5)",
        False,
    )
    assert c.sinks == ("tensorboard", "wandb")
    assert (c.task.data, c.task.cache) == ("a=b.txt", Path("/tmp/x"))
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
        (
            {"model.n_heads": 3},
            r"model\.n_heads=3: model\.n_heads=3 does not divide model\.dim=256",
        ),
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
    with pytest.raises(SettingsError, match=message):
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
    with pytest.raises(SettingsError, match="cannot read"):
        settings.from_toml(file)
    file.write_text("steps 5")
    with pytest.raises(SettingsError, match="is not TOML"):
        settings.from_toml(file)
    file.write_text("\ufeffsteps = 5\n", encoding="utf-8")  # as editors on Windows save it
    assert settings.from_toml(file) == {"steps": 5}
    with pytest.raises(SettingsError, match="'steps' is not key=value"):
        settings.from_assignments(["steps"])
    assert settings.from_assignments(["a=1", "a=2", "b = c=d"]) == {"a": "2", "b": "c=d"}


def test_a_thousand_edits() -> None:
    """Keys with letters changed, values of other kinds, absurd numbers: always settings that hold
    or an error that names the key or the value; never another exception."""
    rng = random.Random(0)
    keys = [key for part in (START.task, START.loop) for key, _, _ in settings.entries(part)]
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
        except SettingsError as error:
            messages.append((key, str(error)))
    assert len(messages) > 300
    assert changes > 50
    unnamed = [(k, m) for k, m in messages if k not in m and repr(k) not in m]
    assert not unnamed


def test_every_setting_is_told() -> None:
    """The docstring under each field is its help."""
    import ast
    import inspect

    from addnorm.tasks import chat as conversations
    from addnorm.tasks import classify, language
    from addnorm.training import loop_settings

    for module, name in (
        (loop_settings, "LoopSettings"),
        (language, "LanguageSettings"),
        (classify, "ClassifySettings"),
        (conversations, "ChatSettings"),
    ):
        tree = ast.parse(inspect.getsource(module))
        node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        for here, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(here, ast.AnnAssign) and ast.unparse(here.target) != "model":
                assert isinstance(after, ast.Expr), ast.unparse(here)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="device=cuda:99 is not here: there are auto, "):
        train(Config(task=LanguageSettings(), loop=LoopSettings(device="cuda:99")))


def test_a_prefix_that_takes_positions_leaves_none_to_train_with(place: Path) -> None:
    start = {"init_from": str(place / "run" / "model"), "adapt.kind": "prefix"}
    with pytest.raises(SettingsError, match=r"adapt\.positions=shifted begins at position 16 of 8"):
        language(place, **start, **{"adapt.positions": "shifted"}).build()


# --- every setting has an effect, or is an error --------------------------------------------------

OTHER: dict[str, Any] = {
    "data": "other.txt",
    "tokenizer": "bytes",
    "split": "tail",
    "val_fraction": 0.3,
    "tokens_per_step": 48,
    "rows_per_step": 5,
    "document_mask": True,
    "dropout": 0.5,
    "token_dropout": 0.5,
    "label_smoothing": 0.2,
    "unlabelled.data": "other.txt",
    "unlabelled.confidence": 0.4,
    "unlabelled.weight": 0.5,
    "unlabelled.per_text": 1,
    "unlabelled.noise": 0.1,
    "z_loss": 0.1,
    "init_from": "run/model",
    "samples": 2,
    "glance_tokens": 20,
    "model.context_length": 12,
    "model.dim": 16,
    "model.n_layers": 2,
    "model.n_heads": 1,
    "model.scheme": "deepnorm",
    "model.norm": "rms",
    "model.eps": 0.1,
    "model.position": "alibi",
    "model.rope_base": 10.0,
    "model.n_kv_heads": 1,
    "model.qk_norm": "rms",
    "model.window": 2,
    "model.attention_softcap": 0.1,
    "model.mlp": "gated",
    "model.activation": "relu",
    "model.hidden": 8,
    "model.bias": False,
    "model.tied": False,
    "model.softcap": 0.1,
    "model.vocab_multiple": 64,
    "model.body": "lstm",
    "model.pairs": 7,
    "labels": "several",
    "template": "words",
    "adapt.kind": "lora",
    "adapt.targets": "k",
    "adapt.rank": 2,
    "adapt.alpha": 1.0,
    "adapt.dropout": 0.5,
    "adapt.init_rank": 5,
    "adapt.target_rank": 1,
    "adapt.steps": 5,
    "adapt.tinit": 1,
    "adapt.tfinal": 1,
    "adapt.delta_t": 3,
    "adapt.orthogonality": 1.0,
    "adapt.length": 3,
    "adapt.text": "to",
    "adapt.width": 3,
    "steps": 4,
    "seed": 1,
    "optimizer": "muon",
    "lr": 0.1,
    "muon_lr": 0.1,
    "schedule": "constant",
    "warmup": 0,
    "lr_floor": 0.5,
    "decay": 0.9,
    "weight_decay": 0.5,
    "beta1": 0.5,
    "beta2": 0.5,
    "clip": 0.01,
    "micro_rows": 1,
    "precision": "bf16",
    "compile": "false",
    "parallel": "fsdp",
    "eval_every": 2,
    "save_every": 1,
    "keep": 1,
    "watch_every": 1,
    "threads": 2,
}
"""A value of each setting that none of the small runs here has by itself."""

SEEN_ELSEWHERE = {
    "spike": test_training.test_spikes_are_left_out_and_do_not_count_as_usual,
    "nonfinite": test_training.test_skipping_is_as_if_the_step_had_not_been,
    "most_rollbacks": test_training.test_rollback_goes_back_and_past_the_data,
    "val_data": test_classify.test_it_learns_several_labels,
    "cache": test_texts.test_a_second_start_and_a_resume_do_not_learn_again,
    "unlabelled.teacher": test_unlabelled.test_it_learns_and_resumes,
    "earlier.data": test_earlier.test_a_head_goes_on,
    "earlier.texts": test_earlier.test_rows_of_a_step,
    "earlier.replay": test_earlier.test_rows_of_a_step,
    "earlier.anchor": test_earlier.test_the_pull_is_the_same_in_parts,
    "device": test_a_device_that_is_not_there,
    "adapt.positions": test_a_prefix_that_takes_positions_leaves_none_to_train_with,
    "sinks": test_sinks.test_tensorboards_own_reader_finds_every_scalar,
}
"""What takes more than a few steps to be seen, and where it is."""
OF_A_RUN = {"parallel", "eval_every", "save_every", "keep", "watch_every"}
OF_A_RUN |= {"threads", "samples"}
"""What no step shows, but a whole run."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, classes of texts, and a model to start from."""
    folder = tmp_path_factory.mktemp("settings")
    train(language(folder), out=folder / "run", display=Display(quiet=True))
    train(talks(folder), out=folder / "chat", display=Display(quiet=True))
    plain = GPTConfig(vocab_size=257, context_length=16, dim=8, n_layers=1, n_heads=2)
    addnorm.save(GPT(plain), folder / "plain", tokenizer=Tokenizer.bytes())
    (folder / "other.txt").write_text("another text, of which more is said below. " * 40)
    for texts, names in (("texts", ("one", "two")), ("more", ("one", "two", "three"))):
        for name in names:
            (folder / texts / name).mkdir(parents=True)
            for i in range(20):
                (folder / texts / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    return folder


def language(folder: Path, **changes: Any) -> Config:
    shape = {"dim": 8, "n_layers": 1, "context_length": 8}
    config = small(folder, **{f"model.{key}": value for key, value in shape.items()})
    text = "\n<|endoftext|>\n".join(f"document {i} says {i * i}." for i in range(60))
    (folder / "text.txt").write_text(text)
    few = {"samples": 1, "eval_every": 0, "save_every": 0, "watch_every": 0}
    return config.changed({"steps": 3, "warmup": 1, "tokens_per_step": 32, **few}, changes)


def classes(folder: Path, **changes: Any) -> Config:
    shape = {"dim": 8, "n_layers": 1, "n_heads": 2, "context_length": 16, "pairs": 0}
    config = classify_text().changed(
        {"data": str(folder / "texts"), "tokenizer": "bpe:260", "rows_per_step": 4},
        {"cache": folder / "cache", "dropout": 0.1, "token_dropout": 0.2, "threads": 1},
        {f"model.{key}": value for key, value in shape.items()},
    )
    return config.changed({"steps": 3, "warmup": 1, "precision": "fp32", "eval_every": 0}, changes)


def talks(folder: Path, **changes: Any) -> Config:
    shape = {"dim": 8, "n_layers": 1, "n_heads": 2, "context_length": 64}
    for name, word in (("talk", "is"), ("other", "was")):
        lines = [
            to_object([Turn("user", f"Which {word} {i}?"), Turn("assistant", f"That {word} {i}.")])
            for i in range(30)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = chat().changed(
        {"data": str(folder / "talk.jsonl"), "tokenizer": "bpe:260", "val_fraction": 0.4},
        {"cache": folder / "cache", "dropout": 0.1, "threads": 1, "rows_per_step": 4},
        {f"model.{key}": value for key, value in shape.items()},
        {"model.norm": "layer", "model.position": "learned", "model.bias": True},
    )
    few = {"samples": 1, "eval_every": 0, "precision": "fp32", "optimizer": "adamw"}
    return config.changed({"steps": 3, "warmup": 1, **few}, changes)


def trace_of(config: Config) -> Any:
    """All that a few steps show, to the bit."""
    task = config.build()
    trainer = Trainer(task, config.loop, ALONE)
    outcomes = [trainer.step() for _ in range(config.loop.steps)]
    sha = hashlib.sha256()
    for tensors in trainer.tensors().values():
        for name, t in tensors.items():
            sha.update(name.encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes())
    with trainer.looking() as model:
        glance = task.glance(model)
    return task.facts(), outcomes, trainer.why, sha.hexdigest(), glance


def seen_of_a_run(config: Config, folder: Path) -> Any:
    """All that a whole run leaves, but for times, and what it says."""
    printed_lines: list[str] = []
    display = Display(quiet=True)
    display.said = printed_lines.append
    threads = torch.get_num_threads()
    try:
        run: Run = train(config, out=folder, display=display)
    finally:
        torch.set_num_threads(threads)
    state = read(run.folder)
    lines = [
        {k: v for k, v in record.items() if k not in ("elapsed_s", "tokens_per_s")}
        for record in objects(run.folder / "metrics.jsonl")
    ]
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    texts = list(objects(run.folder / "samples.jsonl"))
    return printed_lines, lines, files, texts, state["step"], state["threads"]


def awake(key: str, config: Config, model: Path) -> dict[str, Any]:
    """What a key says that it needs to have an effect."""
    changes: dict[str, Any] = {"save_every": 1} if key == "keep" else {}
    for part in (config.task, config.loop):
        for need in settings.needs(part).get(key, []):
            first = need.cases[0].items()  # a rule in place of values is met from the beginning
            changes |= {name: fit[0] for name, fit in first if isinstance(fit, tuple)}
    if key.startswith("adapt."):
        changes["init_from"] = str(model)
    if key.startswith("unlabelled.") and key != "unlabelled.data":
        changes["unlabelled.data"] = str(model.parent / "other.txt")
        if key != "unlabelled.confidence":
            changes["unlabelled.confidence"] = 0.4  # of what so small a model is sure
    if changes.get("adapt.kind") == "prompt":
        changes["adapt.length"] = 3  # which leaves something of the context
    if changes.get("adapt.kind") == "adalora":
        changes |= {"adapt.steps": 3, "adapt.init_rank": 4, "adapt.target_rank": 2, "steps": 3}
    return {name: value for name, value in changes.items() if value is not None}


@pytest.mark.parametrize("make", [language, classes, talks])
def test_every_setting_has_an_effect(make: Any, place: Path, tmp_path: Path) -> None:
    """With what it says that it needs; whoever adds a setting gives it another value here, and is
    told if nothing reads it."""
    models = {classes: "plain", talks: "chat/model"}
    start, model = make(place), place / models.get(make, "run/model")
    groups: dict[Any, dict[str, Any]] = {}  # of keys that are seen at the same place
    for part in (start.task, start.loop) if make is language else (start.task,):
        for key, _, value in settings.entries(part):
            if key not in SEEN_ELSEWHERE:
                other = OTHER[key]
                if key in ("data", "init_from"):
                    data = {classes: "more", talks: "other.jsonl"}.get(make, other)
                    other = str(place / data if key == "data" else model)
                if key == "unlabelled.data":
                    other = str(place / other)
                assert settings.json_value(value) != other, key
                base = awake(key, start, model)
                group = key in OF_A_RUN, *sorted(base.items())
                groups.setdefault(group, {})[key] = other
    idle = []
    for (of_a_run, *base), others in groups.items():

        def look(name: str, change: Any = (), of_a_run: bool = of_a_run, base: Any = base) -> Any:
            config = make(place, **dict([*base, *change]))
            if not of_a_run:
                return trace_of(config)
            return seen_of_a_run(config, tmp_path / f"{len(base)}-{name}")

        before = look("before")
        idle += [key for key, other in others.items() if look(key, [(key, other)]) == before]
        # if what is seen were another each time, it would say nothing
        assert base or look("after") == before
    assert not idle


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (({"muon_lr": 0.1},), "muon_lr=0.1 has no effect with optimizer=adamw: .* optimizer=muon"),
        (({"decay": "0.5"},), "decay=0.5 has no effect with schedule=cosine: it .* schedule=wsd"),
        (({"schedule": "constant", "lr_floor": 0.5},), "lr_floor=0.5 has no effect"),
        (({"most_rollbacks": 9},), "most_rollbacks=9 has no effect with nonfinite=stop"),
        (({"model.rope_base": 10},), r"model\.rope_base=10.0 has no effect with model.position"),
        (({"model.norm": "dyt", "model.eps": 0.1},), r"model\.eps=0.1 has no effect with model."),
        (
            ({"model.scheme": "rezero", "model.norm": "rms"},),
            "model.norm=rms has no effect with .*=rez",
        ),
        (
            ({"model.scheme": "fan_in(ngpt)", "model.eps": 0.1},),
            "eps=0.1 .*=one that has norms and",
        ),
        (({"adapt.rank": 2},), "rank is a setting of lora, not none"),
        (({"optimizer": "adamw"}, {"muon_lr": 0.1}), "muon_lr=0.1 has no effect"),
        (({"optimizer": "muon"}, {"optimizer": "adamw", "muon_lr": 0.1}), "muon_lr=0.1 has no ef"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_an_error(layers: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        START.changed(*layers)


def test_a_wrong_value_is_told_without_its_neighbours() -> None:
    with pytest.raises(SettingsError, match=r"^model\.scheme=pre_nrm: unknown scheme"):
        START.changed({"model.dim": 16, "model.scheme": "pre_nrm", "model.n_heads": 1})
    with pytest.raises(
        SettingsError,
        match=r"^model\.dim=9, model\.n_heads=2: model\.n_heads=2 does not divide model\.dim=9",
    ):
        START.changed({"model.dim": 9, "model.n_heads": 2})


def test_ranks_fall_over_the_run_unless_said() -> None:
    """Over the run as it began: with more steps at a resume, the clock stays what it was."""
    config = START.changed({"adapt.kind": "adalora", "steps": 7})
    assert config.task.adapt.steps == 7
    assert Config.from_json(config.to_json()).changed({"steps": 9}).task.adapt.steps == 7
    config = START.changed({"adapt.kind": "adalora", "adapt.steps": 5, "steps": 7})
    assert config.task.adapt.steps == 5


def test_a_setting_that_nobody_asked_for_is_no_error() -> None:
    """What a recipe, or a file below, says for another case is given up, and not recorded."""
    config = RECIPES["char_cpu"]().changed({"optimizer": "adamw"})
    assert config.loop.muon_lr == LoopSettings().muon_lr
    assert "muon_lr" not in config.to_json()
    assert "# muon_lr counts with optimizer=muon" in config.to_toml()
    file: dict[str, Any] = {"schedule": "wsd", "decay": 0.5, "adapt.kind": "lora", "adapt.rank": 2}
    config = START.changed(file, {"schedule": "cosine", "adapt.kind": "none"})
    assert config == START
    assert START.changed({"decay": 0.5}, {"schedule": "wsd"}).loop.decay == 0.5
    assert START.changed({"decay": LoopSettings().decay}) == START  # it asks for nothing else
    with pytest.raises(SettingsError, match=r"muon_lr=0\.1 has no effect"):
        LoopSettings(muon_lr=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.dim": 16}, r"model\.dim=16 is 8 there"),
        ({"model.dim": 256, "model.bias": False}, r"dim=256 is 8 there"),
        ({"tokenizer": "bytes"}, "tokenizer=bytes is not its tokenizer"),
        ({"tokenizer": "bpe:300"}, "tokenizer=bpe:300 is not its tokenizer"),
        ({"model.hidden": 8}, r"model\.hidden=8 is 32 there"),
    ],
    ids=str,
)
def test_what_init_from_brings_is_not_asked_for_otherwise(
    place: Path, changes: dict[str, Any], message: str
) -> None:
    """Nor when that is what the setting is by itself: 256 is no answer to 8."""
    start = {"init_from": str(place / "run" / "model"), "cache": place / "cache"}
    data = {"data": str(place / "text.txt"), "tokens_per_step": 32}
    for layers in (({**start, **data, **changes},), (changes, {**start, **data})):
        with pytest.raises(SettingsError, match=f"init_from=.* comes with a model.*{message}"):
            START.changed(*layers).build()
    task = START.changed({**start, **data, "model.dim": 8, "tokenizer": "characters"}).build()
    assert task.facts()["model"]["dim"] == 8


def test_what_is_recorded_is_what_was_used(place: Path, tmp_path: Path) -> None:
    start = str(place / "run" / "model")
    config = language(place, init_from=start)
    run = train(config, out=tmp_path / "run", display=Display(quiet=True))
    state = read(run.folder)
    assert not [k for k in state["config"] if k == "tokenizer" or k.startswith("model.")]
    assert state["facts"]["model"]["dim"] == 8
    again = settings.from_toml(run.folder / "config.toml")
    assert not [key for key in again if key.startswith("model.")]
    assert Config(task=LanguageSettings()).changed(again).to_json() == state["config"]
    assert Config.from_json(state["config"]) == config
