"""addnorm.lm_eval: the harness gets of our models what transformers gives of the same folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WHY = "lm-evaluation-harness is not installed: pip install 'addnorm[lm-eval]'"
pytest.importorskip("lm_eval", reason=WHY)
pytest.importorskip("transformers", reason="transformers is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

import addnorm  # noqa: E402
from addnorm.errors import Mendable  # noqa: E402
from addnorm.generation.choices import Question, score_choices  # noqa: E402
from addnorm.lm_eval import HarnessLM  # noqa: E402
from addnorm.models.classifier import ClassifierConfig, TextClassifier  # noqa: E402
from addnorm.models.gpt import GPT, GPTConfig  # noqa: E402
from addnorm.models.recurrent import RecurrentConfig, RecurrentLM  # noqa: E402
from tests.generation.test_likelihood import BYTES, CHARACTERS, PAIRS  # noqa: E402
from tests.nets import stir  # noqa: E402

CONTEXT = 24
TEXTS = [
    ("The cat sat", " on the mat"),
    ("The cat sat ", "on the mat"),  # the space is the continuation's
    ("", "the"),
    ("naïve caf", "é was"),
    ("The cat sat on the mat, and the café was closed. " * 3, " The end"),  # cut on the left
    ("a", "b" * CONTEXT),  # all that fits
]
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "context_length": CONTEXT, "dim": 24, "n_layers": 2, "n_heads": 3}
    folder = tmp_path_factory.mktemp("gpt") / "model"
    stir(GPT(GPTConfig(**sizes))).save_pretrained(folder, tokenizer=PAIRS)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return HFLM(pretrained=str(folder), device="cpu", batch_size=2)


@pytest.mark.parametrize("size", [1, 4])
def test_likelihoods_are_those_of_transformers(folder: Path, theirs: Any, size: int) -> None:
    """1e-4 is what the issue of the two promises; both compute in float32, in other batches."""
    ours = HarnessLM(path=str(folder), batch_size=size, device="cpu")
    pairs = requests("loglikelihood", *TEXTS)
    for (value, greedy), (want, also) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert value == pytest.approx(want, abs=1e-4)
        assert greedy == also
    whole = requests("loglikelihood_rolling", ("The cat",), ("The cat sat on a mat. " * 7,), ("",))
    want = theirs.loglikelihood_rolling(whole)
    assert ours.loglikelihood_rolling(whole) == pytest.approx(want, abs=1e-4)
    assert want[2] == 0


def test_what_is_written_is_what_transformers_writes(folder: Path, theirs: Any) -> None:
    """Of prompts of unlike length, one of which is cut, with stop strings and without."""
    prompts = [text for text, _ in TEXTS if text]
    ours = HarnessLM(path=str(folder), batch_size=3, device="cpu")
    free = requests("generate_until", *((p, {"until": [], "max_gen_toks": 8}) for p in prompts))
    texts = ours.generate_until(free)
    assert texts == theirs.generate_until(free)
    stops = [text[3:5] for text in texts]
    until = {"until": stops, "do_sample": False, "max_gen_toks": 8}
    again = requests("generate_until", *((p, until) for p in prompts))
    short = ours.generate_until(again)
    assert short == theirs.generate_until(again)
    assert short != texts


def test_one_token_is_the_greedy_one(folder: Path, theirs: Any) -> None:
    ours = HarnessLM(path=str(folder), batch_size="auto", device="cpu")
    pieces = [PAIRS.token_bytes(i).decode(errors="ignore") for i in range(PAIRS.vocab_size)]
    tokens = [
        (text, piece)
        for text in ("The cat sat", "the mat", "12, 123")
        for i, piece in enumerate(pieces)
        if PAIRS.encode(text + piece) == [*PAIRS.encode(text), i]
    ]
    pairs = requests("loglikelihood", *tokens)
    scores = ours.loglikelihood(pairs)
    assert scores == [(pytest.approx(v, abs=1e-4), g) for v, g in theirs.loglikelihood(pairs)]
    assert {greedy for _, greedy in scores} == {True, False}


@pytest.mark.slow
@pytest.mark.timeout(900)  # the harness reads the files of all its tasks first
def test_a_task_from_its_file(tmp_path: Path) -> None:
    """A recurrent model, through all of the harness: the command, and the same from Python."""
    torch.manual_seed(0)
    sizes = RecurrentConfig(vocab_size=257, context_length=32, dim=16, n_layers=1)
    addnorm.save(stir(RecurrentLM(sizes)), tmp_path / "model", tokenizer=BYTES)
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"q": f"{i} and 1 are", "a": [f" {i + 1}", " 77"], "gold": 0}) + "\n"
            for i in range(4)
        )
    )
    (tmp_path / "sums.yaml").write_text(TASK.format(folder=tmp_path))
    process = subprocess.run(
        [
            *(sys.executable, "-m", "addnorm.lm_eval", "--model", "addnorm", "--tasks", "sums"),
            *("--model_args", f"path={tmp_path / 'model'}", "--include_path", str(tmp_path)),
            *("--output_path", str(tmp_path / "out.json"), "--batch_size", "2", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )
    assert process.returncode == 0, process.stderr
    (file,) = tmp_path.glob("out*.json")
    figures = json.loads(file.read_text())["results"]["sums"]
    questions = [Question(f"{i} and 1 are", (f" {i + 1}", " 77"), 0) for i in range(4)]
    loaded: Any = addnorm.load(tmp_path / "model")
    scores = score_choices(loaded.model, questions, tokenizer=BYTES)
    assert figures["acc,none"] == scores.accuracy()


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    assert get_model("addnorm") is HarnessLM
    config = ClassifierConfig(vocab_size=257, classes=2, dim=8, n_layers=1)
    addnorm.save(TextClassifier(config), tmp_path / "c", tokenizer=BYTES, labels=["a", "b"])
    with pytest.raises(Mendable, match="c is a text classifier, and lm_eval asks language models"):
        HarnessLM(path=str(tmp_path / "c"))
    with pytest.raises(Mendable, match="unknown dtype 'half'; there are float32"):
        HarnessLM(path=str(folder), dtype="half")
    ours = HarnessLM(path=str(folder), device="cpu")
    assert ours.max_gen_toks == CONTEXT // 2
    for wishes, message in (
        ({"max_gen_toks": CONTEXT}, "leaves no room in the model's context of 24: give less"),
        ({"num_beams": 4}, "unknown generation option 'num_beams'; .*; got 4"),
    ):
        with pytest.raises(Mendable, match=message):
            ours.generate_until(requests("generate_until", ("a", {"until": [], **wishes})))
    free = {"until": [""], "do_sample": True, "temperature": 2.0, "top_k": 0, "max_gen_toks": 4}
    assert len(ours.generate_until(requests("generate_until", ("", free), ("a", free)))) == 2
    for texts, message in (
        (("a", ""), "the continuation '' adds no token to its context"),
        (("a", "b" * (CONTEXT + 1)), "of 25 tokens does not fit the model's context of 24"),
    ):
        with pytest.raises(Mendable, match=message):
            ours.loglikelihood(requests("loglikelihood", texts))
    sizes = {"vocab_size": CHARACTERS.vocab_size, "context_length": 8, "dim": 8, "n_layers": 1}
    GPT(GPTConfig(**sizes, n_heads=2)).save_pretrained(tmp_path / "g", tokenizer=CHARACTERS)
    with pytest.raises(Mendable, match="an empty context stands for the end of a text"):
        HarnessLM(path=str(tmp_path / "g")).loglikelihood(requests("loglikelihood", ("", "a")))
    GPT(GPTConfig(**sizes, n_heads=2)).save_pretrained(tmp_path / "bare")
    with pytest.raises(Mendable, match="bare has no tokenizer beside the model"):
        HarnessLM(path=str(tmp_path / "bare"))
