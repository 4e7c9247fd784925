"""A tokenizer that is learned is learned once: by starts, by resumes, by processes."""

import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from addnorm import GPT, Tokenizer, train
from addnorm.data.sources import DataError
from addnorm.files import gpt as gpt_files
from addnorm.models.classifier import ClassifierConfig
from addnorm.settings import SettingsError
from addnorm.tasks import texts
from addnorm.tasks.classify import ClassifySettings
from addnorm.training.config import Config
from addnorm.training.display import Display
from tests.processes import run_side_by_side
from tests.training.test_training import small

QUIET = Display(quiet=True)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all tokenizers that were learned."""
    sizes: list[int] = []
    learn = Tokenizer.train

    def learning(texts: Iterable[str], vocab_size: int | None = None, kind: str = "bpe") -> Any:
        sizes.append(vocab_size or 0)
        return learn(texts, vocab_size, kind)

    monkeypatch.setattr(Tokenizer, "train", learning)
    return sizes


def config(tmp_path: Path, **changes: Any) -> Config:
    return small(tmp_path, tokenizer="bpe:300", **changes)


def kept(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "cache").glob("tokenizer-*")
    return folder


def test_a_second_start_and_a_resume_do_not_learn_again(tmp_path: Path, learned: list[int]) -> None:
    first = config(tmp_path).task.build().tokenizer
    assert learned == [300]
    train(config(tmp_path, steps=4), out=tmp_path / "run", until=2, display=QUIET)
    run = train(config(tmp_path, steps=4), out=tmp_path / "run", resume=True, display=QUIET)
    assert run.finished
    assert learned == [300]
    assert config(tmp_path).task.build().tokenizer.identity == first.identity
    assert Tokenizer.from_pretrained(run.folder / "model").identity == first.identity


def test_what_decides_it_is_in_the_key(tmp_path: Path, learned: list[int]) -> None:
    """Text, size and split; not the seed, nor the model."""
    config(tmp_path).task.build()
    config(tmp_path, seed=3, **{"model.dim": 32}).task.build()
    assert learned == [300]
    for changes in ({"tokenizer": "bpe:301"}, {"val_fraction": 0.3}, {"split": "tail"}):
        small(tmp_path, **{"tokenizer": "bpe:300", **changes}).task.build()
    other = config(tmp_path)
    (tmp_path / "text.txt").write_text("another text, of other words. " * 99)
    other.task.build()
    assert learned == [300, 301, 300, 300, 300]
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 5


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "checksums"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damage_is_found_and_mended(
    tmp_path: Path, learned: list[int], name: str, how: str
) -> None:
    first = config(tmp_path).task.build().tokenizer
    file = kept(tmp_path) / name.replace("checksums", "addnorm_checksums.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"The tokenizer is learned again"):
        again = config(tmp_path).task.build().tokenizer
    assert again.identity == first.identity
    assert learned == [300, 300]
    config(tmp_path).task.build()  # without a warning: it is whole again
    assert learned == [300, 300]


def identify(rank: int, config: Config, folder: Path, barrier: Any) -> None:
    barrier.wait()
    (folder / str(rank)).write_text(config.task.build().tokenizer.identity)


def test_two_processes_get_the_same(tmp_path: Path) -> None:
    """At once: whoever comes second finds it, or has made the same."""
    barrier = multiprocessing.get_context("forkserver").Barrier(2)
    run_side_by_side(identify, 2, config(tmp_path), tmp_path, barrier)
    one, two = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert one == two == Tokenizer.from_pretrained(kept(tmp_path)).identity
    assert not list((tmp_path / "cache").glob(".tokenizer-*"))


def test_a_classifier_learns_its_tokenizer_once_too(tmp_path: Path, learned: list[int]) -> None:
    for name in ("one", "two"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    model = ClassifierConfig(vocab_size=1, classes=1, dim=16, n_layers=1, n_heads=2)
    about = ClassifySettings(
        data=str(tmp_path / "texts"), tokenizer="bpe:270", cache=tmp_path / "cache", model=model
    )
    first, second = about.build().tokenizer, about.build().tokenizer
    assert learned == [270]
    assert first.identity == second.identity


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"cannot write to .*file"):
        config(tmp_path, cache=tmp_path / "file" / "below").task.build()


def test_what_a_setting_names() -> None:
    text = "".join(f" {chr(65 + i)}{chr(97 + i)} {chr(0x4E00 + i)}" for i in range(60)) * 3
    cased, uncased = (Tokenizer.train(text, 150, kind) for kind in (texts.CASED, texts.UNCASED))
    size = cased.vocab_size
    assert texts.fits(f"wordpiece-cased:{size}", cased)
    assert not texts.fits(f"wordpiece-cased:{uncased.vocab_size}", uncased)
    assert not texts.fits(f"wordpiece:{size}", cased)
    assert not texts.fits(f"wordpiece-cased:{size + 1}", cased)


@pytest.mark.parametrize("size", ["", "-4", "256", "1048577", "9" * 5000, "4k"])
@pytest.mark.parametrize("about", [ClassifySettings, small])
def test_a_size_that_is_none(tmp_path: Path, about: Any, size: str) -> None:
    """It is told before anything is read."""
    options: dict[str, Any] = {"tokenizer": f"bpe:{size}"}
    with pytest.raises(SettingsError, match=rf"tokenizer=bpe:{size}: say how many tokens"):
        small(tmp_path, **options) if about is small else about(**options)


def test_a_line_of_json_that_cannot_be_read_is_named_and_not_the_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for bad in ("[" * 100_000, f'{{"text": "a", "n": {"1" * 5000}}}'):
        file.write_text('{"text": "fine"}\n' + bad)
        with pytest.raises(DataError, match=r"^(data=\S+: )?\S+a\.jsonl, line 2 has "):
            config(tmp_path, data=str(file)).task.build()


def test_our_own_error_is_not_told_as_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ValueError("not enough values to unpack")

    for name in ("train", "from_pretrained"):
        monkeypatch.setattr(Tokenizer, name, broken)
    for tokenizer in ("bpe:300", str(tmp_path)):
        with pytest.raises(ValueError, match=r"^not enough values") as error:
            small(tmp_path, tokenizer=tokenizer).task.build()
        assert type(error.value) is ValueError


# --- from weights ---------------------------------------------------------------------------------


def test_weights_are_read_for_the_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their config is enough for everything before it."""
    first = train(small(tmp_path, steps=2), out=tmp_path / "run", display=QUIET)
    loads: list[Any] = []
    load = gpt_files.load

    def loading(*given: Any, **options: Any) -> Any:
        loads.append(given)
        return load(*given, **options)

    monkeypatch.setattr(gpt_files, "load", loading)
    task = small(tmp_path, init_from=str(first.folder / "model"), dropout=0.2).task.build()
    assert not loads
    model = task.model()
    assert len(loads) == 1
    assert isinstance(model, GPT)
    assert model.config == task.config
    assert task.config.dropout == 0.2
    (first.folder / "model" / "addnorm_tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"init_from=.*no tokenizer in "):
        small(tmp_path, init_from=str(first.folder / "model")).task.build()
