"""eole 0.6.4 on pairs of texts, for as many minutes of the processor as another training took.

It is a program of its own, in an environment of its own; nothing here imports it. It learns from
the ids of our tokenizer, written as words, so that both see the same pieces and the same
vocabulary; its shape, the pairs of a step, precision, dropout and smoothing are those of the
settings. Its learning rate rises to ``RATE``, and then falls with the root of the steps (noam),
which need not know how many there will be. The last model that it saved is asked.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from addnorm.data.pairs import Pair
from addnorm.data.tokenizer.pair import TokenizerPair, read_pair
from addnorm.tasks.translate import TranslateSettings
from addnorm.training.config import Config
from addnorm.training.loop import resolved_precision
from benchmarks.translators import Outputs, digest, read, write

SAVE = 100
"""Steps between the models that it saves."""
RATE, WARMUP = 1e-3, 400
"""The largest learning rate, of those that AdamW bears on such pairs here, and the steps to it."""
QUIET = 3.0
"""Seconds without a change, after which a model that it saves is whole."""


def outputs_of(
    command: str,
    config: Config,
    folder: Path,
    seed: int,
    sides: Mapping[str, Sequence[Pair]],
    beams: int,
    minutes: float,
) -> Outputs:
    """Train until it has had its minutes, and translate the sources of test. ``folder``: that of
    our run with this seed, whose tokenizer and settings are taken; what is there is kept."""
    work, sources = folder / "eole", [row.source for row in sides["test"]]
    wish = {"sources": digest(sources), "beams": beams, "minutes": minutes}
    earlier = read(work / "outputs.json", wish)
    if earlier is not None:
        return earlier
    tokenizers = read_pair(folder / "run" / "best")
    assert tokenizers is not None
    task = config.task
    assert isinstance(task, TranslateSettings)
    work.mkdir(parents=True, exist_ok=True)
    write_data(work, tokenizers, sides, task.model.context_length)
    card = work / "train.json"
    card.write_text(json.dumps(settings(config, task, seed), indent=1))
    spent = training([command, "train", "-config", card.name], work, minutes)
    model = max((work / "model").glob("step_*"), key=lambda path: int(path.name[5:]), default=None)
    if model is None:
        sys.exit(f"eole saved no model in {minutes:.1f} minutes: {work / 'log.txt'}")
    texts = translations(command, work, model, beams, tokenizers)
    outputs = Outputs(texts, spent, f"{int(model.name[5:]):,} steps")
    write(work / "outputs.json", wish, outputs)
    return outputs


def write_data(
    work: Path, tokenizers: TokenizerPair, sides: Mapping[str, Sequence[Pair]], most: int
) -> None:
    """The ids as words, those of test in its order; and the vocabulary. Of train what our model
    reads, too: sides of at most ``most`` tokens with their end."""
    encode = {"src": tokenizers.source.encode, "tgt": tokenizers.target.encode}
    rows = {
        "train": [[encode[side](text) for side, text in zip(encode, row[:2], strict=True)]
                  for row in sides["train"]],
        "test": [[encode["src"](row.source), []] for row in sides["test"]],
    }  # fmt: skip
    rows["train"] = [pair for pair in rows["train"] if max(map(len, pair)) < most]
    for name, pairs in rows.items():
        for place, side in enumerate(encode):
            lines = "".join(" ".join(map(str, pair[place])) + "\n" for pair in pairs)
            (work / f"{name}.{side}").write_text(lines)
    sizes = {"src": tokenizers.source.vocab_size, "tgt": tokenizers.target.vocab_size}
    for side, size in sizes.items():
        (work / f"vocab.{side}").write_text("".join(f"{id}\t1\n" for id in range(size)))


def settings(config: Config, task: TranslateSettings, seed: int) -> dict[str, Any]:
    """What eole reads."""
    model = task.model
    shared = not task.target_tokenizer
    return {
        "seed": seed,
        "src_vocab": "vocab.src",
        "tgt_vocab": "vocab.src" if shared else "vocab.tgt",
        "share_vocab": shared,
        "data": {"train": {"path_src": "train.src", "path_tgt": "train.tgt", "transforms": []}},
        "save_data": "data",
        "overwrite": True,
        "report_every": SAVE,
        "model": {
            "architecture": "transformer",
            "encoder": {"encoder_type": "transformer", "layers": model.encoder_layers},
            "decoder": {"decoder_type": "transformer", "layers": model.decoder_layers},
            "hidden_size": model.dim,
            "heads": model.n_heads,
            "transformer_ff": model.hidden or 4 * model.dim,
            "share_embeddings": shared,
            "share_decoder_embeddings": True,
            "embeddings": {
                "word_vec_size": model.dim,
                "position_encoding": True,
                "position_encoding_type": "SinusoidalInterleaved",
            },
        },
        "training": {
            "model_path": "model",
            "world_size": 1,
            "gpu_ranks": [],
            "num_workers": 0,
            "compute_dtype": resolved_precision(config.loop.precision, torch.device("cpu")),
            "batch_type": "sents",
            "batch_size": task.rows_per_step,
            "bucket_size": 20000,
            "normalization": "tokens",
            "optim": "adam",
            "adam_beta2": 0.998,
            "decay_method": "noam",
            "warmup_steps": WARMUP,
            # noam: rate * dim ** -0.5 * step ** -0.5, largest at the end of the warm-up
            "learning_rate": RATE * (model.dim * WARMUP) ** 0.5,
            "label_smoothing": task.label_smoothing,
            "dropout": [task.dropout],
            "attention_dropout": [model.attention_dropout],
            "max_grad_norm": config.loop.clip,
            "param_init_method": "xavier_uniform",
            "train_steps": 1_000_000,
            "valid_steps": 1_000_000,
            "save_checkpoint_steps": SAVE,
            "keep_checkpoint": 2,
        },
    }


def training(command: Sequence[str], work: Path, minutes: float) -> float:
    """Let it run until it has had its minutes of the processor, its begin included; how many."""
    spent, env = 0.0, {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (work / "log.txt").open("w") as log,
        subprocess.Popen(command, cwd=work, stdout=log, stderr=log, env=env) as process,
    ):
        try:
            while process.poll() is None and (spent < minutes or saves(work)):
                time.sleep(0.5)
                spent = processor_minutes(process.pid) or spent
            status = process.poll()
        finally:
            process.kill()
    if status is not None:
        sys.exit(f"eole ended by itself, with {status}: {work / 'log.txt'}")
    return spent


def saves(work: Path) -> bool:
    """Whether it may just be writing a model."""
    files = (work / "model").glob("step_*/*")
    return any(time.time() - file.stat().st_mtime < QUIET for file in files)


def processor_minutes(pid: int) -> float | None:
    """Of a process, from what Linux says of it; None: it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") / 60


def translations(
    command: str, work: Path, model: Path, beams: int, tokenizers: TokenizerPair
) -> list[str]:
    """Of each line of test.src the best that it finds."""
    words = [command, "predict", "-model_path", str(model.relative_to(work)), "-src", "test.src"]
    words += ["-output", "test.out", "-beam_size", str(beams), "-world_size", "1"]
    with (work / "log.txt").open("a") as log:
        result = subprocess.run(words, cwd=work, stdout=log, stderr=log, check=False)
    if result.returncode:
        sys.exit(f"eole cannot translate: {work / 'log.txt'}")
    lines = (work / "test.out").read_text().splitlines()
    ids = [[int(word) for word in line.split() if word.isdecimal()] for line in lines]
    return [tokenizers.target.decode(some) for some in ids]
