"""The files of a byte-level BPE, read and checked before anything is made of them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addnorm import reading
from addnorm.data.tokenizer.kind import CARD, ENDOFTEXT, TokenizerError
from addnorm.errors import value_in_short
from addnorm.words import a_few

FILE = "tokenizer.json"
PARTS = ("vocab.json", "merges.txt")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
ROLES = ("eos_token", "pad_token")
FOREIGN = {
    "tokenizer.model": "SentencePiece or tiktoken, which is not read here",
    "spiece.model": "SentencePiece, which is not read here",
    "encoder.json": "OpenAI's name for vocab.json: rename it",
    "vocab.bpe": "OpenAI's name for merges.txt: rename it",
}


def expect_files(folder: Path) -> None:
    """Raise a TokenizerError that says what is there instead unless the files of a BPE are."""
    names = sorted(path.name for path in folder.iterdir())
    parts = [name for name in PARTS if name in names]
    if FILE in names or len(parts) == len(PARTS):
        return
    if parts:
        (missing,) = {*PARTS} - {*parts}
        raise TokenizerError(
            f"{folder} has {parts[0]}, but not {missing}: both come from one download, and neither "
            "can be made from the other"
        )
    foreign = [f"{name} is {what}" for name, what in FOREIGN.items() if name in names]
    raise TokenizerError(
        f"no tokenizer in {folder}: expected {FILE}, or {' and '.join(PARTS)}, or what "
        f"Tokenizer.save wrote, with its {CARD}. "
        + (f"There is: {a_few(names, 20)}" if names else "The folder is empty")
        + (f" ({'; '.join(foreign)})" if foreign else "")
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What the makers say in the files of CONFIGS, {} where there are none: all of
    tokenizer_config.json, and of special_tokens_map.json the roles that the first leaves out."""
    last, first = (
        reading.json_object(p, TokenizerError) if os.path.lexists(p := folder / name) else {}
        for name in CONFIGS
    )
    roles = {role: first[role] for role in ROLES if first.get(role) and not last.get(role)}
    return {**last, **roles}


def from_vocab_and_merges(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """``vocab.json`` and ``merges.txt``, which must be there, in the form of a ``tokenizer.json``.
    ``config``: what ``read_config`` gave. A TokenizerError where the two do not fit together."""
    vocab = reading.json_object(folder / "vocab.json", TokenizerError)
    path = folder / "added_tokens.json"
    added = reading.json_object(path, TokenizerError) if os.path.lexists(path) else {}
    if more := sorted(added.keys() - vocab.keys()):
        raise TokenizerError(
            f"{path} has tokens that vocab.json does not have ({a_few(more, 5)}): of these old "
            "files only vocab.json and merges.txt are read; save the tokenizer as tokenizer.json "
            "with transformers"
        )
    path, merges, results = folder / "merges.txt", [], set()
    lines = reading.lines(path, TokenizerError)
    if lines:
        reading.check_no_pointer(path, lines[0], TokenizerError)
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(f"{path}, line {number}: expected two tokens, found {line!r}")
        if (unknown := _unknown_token(pair, vocab)) is not None:
            raise TokenizerError(
                f"{path}, line {number}: {line!r} needs {unknown!r}: not in vocab.json"
            )
        merges.append(pair)
        results.add("".join(pair))
    # A file that was cut short at the end of a line shows in tokens that nothing makes.
    results |= {name for role in ROLES if (name := token_text(config.get(role)))}
    bracketed = re.compile(r"<.+>|\[.+\]")  # <|endoftext|>, <s>, [PAD]: made by hand
    orphans = [t for t in vocab if len(t) > 1 and t not in results and not bracketed.fullmatch(t)]
    if orphans:
        raise TokenizerError(
            f"{path} has {len(merges)} merges, and {len(orphans)} tokens of vocab.json come from "
            f"none of them ({a_few(map(repr, orphans), 5)}): it is cut short, or from another "
            "tokenizer"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [special_token(ENDOFTEXT, vocab[ENDOFTEXT])] if ENDOFTEXT in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def token_text(token: Any) -> str | None:
    """The text of a token in a configuration, which is a str, or an object with its ``content``;
    None where it names none. A TokenizerError for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"the configuration has {reading.in_words(text)} for a token")
    return text


def special_token(token: str, id: int) -> dict[str, Any]:
    """A special token as a ``tokenizer.json`` describes it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": token, **flags, "special": True}


def _unknown_token(pair: Sequence[str], vocab: dict[str, int]) -> str | None:
    """Of two tokens and what they are merged to, the first that is not in the vocabulary; None: all
    are."""
    for token in (*pair, "".join(pair)):
        if token not in vocab:
            return token
    return None


def alphabet() -> dict[str, int]:
    """Character -> byte, in GPT-2's way of writing bytes: those that print as themselves, and the
    others as the characters from U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*visible})
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(others)}


def flat_steps(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A step of a ``tokenizer.json`` in a list, or the steps of a Sequence, which has them under
    the key ``members``; [] for null. Each has a "type"; a TokenizerError where one has not."""
    if step is None:
        return []
    if not isinstance(step, dict):
        raise TokenizerError(f"a step in it is {reading.in_words(step)}, expected an object")
    if step.get("type") == "Sequence":
        inside = reading.field({members: [], **step}, members, list, "it", TokenizerError)
        return [inner for member in inside for inner in flat_steps(member, members)]
    step = {"type": "without a name", **step}
    reading.field(step, "type", str, "a step in it", TokenizerError)
    return [step]


def check_bpe(data: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(model, added tokens) of a ``tokenizer.json``, each token with all of its flags; a
    TokenizerError that lists what is not byte-level BPE of GPT-2's family, or is damaged."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise TokenizerError("no model in it: not a tokenizer.json")
    usual = {**special_token("", -1), "special": False}
    added = [{**usual, **token} for token in _objects(data.get("added_tokens"), "added_tokens")]
    for token in added:
        for key, value in usual.items():
            reading.field(token, key, type(value), "a token in added_tokens", TokenizerError)
    kind = model.get("type") or ("BPE" if "merges" in model else "without a name")
    foreign = [f"model {kind}"] if kind != "BPE" else []
    steps = flat_steps(data.get("pre_tokenizer"), "pretokenizers")
    names = [step["type"] for step in steps]
    if names.count("ByteLevel") != 1 or {*names} - {"ByteLevel", "Split", "Digits", "Punctuation"}:
        foreign.append(f"pre-tokenizer {', '.join(names) or 'none'}")
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space", True):
            foreign.append("add_prefix_space, which puts a space before every text")
        if step.get("behavior") == "Removed":
            foreign.append(f"a {step['type']} that removes text")
    for step in flat_steps(data.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            foreign.append(f"normalizer {step['type']}")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            foreign.append(f"{option} {model[option]!r}")
    for token in added:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            foreign.append(f"token {token['content']!r} that swallows the spaces around it")
    if foreign:
        raise TokenizerError(
            f"only byte-level BPE of GPT-2's family is read here, found: {a_few(foreign, 6, '; ')}"
        )
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError("its model has no vocabulary or no merges")
    _check_vocabulary(model, {token["content"]: token["id"] for token in added})
    return model, added


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    """The value, if it is a list of objects; [] for null. Else a TokenizerError; ``name`` is its
    key, for the message."""
    if value is not None and not isinstance(value, list):
        raise TokenizerError(f"{name} is {reading.in_words(value)}, expected a list")
    for one in value or []:
        if not isinstance(one, dict):
            raise TokenizerError(f"{name} holds {reading.in_words(one)}, expected objects")
    return value or []


def _check_vocabulary(model: dict[str, Any], added: dict[str, int]) -> None:
    """Raise unless ids are numbers, one for each token, every single byte has one, and each merge
    makes a token of two. ``added``: the other tokens and their ids."""
    vocab, in_bytes = model["vocab"], alphabet()
    tokens = {**vocab, **added}
    if bad := [t for t, i in tokens.items() if type(i) is not int or i < 0]:
        raise TokenizerError(f"the id of {bad[0]!r} is {tokens[bad[0]]!r}, not a number from 0")
    if bad := [t for t, i in added.items() if vocab.get(t, i) != i]:
        raise TokenizerError(f"token {bad[0]!r} has two ids, {vocab[bad[0]]} and {added[bad[0]]}")
    if len(set(tokens.values())) < len(tokens):
        first: dict[int, str] = {}
        one, two = next((first[i], t) for t, i in tokens.items() if first.setdefault(i, t) != t)
        raise TokenizerError(f"tokens {one!r} and {two!r} have the same id, {tokens[two]}")
    if missing := [f"0x{b:02x}" for c, b in in_bytes.items() if c not in vocab or c in added]:
        raise TokenizerError(f"no token for the single bytes {a_few(missing, 5)}: not byte-level")
    if bad := [t for t in vocab if not in_bytes.keys() >= set(t) and t not in added]:
        raise TokenizerError(f"token {bad[0]!r} is not written in GPT-2's alphabet of bytes")
    for number, merge in enumerate(model["merges"], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(token) for token in pair] != [str, str]:
            raise TokenizerError(f"merge {number} is {value_in_short(merge)}: expected two tokens")
        if (unknown := _unknown_token(pair, vocab)) is not None:
            raise TokenizerError(
                f"merge {number}, {merge!r}, needs {unknown!r}: not in the vocabulary"
            )
