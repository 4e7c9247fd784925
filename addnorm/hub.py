"""Where a name leads that may be a folder here or a repository of the Hugging Face hub.

A folder of that name comes first. What was downloaded once is taken from the hub's cache. What goes
wrong leaves as a ``Mendable`` of the class ``kind`` that the caller promises to its own callers.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from addnorm import reading
from addnorm.errors import Mendable
from addnorm.words import error_in_a_line

NAME = re.compile(r"([A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)  # owner/repository


def local_folder(path_or_id: str | os.PathLike[str], kind: type[Mendable]) -> Path | None:
    """The folder of this name; None: there is none, and the name may be one of the hub's. Raises a
    ``kind`` where it can be neither; a ``Path`` never names a repository of the hub."""
    path = reading.place(path_or_id, kind)
    if path.is_dir():
        return path
    if path.exists():
        raise kind(f"{path} is a file: give the folder that it is in")
    if not isinstance(path_or_id, str) or not NAME.fullmatch(path_or_id):
        looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
        raise kind(f"there is no folder {path}{looked}")
    return None


def download(name: str, files: Iterable[str], kind: type[Mendable], advice: str) -> Path:
    """The folder that these files of a repository are in, downloaded or from the cache.

    ``files``: names or patterns. What the repository has none of is left out without an error: the
    caller looks. ``advice`` ends the message of the ``kind``, for those without a network.
    """
    # What can go wrong between here and a server has no common base class.
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=sorted({*files})))
    except Exception as error:
        raise kind(
            f"there is no folder {name!r} here, and it could not be downloaded from the Hugging "
            f"Face hub ({error_in_a_line(error)}). {advice}"
        ) from error
