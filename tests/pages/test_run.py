"""The page of a run: the figures in it are those in the run's files, whatever the files hold, and
the page can be read by anyone, anywhere."""

import json
import math
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from addnorm import GPTConfig, train
from addnorm.cli import arguments
from addnorm.cli import eval as cli_eval
from addnorm.cli import generate as cli_generate
from addnorm.cli import train as cli_train
from addnorm.pages.numbers import exact
from addnorm.pages.run import NAME, render, write
from addnorm.pages.run_story import Story
from addnorm.settings import defaults_to_json
from addnorm.tasks.classify import ClassifyTask
from addnorm.tasks.language import LanguageSettings, LanguageTask
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.strict_html import Page

CHOSEN = Config(loop=LoopSettings(steps=100, lr=3e-4), task=LanguageSettings(data="books/moby.txt"))
CONFIG = CHOSEN.to_json()


def step(n: int, **more: Any) -> dict[str, Any]:
    """A step's record, with numbers that tell which step it is."""
    return {
        "step": n,
        "tokens": 64 * n,
        "elapsed_s": n / 4,
        "loss": 5.0 - 0.02 * n,
        "lr": 1e-5 * n,
        "grad_norm": 1.0 + 0.001 * n,
        "tokens_per_s": 1000.0 + n,
        **more,
    }


def evaluation(n: int, value: float, **more: Any) -> dict[str, Any]:
    return {
        "step": n,
        "tokens": 64 * n,
        "elapsed_s": n / 4,
        "val_loss": value,
        "whole": False,
        **more,
    }


def state(**more: Any) -> dict[str, Any]:
    return {
        "addnorm": "0.1.0",
        "torch": "2.13.0",
        "device": "cpu",
        "precision": "bf16",
        "threads": 3,
        "command": "addnorm train --data books/moby.txt",
        "step": 100,
        "tokens": 6400,
        "finished": True,
        "elapsed_s": 75.25,
        "best": 3.0123,
        "metric": "val_loss",
        "metrics": {},
        "failure": "",
        "noun": LanguageTask.noun,
        "unit": LanguageTask.unit,
        "commands": dict(LanguageTask.commands),
        "config": CONFIG,
        "defaults": CHOSEN.defaults(),
        **more,
    }


def run_of(
    folder: Path,
    told: Mapping[str, Any] | None = None,
    records: Sequence[Any] = (),
    samples: Sequence[Any] = (),
) -> Path:
    """A run's folder with these files."""
    folder.mkdir(exist_ok=True, parents=True)
    if told is not None:
        (folder / "run.json").write_text(json.dumps(told))
    if records:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if samples:
        lines = (json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
        (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


RECORDS = [
    *(step(n) for n in range(1, 51)),
    evaluation(50, 3.0123),
    *(step(n) for n in range(51, 101)),
    evaluation(100, 3.2345, whole=True, perplexity=25.3934, bits_per_byte=1.2345),
]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run that went well."""
    told = state(compressed={"gzip -9": 2.1987, "xz -9": 1.9})
    samples = [{"step": 50, "samples": ["Call me"]}, {"step": 100, "samples": ["Call me Ishmael"]}]
    return run_of(tmp_path / "whale", told, RECORDS, samples)


def made(story: Story) -> Page:
    """The page, read; whatever the run was, no line goes where there is no place."""
    text = render(story)
    page = Page(text)
    for tag, attrs in page.tags:
        for name in ("d", "cx", "cy", "x", "y", "viewBox"):
            if name in attrs and tag in ("path", "circle", "text", "svg"):
                assert not re.search("nan|inf|e[+-]", attrs[name]), (tag, name, attrs[name][:80])
    return page


def read(folder: Path) -> Page:
    return made(Story.read(folder))


# --- what it says ---------------------------------------------------------------------------------


def test_headline_figures_are_those_of_the_files(finished: Path) -> None:
    words = read(finished).words
    assert "whale" in words
    assert (
        "4 layers and width 256, Add & Norm as pre_norm, on moby.txt: finished after 100" in words
    )
    assert "best held-out loss3.0123step 50" in words
    assert "last held-out loss3.2345step 100, on all that is held out" in words
    assert "bits per byte1.2345gzip -9: 2.1987, xz -9: 1.9000" in words
    assert "tokens seen6,4006,400 in 100 steps" in words
    assert "time1 min 15 s" in words
    # 1001 .. 1100: the median is 1050.5, in three digits and with a comma 1,050
    assert "tokens/s1,050" in words


def test_curves_are_told_in_words(finished: Path) -> None:
    page = read(finished)
    loss = (
        "Training, smoothed: 4.9800 at first, 3.0000 at the end; the lowest single step 3.0000 "
        "(step 100), the highest 4.9800 (step 1). Held out, dots: 3.0123 at step 50. Ring, on all "
        "that is held out: 3.2345 at step 100."
    )
    gradient = "Median 1.05, largest 1.1 at step 100. Clipped to 1 at 100 steps."
    rate = "From 1e-05 to 0.001 at step 100, 0.001 at the end.".replace("-", "\u2212")
    for told in (loss, gradient, rate):
        assert told in page.words
        assert any(told in svg["aria-label"] for svg in page.all("svg"))
    assert all(len(svg["aria-label"]) > 40 for svg in page.all("svg"))


def test_evaluations_are_a_table(finished: Path) -> None:
    text = render(Story.read(finished))
    rows = re.findall(r"<tr>(.*?)</tr>", text[: text.index("<h2>Learning rate")])
    told = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert told == [
        ["step", "held-out loss", "perplexity", "bits per byte"],
        ["50", "3.0123", "", ""],
        ["100 <small>all</small>", "3.2345", "25.3934", "1.2345"],
    ]


def test_points_are_where_the_values_are(tmp_path: Path) -> None:
    """Of three evaluations, places are in proportion to steps and values."""
    told = [evaluation(10, 4.0), evaluation(40, 3.0), evaluation(100, 2.5)]
    page = read(run_of(tmp_path, state(), [step(n) for n in range(1, 101)] + told))
    places = [(float(c["cx"]), float(c["cy"])) for c in page.all("circle")]
    assert len(places) == 6  # once on the wide plot, once on the narrow one
    for (x0, y0), (x1, y1), (x2, y2) in (places[:3], places[3:]):
        # Coordinates are rounded to 0.1; the differences are at least 25 long, and so are off by
        # less than 0.1 / 25, their ratio by less than twice that of itself.
        assert (x1 - x0) / (x2 - x1) == pytest.approx(0.5, rel=0.008)
        assert (y1 - y0) / (y2 - y1) == pytest.approx(2.0, rel=0.008)
        assert y0 < y1 < y2  # a smaller loss is lower


def test_stream_by_layer_and_over_the_steps(tmp_path: Path) -> None:
    records = [step(n, stream_rms=[0.5, 0.1 * n, 0.2 * n, 0.4 * n]) for n in (1, 11, 51, 91)]
    page = read(run_of(tmp_path, state(), records))
    assert "Step 1: 0.5000 after sublayer 1, 0.4000 after sublayer 4" in page.words
    assert "step 91: 0.5000 after sublayer 1, 36.4000 after sublayer 4" in page.words
    assert (
        "Sublayer 1: 0.5000 to 0.5000; sublayer 2: 0.1000 to 9.1000; sublayer 4: 0.4000 to 36.4000"
    ) in page.words
    for named in ("step 1", "step 11", "step 51", "step 91", "sublayer 2", "sublayer 4"):
        assert f">{named}</text>" in render(Story.read(tmp_path))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"finished": True}, "finished after 60 steps"),
        ({"failure": "SIGTERM"}, "stopped by SIGTERM at step 60 of 100"),
        ({"failure": "step 60: loss nan is not finite; lr"}, "diverged after step 60 of 100"),
        ({"failure": "the disk is full"}, "broke off after step 60 of 100"),
        ({}, "not finished, 60 of 100 steps so far"),
        ({"failure": "", "skipped": 2, "rollbacks": 1}, "2 steps left out; 1 time back to"),
    ],
)
def test_how_it_ended(tmp_path: Path, told: dict[str, Any], words: str) -> None:
    found = {"finished": False, "step": 20, **told}  # run.json is from the last save
    page = read(run_of(tmp_path, state(**found), [step(n) for n in range(1, 61)]))
    assert words in page.words
    if " " in told.get("failure", ""):
        assert told["failure"] in page.words


def test_what_broke_is_marked_where_it_broke(tmp_path: Path) -> None:
    records = [step(n) for n in range(1, 101)]
    records[29] = step(30, loss=math.nan, grad_norm=math.nan, skipped=True)
    records[69] = step(70, grad_norm=1e5, skipped=True)
    records[79] = step(80, loss=math.inf)
    page = read(run_of(tmp_path, state(skipped=2), records))
    assert "\u00d7 not finite at 2 steps: 30, 80." in page.words
    assert "\u00d7 not finite at 1 step: 30. \u25bd left out 1 step: 70." in page.words
    assert "largest 100,000 at step 70" in page.words
    marks = {
        kind: [float(x) for a in page.all("path") if a.get("class") == kind for x in starts(a["d"])]
        for kind in ("cross", "wedge")
    }
    # Crosses: two on either plot of the loss, then one on the gradient's, which is 480 wide with
    # 56 left and right of the axis; a mark begins 4 before its step. Rounded to whole pixels.
    assert len(marks["cross"]) == 5
    assert marks["cross"][4] == pytest.approx(56 + 0.3 * (480 - 112) - 4, abs=0.5)
    assert marks["wedge"] == pytest.approx([56 + 0.7 * (480 - 112) - 4], abs=0.5)


def starts(d: str) -> list[str]:
    """The x of every absolute move."""
    return re.findall(r"M([\d.]+)", d)


def test_another_metric_has_its_own_plot(tmp_path: Path) -> None:
    records = [
        step(1, accuracy=0.25),
        {"step": 1, "accuracy": 0.5, "val_loss": 0.9, "whole": False},
        step(2, accuracy=0.5),
        {"step": 2, "accuracy": 0.75, "val_loss": 0.7, "whole": True},
    ]
    about = {"task": "classify", "data": "texts", "model.n_layers": 2, "model.dim": 8}
    told = state(metric="accuracy", best=0.75, step=2, config=about)
    told |= {"noun": ClassifyTask.noun, "unit": ClassifyTask.unit, "commands": {}}
    page = read(run_of(tmp_path, told, records))
    assert "A classifier of texts of 2 layers" in page.words
    assert "best held-out accuracy0.7500step 2" in page.words
    assert "Held-out accuracyTraining" not in page.words  # labels and caption are apart
    assert "Training, smoothed: 0.2500 at first, 0.5000 at the end" in page.words
    assert "Training, smoothed: 4.9800 at first, 4.9600 at the end" in page.words
    assert "texts/s" in page.words
    assert "addnorm generate" not in page.words


def test_settings_that_differ_come_first(finished: Path) -> None:
    text = render(Story.read(finished))
    table = text[text.index("<h2>Settings") : text.index("<h2>Environment")]
    rows = [
        re.findall(r"<code>(.*?)</code>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]
    ]
    first, rest = table.split("<details>")
    assert rows[:3] == [
        ["data", "books/moby.txt", "stdlib"],
        ["steps", "100", "1000"],
        ["lr", "0.0003", "0.001"],
    ]
    assert first.count("<tr>") == 4  # and the head
    assert sorted([row[0] for row in rows if len(row) > 1]) == sorted(CONFIG)
    assert f"{len(CONFIG) - 3} settings at the default" in rest
    assert ["init_from", "none"] in rows
    assert ["model.bias", "true"] in rows


def test_settings_of_a_task_of_ones_own(tmp_path: Path) -> None:
    chosen = {"steps": 7, "lr": 0.001, "once": [1]}
    told = state(config=chosen, defaults=defaults_to_json(LoopSettings), metric="error", best=None)
    page = read(run_of(tmp_path, told))
    assert "2 settings not at the default" in page.words  # once: not known today
    assert "1 setting at the default" in page.words
    assert f"addnorm.train(task, out={str(tmp_path)!r}, loop=loop, resume=True)" in page.words


def test_a_run_json_that_says_less_has_a_page(tmp_path: Path) -> None:
    """As runs wrote it before they noted down what they train."""
    told = state()
    for name in ("noun", "unit", "commands", "defaults"):
        del told[name]
    page = read(run_of(tmp_path, told, RECORDS))
    assert "A model of 4 layers and width 256, Add & Norm as pre_norm, on moby.txt" in page.words
    assert "targets seen6,400" in page.words
    assert f"{len(CONFIG)} settings." in page.words
    assert "addnorm train --resume" in page.words
    assert "addnorm generate" not in page.words
    for odd in ({"noun": 3, "unit": [1], "commands": "x", "defaults": 5}, {"commands": {"a": 1}}):
        assert "moby.txt" in read(run_of(tmp_path, state(**odd), RECORDS)).words


def test_environment_is_a_table(finished: Path) -> None:
    text = render(Story.read(finished))
    rows = dict(
        re.findall(r"<th scope=\"row\"><code>(.*?)</code></th><td><code>(.*?)</code>", text)
    )
    assert rows["PyTorch"] == "2.13.0"
    assert rows["threads of each"] == "3"
    assert rows["command"] == "addnorm train --data books/moby.txt"


@pytest.mark.parametrize("end", ["finished", "stopped", "diverged"])
def test_commands_are_understood(tmp_path: Path, end: str) -> None:
    """Each is what its subcommand reads, also where the folder's name has a space and a quote."""
    failure = {"finished": "", "stopped": "SIGINT", "diverged": "loss nan is not finite"}[end]
    folder = run_of(tmp_path / "my 'own' run", state(finished=end == "finished", failure=failure))
    text = render(Story.read(folder))
    assert "No model is saved yet" in text
    (folder / "model").mkdir()
    assert f"{escape(shlex.quote(str(folder)))} &quot;Once" in render(Story.read(folder))
    (folder / "best").mkdir()
    commands = re.findall(r"<code>(addnorm .*?)</code></pre>", render(Story.read(folder)))
    kinds = {"train": cli_train, "generate": cli_generate, "eval": cli_eval}
    found = {}
    for command in commands:
        _, name, *args = shlex.split(Page(f"<p>{command}</p>").words)
        found[name] = arguments.read(kinds[name].Options, args, name, "")
    assert found["train"].resume == folder
    wanted = {"finished": ("steps=200",), "stopped": (), "diverged": ("lr=0.00015",)}
    assert found["train"].settings == wanted[end]
    assert found["generate"].model == found["eval"].model == str(folder / "best")
    assert found["generate"].prompts == ("Once upon a time",)


def test_several_processes_go_on_as_several(tmp_path: Path) -> None:
    page = read(run_of(tmp_path, state(finished=False, processes=8)))
    start = "torchrun --standalone --nproc-per-node 8 -m addnorm train --resume"
    assert f"{start} {shlex.quote(str(tmp_path))}" in page.words


def test_the_first_steps_of_a_long_run_do_not_flatten_the_rest(tmp_path: Path) -> None:
    """Losses of 90 in the first 20 of 1,000 steps, then 3 to 2: the axis is that of the latter."""
    records = [step(n, loss=90.0 if n <= 20 else 3 - n / 1000) for n in range(1, 1001)]
    text = render(Story(tmp_path, state(), [*records, evaluation(10, 88.0), evaluation(900, 2.2)]))
    labels = re.findall(
        r'text-anchor="end">([\d.]+)</text>', text[: text.index("<h2>Learning rate")]
    )
    assert {float(v) for v in labels} == {2.0, 2.5, 3.0}
    assert text.count("<title>step 900: 2.2000</title>") == 2
    assert "<title>step 10:" not in text  # beyond the plot: in words, and in the table
    assert "Values above the plot in the first 5% of the steps are cut off" in text
    assert "Held out, dots: 88.0000 at step 10 to 2.2000 at step 900." in text


# --- samples --------------------------------------------------------------------------------------


def test_first_and_last_samples(tmp_path: Path) -> None:
    samples = [{"step": n, "samples": [f"text of {n}", "and\u2028more"]} for n in (10, 20, 30)]
    folder = run_of(tmp_path, samples=[*samples, {"step": 30, "samples": ["said again"]}])
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 40, "samp')  # cut off by a kill
    page = read(folder)
    assert "Step 10text of 10and\u2028more" in page.words
    assert "Step 30said again" in page.words
    assert "text of 20" not in page.words
    assert "text of 30" not in page.words


def test_long_samples_are_cut(tmp_path: Path) -> None:
    long = "\n".join(f"line {i}." for i in range(20))
    endless = "x" * 5000
    text = render(Story.read(run_of(tmp_path, samples=[{"step": 1, "samples": [long, endless]}])))
    seen, *more = text[text.index("<h2>What it wrote") :].split("<summary>more</summary>")
    assert "line 9." in seen
    assert "line 10." not in seen
    assert "line 19." in more[0]
    assert len(more) == 2
    assert text.count("x" * 800) == 1 + 4  # at once, and of the 3,200 that follow
    assert "1,000 letters more in samples.jsonl" in text


HOSTILE = "</pre><script>alert('1')</script>\"'&amp;\x00\x1b[31m\ud800\uffff\u202e"


def test_nothing_gets_out_of_its_place(tmp_path: Path) -> None:
    told = state(
        finished=False,
        failure=f"{HOSTILE} not finite",
        metric=HOSTILE,
        command=HOSTILE,
        noun=HOSTILE,
        unit=HOSTILE,
        commands={HOSTILE: HOSTILE},
        compressed={HOSTILE: 2.0},
        config={**CONFIG, "data": HOSTILE, "model.scheme": HOSTILE, HOSTILE: [HOSTILE]},
    )
    records = [step(1), {"step": 1, HOSTILE: 2.0, "bits_per_byte": 1.0, "whole": False}]
    folder = run_of(tmp_path / "<b>&'\"", told, records)
    (folder / "model").mkdir()
    line = json.dumps({"step": 1, "samples": [HOSTILE]})
    (folder / "samples.jsonl").write_text(line)
    page = Page(write(folder).read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("b")
    assert page.words.count("<script>alert('1')</script>\"'&amp;") >= 14
    assert not set(page.words) & {"\x00", "\x1b", "\ud800", "\uffff"}
    assert "\u2400" in page.words  # the sign for NUL


# --- whatever the files hold ----------------------------------------------------------------------


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    page = Page(write(tmp_path).read_text())
    for told in ("no step is done yet", "no steps yet", "no samples yet", "no settings yet"):
        assert told in page.words
    assert "no measurements of the stream yet" in page.words
    assert "no run.json yet" in page.words
    assert "no evaluation yet" in page.words


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    run_of(tmp_path, state(), [step(1), step(2)])
    (tmp_path / "run.json").write_text("[1, 2")
    (tmp_path / "samples.jsonl").write_text('3\n{"step": "x"}\n{"step": 1, "samples": 5}\nnull\n')
    page = read(tmp_path)
    assert "A model: not finished, 2 steps so far" in page.words
    (tmp_path / "run.json").write_text("[1, 2]")
    assert "A model: not finished, 2 steps so far" in read(tmp_path).words


def test_no_stream_where_none_was_asked_for(tmp_path: Path) -> None:
    folder = run_of(tmp_path, state(config={**CONFIG, "watch_every": 0}), [step(1)])
    assert "no measurements of the stream yet (watch_every is 0)" in read(folder).words


ODD: dict[str, list[dict[str, Any]]] = {
    "one step": [step(1, stream_rms=[1.0])],
    "constant": [
        step(n, loss=2.0, grad_norm=1.0, lr=0.1, tokens_per_s=5.0, stream_rms=[2.0, 2.0])
        for n in range(1, 9)
    ],
    "zero": [
        step(n, loss=0.0, grad_norm=0.0, lr=0.0, tokens_per_s=0.0, stream_rms=[0.0, 0.0, 0.0])
        for n in range(1, 9)
    ],
    "nan": [
        step(n, loss=math.nan, grad_norm=math.nan, lr=math.nan, stream_rms=[math.nan, 1.0])
        for n in range(1, 9)
    ],
    "infinite": [
        step(n, loss=math.inf, grad_norm=-math.inf, tokens_per_s=math.inf, stream_rms=[math.inf])
        for n in range(1, 9)
    ],
    "huge": [
        step(n, loss=10.0 ** (38 * n), grad_norm=1.7e308, tokens_per_s=1e199, stream_rms=[1e308])
        for n in range(1, 9)
    ],
    "tiny": [
        step(n, loss=5e-324, grad_norm=1e-300, lr=1e-320, tokens_per_s=1e-9, stream_rms=[1e-40])
        for n in range(1, 9)
    ],
    "negative": [step(n, loss=-1.0 * n, stream_rms=[-1.0, 1.0]) for n in range(1, 9)],
    "half of it": [{"step": 3, "loss": 1.0}, {"step": 4, "lr": 1.0, "loss": None}],
    "words": [step(1, loss="a", grad_norm=[1], lr=True, stream_rms="b", tokens_per_s={})],
    "steps": [step(-4), {**step(1), "step": 10**400}, step(10**12), {**step(1), "step": True}],
    "no stream": [step(1, stream_rms=[]), step(2, stream_rms=None), step(3, stream_rms=["x"])],
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("value", [2.0, 0.0, -1.0, math.nan, math.inf, 1e300, None, "x"])
def test_odd_runs_have_a_report(what: str, value: Any) -> None:
    records = [*ODD[what], evaluation(2, value), evaluation(8, value, whole=True, bits_per_byte=1)]
    page = made(Story(Path("odd"), state(best=value), records))
    assert "odd" in page.words
    assert "Learning rate and gradient" in page.words


def test_odd_values_are_told_as_they_are() -> None:
    words = made(Story(Path("odd"), state(), ODD["huge"])).words
    assert "the highest 1e+190 (step 5)" in words  # what is larger is told as infinite
    assert "\u00d7 not finite at 3 steps: 6, 7, 8" in words
    words = made(Story(Path("odd"), state(best=None), ODD["constant"])).words
    assert "Training, smoothed: 2.0000 at first, 2.0000 at the end" in words
    assert "best held-out loss" not in words


# --- long runs ------------------------------------------------------------------------------------


def test_a_hundred_thousand_steps_are_a_small_page_with_their_spikes(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    for n in range(1, 100_001):
        wave = math.sin(n * n)  # as good as noise
        more = {"stream_rms": [1.0 + i + wave for i in range(96)]} if n % 1000 == 1 else {}
        records.append(step(n, loss=3 + wave / 9, grad_norm=1 + wave / 9, lr=1e-4, **more))
        if n % 10 == 0:
            records.append(evaluation(n, 3 + wave / 20))
            records[-2]["skipped"] = True
        if n % 7 == 0:
            records[-1]["grad_norm"] = math.nan
    spike = 54_321
    at = next(i for i, r in enumerate(records) if r["step"] == spike)
    records[at] = step(spike, loss=2.0, grad_norm=500.0)
    text = "m" * 100_000
    samples = [(n, [text] * 3) for n in range(0, 100_001, 10_000)]
    begun = time.perf_counter()
    page_text = render(Story(Path("long"), state(), records, samples))
    # 2 s on one core; it must not be minutes.
    assert time.perf_counter() - begun < 60
    assert len(page_text.encode()) < 1_000_000
    page = Page(page_text)
    assert f"largest 500 at step {spike:,}" in page.words
    assert f"the lowest single step 2.0000 (step {spike:,})" in page.words
    raw = [a["d"] for a in page.all("path") if a.get("class") == "raw"]
    # The gradient's plot is 480 wide with 56 at either side, 260 high with 16 above and 34 below:
    # the largest value is 0.1 of a decade below the top.
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", raw[2])]
    x, y = min(points, key=lambda p: p[1])
    assert x == pytest.approx(56 + spike / 1e5 * (480 - 112), abs=1)  # a pixel
    assert y < 16 + 0.1 * 210
    assert sorted(p[1] for p in points)[4] > 16 + 0.3 * 210  # the others stay where they were
    rows = page_text[page_text.index("evaluations as a table") :].split("</table>")[0]
    assert rows.count("<tr>") == 101
    assert "100,000 <small>" not in rows
    assert ">100,000</th>" in rows


# --- the file -------------------------------------------------------------------------------------


def test_the_page_is_whole_or_not_there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays until the new one is whole; nothing else is left."""
    before = {p.name for p in finished.iterdir()}
    page = write(finished)
    assert page == finished / NAME
    assert {p.name for p in finished.iterdir()} == before | {NAME}
    first = page.read_bytes()
    assert write(finished).read_bytes() == first  # of the same files, the same page

    def torn(self: Path, target: Path) -> Path:
        assert page.read_bytes() == first
        raise OSError("no")

    (finished / "run.json").write_text(json.dumps(state(best=1.0)))
    monkeypatch.setattr(Path, "replace", torn)
    with pytest.raises(OSError, match="no"):
        write(finished)
    assert page.read_bytes() == first


def test_page_is_self_contained_and_readable(finished: Path) -> None:
    text = render(Story.read(finished))
    page = Page(text)
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "base", "image", "form"}
    assert not forbidden & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "href", "background"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
    for loader in ("url(", "@import", "@font-face"):
        assert loader not in text
    assert page.all("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" for svg in page.all("svg"))
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 4
    headings = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert max(b - a for a, b in pairwise(headings)) <= 1


def test_a_real_run(tmp_path: Path) -> None:
    """The names that a run writes are those that are read."""
    (tmp_path / "text.txt").write_text("The whale, the whale! " * 200)
    config = Config(
        task=LanguageSettings(
            data=str(tmp_path / "text.txt"),
            tokens_per_step=64,
            samples=1,
            glance_tokens=100,
            cache=tmp_path / "cache",
            model=GPTConfig(vocab_size=1, context_length=16, dim=8, n_layers=2, n_heads=2),
        ),
        loop=LoopSettings(steps=4, eval_every=2, watch_every=2, warmup=1),
    )
    train(config, out=tmp_path / "run", display=Display(quiet=True))
    page = Page(write(tmp_path / "run").read_text(encoding="utf-8"))
    told = json.loads((tmp_path / "run/run.json").read_text())
    for words in (
        "finished after 4 steps",
        f"last held-out loss{exact(told['metrics']['val_loss'])}step 4",
        f"best held-out loss{exact(told['best'])}step 4, on what",
        f"bits per byte{exact(told['metrics']['bits_per_byte'])}",
        "tokens seen256256 in 4 steps",
        "sublayer 4:",
        f"addnorm generate {shlex.quote(str(tmp_path / 'run/best'))}",
    ):
        assert words in page.words
    sample = json.loads((tmp_path / "run/samples.jsonl").read_text().splitlines()[-1])
    assert "Step 4" in page.words
    assert sample["samples"][0][:6] in page.words


# --- in a browser ---------------------------------------------------------------------------------

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.mark.timeout(120)
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
@pytest.mark.parametrize("width", [390, 760, 1200])
def test_nothing_is_wider_than_the_window(finished: Path, tmp_path: Path, width: int) -> None:
    assert BROWSER is not None
    long = "a_very_long_name_without_any_place_to_break_it" * 4
    told = state(
        finished=False,
        failure=f"{long}: not finite",
        command=long,
        compressed={"gzip -9": 2.1987},
        config={**CONFIG, "data": long, "model.scheme": long, f"model.{long}": long},
    )
    records = [step(n, stream_rms=[1.0, 2.0 * n, 3.0]) for n in range(1, 101)]
    many = {f"{long}_{i}": 1234.5 for i in range(9)}
    folder = run_of(
        tmp_path / long[:200],
        told,
        [*records, evaluation(100, 3.0, whole=True, **many)],
        [{"step": 100, "samples": [long, f"{long} " * 9]}],
    )
    text = write(folder).read_text(encoding="utf-8").replace("<details>", "<details open>")
    # The page's document is of the wrapper's origin, so that its measures can be read from there.
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(text)}"></iframe>'
        "<script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
        "document.title = [page.documentElement.scrollWidth, page.documentElement.clientWidth,"
        "page.querySelectorAll('svg').length, page.documentElement.scrollHeight].join(' ') }"
        "</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000",
            "--virtual-time-budget=2000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stderr[-500:]
    wide, window, plots, high = map(int, found.groups())
    assert wide <= window <= width
    assert plots == 8
    assert high > 2000  # it was laid out
