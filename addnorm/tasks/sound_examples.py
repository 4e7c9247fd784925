"""Recordings that were heard wrong, with what they look like: pictures for
``addnorm.pages.run_pictures``, as JSON has them.
"""

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from addnorm.tasks.examples import WORST, Picture, shortened
from addnorm.uses.edits import edits
from addnorm.words import plural

RIGHT_ONES = 3  # that are shown beside the worst


def worst_transcripts(
    names: Sequence[str],
    references: Sequence[str],
    outputs: Sequence[str],
    sounds: Sequence[Tensor],
) -> list[Picture]:
    """Of held-out recordings, by their names, what was said and what is heard: those of which the
    largest share of letters is wrong, and the first that are right, with the features (mels,
    frames) of their ``sounds``."""
    rows = [
        (edits(output, reference) / max(len(reference), 1), name, reference, output, sound)
        for name, reference, output, sound in zip(names, references, outputs, sounds, strict=True)
    ]
    wrong = sorted((row for row in rows if row[0]), key=lambda row: -row[0])
    right = [row for row in rows if not row[0]]
    pictures = []
    if wrong:
        caption = (
            f"{len(wrong):,} of {plural(len(rows), 'held-out recording')} not heard to the letter; "
            "those first of which most letters would have to change. Low tones below, the louder "
            "the darker."
        )
        pictures.append(_gallery("The worst transcripts", caption, wrong[:WORST]))
    if right:
        caption = f"{len(right):,} of {plural(len(rows), 'held-out recording')}, the first of them."
        pictures.append(_gallery("Heard to the letter", caption, right[:RIGHT_ONES]))
    return pictures


def _gallery(title: str, caption: str, rows: Sequence[tuple[Any, ...]]) -> Picture:
    """Rows of (share of letters to change, name, what was said, what is heard, features)."""
    items = []
    for share, name, reference, output, sound in rows:
        notes = [["said", shortened(reference)]]
        if share:
            notes += [["heard", shortened(output) or "(nothing)"], ["to change", f"{share:.0%}"]]
        items.append(shot(sound, name, notes))
    return {"kind": "gallery", "title": title, "caption": caption, "items": items}


def worst_labels(
    classes: Sequence[str],
    names: Sequence[str],
    labels: Sequence[int],
    p: Tensor,
    features: Callable[[int], Tensor],
) -> list[Picture]:
    """Of held-out sounds, by their names, and the probabilities (sounds, classes) that a model
    gives them: the errors of which it is surest. ``labels``: the right ones; ``features``: those
    of the sound of a number. Nothing if all are right."""
    most = p.max(-1)
    wrong = [i for i, label in enumerate(labels) if int(most.indices[i]) != label]
    wrong.sort(key=lambda i: -float(most.values[i]))
    if not wrong:
        return []
    items = [
        shot(
            features(i),
            names[i],
            [
                ["right", classes[labels[i]]],
                ["said", f"{classes[int(most.indices[i])]} {float(most.values[i]):.1%}"],
            ],
        )
        for i in wrong[:WORST]
    ]
    caption = f"{plural(len(wrong), 'held-out sound')} wrong; those first of which it is surest."
    return [{"kind": "gallery", "title": "The worst errors", "caption": caption, "items": items}]


def shot(features: Tensor, head: str, notes: Sequence[Sequence[str]]) -> Picture:
    """A sound of a gallery: its features (mels, frames), the lowest band below, the louder the
    darker, between the softest and the loudest; each frame and band a pixel."""
    low, high = features.min(), features.max()
    loud = (features - low) / (high - low).clamp(min=1e-6)
    grey = (255 - 255 * loud).round().to(torch.uint8).flip(0)
    png = base64.b64encode(_png(grey)).decode()
    return {"png": png, "width": grey.shape[1], "head": head, "notes": [list(n) for n in notes]}


def _png(grey: Tensor) -> bytes:
    """Rows of pixels from 0 to 255 as a grey PNG (ISO 15948), for which Pillow is not needed."""
    header = struct.pack(">2I5B", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    pixels = b"".join(b"\0" + row.numpy().tobytes() for row in grey)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
