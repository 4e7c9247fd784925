"""The task of recognizing speech: it learns and resumes, its loss is the definition's."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import addnorm
from addnorm.cli import main
from addnorm.data.audio import log_mel, write_wav
from addnorm.data.sources import DataError
from addnorm.models.speech import SpeechConfig
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings
from addnorm.tasks.overfit import overfit
from addnorm.tasks.transcribe import TranscribeSettings, TranscribeTask
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from addnorm.uses.transcription import Transcription
from tests.tasks.recordings import ljspeech, spoken, texts
from tests.training.test_training import same

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ljspeech(tmp_path_factory.mktemp("recordings") / "a", texts(60))


def config(recordings: Path, **changes: Any) -> Config:
    about = TranscribeSettings(
        data=str(recordings),
        val_fraction=0.2,
        rows_per_step=12,
        dropout=0.0,
        speed=0.05,
        noise=0.2,
        masks=False,
        model=SpeechConfig(
            vocab_size=2,
            n_mels=20,
            frames=200,
            dim=32,
            encoder_layers=1,
            n_heads=2,
            hidden=32,
            kernel=3,
        ),
    )
    loop = LoopSettings(
        steps=150, lr=6e-3, warmup=10, eval_every=75, save_every=60, threads=1, precision="fp32"
    )
    return Config(task=about, loop=loop).changed(changes)


def task_of(recordings: Path, **changes: Any) -> TranscribeTask:
    task = config(recordings, **changes).build()
    assert isinstance(task, TranscribeTask)
    return task


JOINT = {"model.decoder_layers": 1, "model.context_length": 12}


@pytest.fixture(scope="module")
def run(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("run") / "a"
    return addnorm.train(config(recordings), out=folder, display=QUIET)


def test_it_learns(run: Any, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it learned is what predict and eval say, in files and in objects."""
    assert run.metrics["cer"] < 0.1
    assert run.metrics["wer"] < 0.3
    file = recordings / "wavs" / "r0.wav"
    assert main(["predict", str(run.folder), str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"input", "text"}
    assert answer["input"] == str(file)
    assert answer["text"]
    assert main(["eval", str(run.folder), str(recordings), "--json", "--beams", "1"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["recordings"] == 60
    assert figures["cer"] < 0.1
    loaded = addnorm.load(run.folder)
    some = [str(recordings / "wavs" / f"r{i}.wav") for i in range(5)]
    assert [a["text"] for a in loaded.predict(some, batch_size=2)] == [
        a["text"] for a in loaded.predict([{"audio_filepath": name} for name in some])
    ]
    assert "Heard to the letter" in (run.folder / "report.html").read_text()
    assert "→" in (run.folder / "samples.jsonl").read_text()


def test_bad_sounds_are_told_in_their_place(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    write_wav(tmp_path / "silent.wav", np.zeros(999, np.float32), 16_000)
    write_wav(tmp_path / "long.wav", np.tile(spoken("abcd"), 9), 16_000)
    write_wav(tmp_path / "good.wav", spoken("ab cd", 44_100), 44_100)
    names = [str(tmp_path / f"{n}.wav") for n in ("empty", "silent", "long", "good", "missing")]
    assert main(["predict", str(run.folder), *names, "--json"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for answer, words in zip(
        answers,
        ("has no sound", "is silent", "seconds long, and the model hears 2", "", "No such file"),
        strict=True,
    ):
        assert words in answer.get("error", "")
    assert answers[3]["text"] == "ab cd"


def test_a_language_model_of_characters_helps(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(texts(60) * 3))
    about = LanguageSettings(data=str(tmp_path / "lines.txt"), tokenizer="characters")
    small = {"model.dim": 16, "model.n_layers": 1, "model.n_heads": 2, "model.context_length": 24}
    loop = {"steps": 5, "tokens_per_step": 240, "threads": 1, "device": "cpu"}
    addnorm.train(Config(task=about).changed({**small, **loop}), out=tmp_path / "lm", display=QUIET)
    few = ljspeech(tmp_path / "few", texts(4))
    ask = ["eval", str(run.folder), str(few), "--json"]
    assert main([*ask, "--lm", str(tmp_path / "lm"), "--lm-weight", "0.2"]) == 0
    assert json.loads(capsys.readouterr().out)["cer"] < 0.2
    for options, message in (
        (["--lm-weight", "1"], "--lm-weight=1.0 has no effect without lm"),
        (["--ctc-weight", "0.3"], "--ctc-weight=0.3 has no effect without a decoder"),
        (["--lm", str(run.folder)], "a recognizer of speech, and beside one"),
    ):
        assert main([*ask, *options]) == 2
        assert message in capsys.readouterr().err


def test_it_resumes(recordings: Path, tmp_path: Path) -> None:
    wishes = config(recordings, steps=12, save_every=4, **JOINT)
    addnorm.train(wishes, out=tmp_path / "a", display=QUIET)
    addnorm.train(wishes, out=tmp_path / "b", until=5, display=QUIET)
    addnorm.train(wishes, out=tmp_path / "b", resume=True, display=QUIET)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    answer = addnorm.load(tmp_path / "a").predict([str(recordings / "wavs" / "r1.wav")])
    assert "text" in answer[0]


@pytest.mark.parametrize("changes", [{}, {"model.scheme": "post_norm", **JOINT}])
def test_eight_are_learned_by_heart(recordings: Path, changes: dict[str, Any]) -> None:
    outcome = overfit(config(recordings, lr=5e-3, **changes), 8)
    assert not outcome.reason, outcome


def nats_of_ctc(logprobs: np.ndarray, ids: list[int], blank: int) -> float:
    """Of a text, the sum over all rows of frames that say it."""
    total = 0.0
    for row in itertools.product({blank, *ids}, repeat=len(logprobs)):
        if [token for token, _ in itertools.groupby(row) if token != blank] == ids:
            total += math.exp(sum(logprobs[t, token] for t, token in enumerate(row)))
    return -math.log(total)


def test_the_loss_is_the_definition(recordings: Path) -> None:
    task = task_of(recordings, ctc_weight=0.4, label_smoothing=0.2, rows_per_step=3, **JOINT)
    rows = task.splits["train"]
    for row in rows:  # few frames, so that all rows of them can be counted
        assert row.clip.frames > 20
    sounds = [log_mel(row.clip.samples, 20)[:, :20] for row in rows[:2]]
    short = [row._replace(ids=row.ids[:2]) for row in rows[:2]]
    batch = task._padded(short, sounds, 26)
    model = task.model().eval()
    total, count, parts = task.loss(model, batch)
    both = model(batch["features"], batch["ids"], batch["valid"])
    blank, ctc, text = task.config.start_id, 0.0, 0.0
    for i, row in enumerate(short):
        logprobs = both.ctc[i, :5].log_softmax(-1).detach().double().numpy()
        ctc += nats_of_ctc(logprobs, row.ids.tolist(), blank)
        own = both.text[i].log_softmax(-1).detach()
        for place, token in enumerate([*row.ids.tolist(), task.config.end_id]):
            text -= 0.8 * float(own[place, token]) + 0.2 * float(own[place].mean())
    assert int(count) == 6
    assert float(parts["ctc"]) == pytest.approx(ctc, rel=1e-5)
    assert float(total.detach()) == pytest.approx(0.4 * ctc + 0.6 * text, rel=1e-5)


def test_rows_of_a_step_are_the_same_on_any_number_of_processes(recordings: Path) -> None:
    task = task_of(recordings, masks=True, noise=1.0, rows_per_step=7)
    for step in (0, 3, 40):
        alone = task.batch("train", 5, step, 0, 1)
        again = task.batch("train", 5, step, 0, 1)
        for rank in range(3):
            part = task.batch("train", 5, step, rank, 3)
            assert torch.equal(part["features"], alone["features"][rank::3])
            assert torch.equal(part["valid"], alone["valid"][rank::3])
        assert all(torch.equal(alone[name], again[name]) for name in alone)
    other = task.batch("train", 6, 0, 0, 1)
    assert not torch.equal(other["features"][:1, :, :20], alone["features"][:1, :, :20])


def test_the_figures_are_the_definition(recordings: Path) -> None:
    task = task_of(recordings, **JOINT)
    model = task.model().eval()
    figures = task.evaluate(model)
    nats = tokens = 0.0
    for row in task.splits["val"]:
        batch = task._padded([row], [log_mel(row.clip.samples, 20)], 1)
        with torch.no_grad():
            ctc, text = task._nats(model, batch, 0.0)
        assert text is not None
        nats += 0.3 * float(ctc) + 0.7 * float(text)
        tokens += len(row.ids) + 1
    assert figures["val_loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert figures.keys() == {"val_loss", "wer", "cer"}
    shots = task.pictures()[0]["items"]
    assert len(shots) == 5
    assert all(shot["notes"][0][0] == "said" for shot in shots)


def test_a_model_that_says_nothing_is_told(recordings: Path) -> None:
    task = task_of(recordings)
    model = task.model().eval()
    with torch.no_grad():
        model.ctc.bias[task.config.start_id] = 50.0
    task.glance(model)
    assert task.alarm().startswith("Every frame is blank")
    with torch.no_grad():
        model.ctc.bias[0] = 99.0
    task.glance(model)
    assert "The same is heard in every held-out recording" in task.alarm()


def test_what_cannot_be_learned_is_told(tmp_path: Path) -> None:
    lines = [*texts(20), "abcdabcdabcdabcd"]
    folder = ljspeech(tmp_path / "a", lines)
    write_wav(folder / "wavs" / "r20.wav", spoken("ab"), 16_000)
    write_wav(folder / "wavs" / "r3.wav", np.tile(spoken("ab"), 9), 16_000)
    write_wav(folder / "wavs" / "r4.wav", np.zeros(500, np.float32), 16_000)
    words = "\n".join(task_of(folder, val_data=str(folder)).introduction())
    assert "1 recording of more than 2 seconds left out (r3.wav)" in words
    assert "1 sound left out" in words
    assert "r4.wav is silent" in words
    assert "1 recording with more tokens than the encoder has frames" in words
    assert "say what is said in" in words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ctc_weight": 0.5}, "ctc_weight=0.5 has no effect"),
        ({**JOINT, "ctc_weight": 1.0}, "ctc_weight must be between 0 and 1"),
        ({"speed": 0.7}, "speed must be from 0 to 0.5"),
        ({"noise": 1.5}, "noise must be a share"),
        ({"model.context_length": 9}, "context_length=9 has no effect"),
        ({"samples": -1}, "samples must be from 0"),
        ({"rows_per_step": 0}, "rows_per_step must be at least 1"),
    ],
)
def test_wrong_settings(recordings: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config(recordings, **changes)


def test_wrong_data(recordings: Path, tmp_path: Path) -> None:
    for data, message in (("", "data is not set"), (str(tmp_path / "no"), "data=.*there is no")):
        with pytest.raises((DataError, SettingsError), match=message):
            config(recordings, data=data).build()
    with pytest.raises(DataError, match="too few recordings"):
        config(ljspeech(tmp_path / "one", ["ab"])).build()


def test_a_decoder_judges_what_ctc_found(recordings: Path) -> None:
    """With all of the weight on the decoder, its most probable one of the beams is taken."""
    task = task_of(recordings, **JOINT)
    model = task.model().eval()
    use = Transcription(model, task.tokenizer)
    row = task.splits["val"][0]
    features = [log_mel(row.clip.samples, 20)]
    by_decoder, by_ctc = (
        use.texts(features, use.with_defaults({"ctc_weight": share, "beams": 6}))[0]
        for share in (0.0, 1.0)
    )

    def own(text: str) -> float:
        ids = task.tokenizer.encode(text)
        logits = model(features[0][None], torch.tensor([[task.config.start_id, *ids]])).text
        labels = torch.tensor([*ids, task.config.end_id])
        return float(F.cross_entropy(logits[0], labels, reduction="sum").detach())

    assert own(by_decoder) <= own(by_ctc)
