"""The error with which a command says no."""

from typing import final

from addnorm.errors import Mendable


@final
class Refusal(Mendable):
    """What the command was asked to do cannot be done, and the exit status to end with: 2 if the
    request itself was wrong."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status
