"""One writer at a time in a folder."""

import os
import socket
import warnings
import weakref
from functools import cache
from pathlib import Path
from typing import final

from addnorm.training.checkpoint_file import CheckpointError

_locked: set[int] = set()  # descriptors of this process


@final
class FolderLock:
    """A file that this process alone has locked, with who that is written in it.

    ``flock``, since the kernel gives it back however a process ends: a number in a file would have
    to be asked for, may be another process by now, and means nothing on another machine.

    ``sure``: whether the lock keeps others out; False where the system cannot lock a file, which a
    warning has said. ``release`` gives it back, at the latest at the end of the process.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.sure = _flock(self._descriptor, file)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BaseException:
            os.close(self._descriptor)
            raise
        _locked.add(self._descriptor)
        _watch_forks()
        self.release = weakref.finalize(self, _unlock, self._descriptor)

    def is_held(self) -> bool:
        """Whether it still keeps others out: the descriptor is open, as after a fork it is not, and
        the file that others would lock is still this one, not a new one of that name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except OSError:
            return False


def _flock(descriptor: int, file: Path) -> bool:
    """Lock the open file of this ``descriptor`` or raise a CheckpointError that says who has it;
    False, with a warning, where files cannot be locked. ``file``: its path, for messages."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        raise CheckpointError(
            f"{file.parent} is being written to by {holder}: stop that run or give this one "
            "another folder (within one process: close() the other Checkpoints first)"
        ) from None
    except (ImportError, OSError) as error:  # Windows; Lustre and others as some mount them
        warnings.warn(
            f"{file.parent} cannot be locked ({error}): see to it yourself that no other run "
            "writes there",
            stacklevel=4,
        )
        return False
    return True


def _unlock(descriptor: int) -> None:
    if descriptor in _locked:
        _locked.remove(descriptor)
        os.close(descriptor)


def _forked() -> None:
    """A forked child, such as a worker that loads data, must not hold the lock past its parent."""
    for descriptor in list(_locked):
        _unlock(descriptor)


@cache
def _watch_forks() -> None:
    """Once, for the first lock, where there are forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
