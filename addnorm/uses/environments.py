"""Worlds in which a model acts: gymnasium's, or anything with the same two methods."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from addnorm.errors import Mendable, value_in_short
from addnorm.reading import in_words
from addnorm.words import error_in_a_line


class Environment(Protocol):
    """What gymnasium calls an environment."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """(the first state, anything), which follow from the seed."""

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """(the next state, the reward, whether this is the end, whether it was cut, anything)."""


def maker(name: str) -> Callable[[], Environment]:
    """What makes an environment: of the id of one of gymnasium's, or of ``module:factory``, a
    function without arguments or a class in a module that is installed or here. A ``Mendable`` says
    why there is none."""
    if not name:
        raise Mendable("env is not set: give the id of a gymnasium environment or module:factory")
    module, _, factory = name.partition(":")
    if factory and "/" not in name:
        return _from_module(name, module, factory)
    try:
        gymnasium: Any = import_module("gymnasium")
    except ImportError as error:
        raise Mendable(
            f"the environment {name} needs gymnasium ({error}): pip install 'addnorm[decisions]'"
        ) from None

    def make() -> Environment:
        """Another one of this id."""
        with _foreign(f"gymnasium cannot make the environment {name}"):
            environment: Environment = gymnasium.make(name)
        return environment

    return make


def _from_module(name: str, module: str, factory: str) -> Callable[[], Environment]:
    """What ``factory`` is in ``module``, both parts of ``name``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        value: Any = import_module(module)
    except Exception as error:  # of the module's own code too
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{module}.".startswith(f"{absent}."):
            raise Mendable(
                f"env={name}: there is no module {module}, neither here nor installed"
            ) from None
        raise Mendable(
            f"env={name}: {module} cannot be imported: {error_in_a_line(error)}"
        ) from error
    finally:
        sys.path.remove(here)
    for part in factory.split("."):
        if not hasattr(value, part):
            raise Mendable(f"env={name}: there is no {part!r} in {module}")
        value = getattr(value, part)
    if not callable(value):
        raise Mendable(f"env={name} is no function that makes an environment")
    function: Callable[[], Environment] = value

    def make() -> Environment:
        """Another one."""
        with _foreign(f"{name} makes no environment"):
            return function()

    return make


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    """Code of others, whose errors are a ``Mendable`` that begins with ``what``."""
    try:
        yield
    except Exception as error:  # which raises whatever it likes
        raise Mendable(f"{what}: {error_in_a_line(error)}") from error


def begin(environment: Environment, seed: int) -> Any:
    """The first state; a ``Mendable`` if this is no environment."""
    if not (hasattr(environment, "reset") and hasattr(environment, "step")):
        raise Mendable(
            f"no environment, but {type(environment).__name__}: it has no reset(seed=) and step()"
        )
    with _foreign("the environment cannot begin"):
        first = environment.reset(seed=seed)
    if not (isinstance(first, tuple) and len(first) == 2):
        raise Mendable("reset() of the environment must return (state, info), as gymnasium's does")
    return first[0]


def act(environment: Environment, action: Any) -> tuple[Any, float, bool]:
    """(the next state, the reward, whether it is over) after an action."""
    with _foreign(f"the environment fails at the action {value_in_short(action)}"):
        outcome = environment.step(action)
    if not (isinstance(outcome, tuple) and len(outcome) == 5):
        raise Mendable(
            "step() of the environment must return (state, reward, terminated, truncated, info), "
            "as gymnasium's does"
        )
    state, reward, terminated, truncated, _ = outcome
    value = float(reward)
    if not np.isfinite(value):
        raise Mendable(f"the environment gives a reward of {value}")
    return state, value, bool(terminated) or bool(truncated)


def close(environment: Environment) -> None:
    """Let it free what it holds, if it knows how."""
    function = getattr(environment, "close", None)
    if callable(function):
        with _foreign("the environment cannot be closed"):
            function()


def as_number(state: Any, count: int) -> int:
    """A state as one of ``count``; a ``Mendable`` if it is none."""
    array = np.asarray(state)
    if array.shape != () or not np.issubdtype(array.dtype, np.integer):
        what = "several numbers" if array.shape else in_words(array.item())
        raise Mendable(f"a state of the environment is {what}, and the model knows whole numbers")
    number = int(array)
    if not 0 <= number < count:
        raise Mendable(
            f"the environment is in state {number}, and the model knows those from 0 to "
            f"{count - 1}: train it with states=N where there are N"
        )
    return number


def as_vector(state: Any, width: int) -> NDArray[np.float64]:
    """A state as a list of ``width`` numbers; a ``Mendable`` if it is none."""
    try:
        array = np.asarray(state, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise Mendable(
            f"a state of the environment is a {type(state).__name__}, no array"
        ) from None
    if len(array) != width:
        raise Mendable(
            f"a state of the environment has {len(array)} numbers, and the model knows {width}"
        )
    return array


def bounded(environment: Environment, action: NDArray[np.float64]) -> NDArray[Any]:
    """An action of numbers in the shape, the type and the bounds of the environment's space, if it
    has one."""
    space = getattr(environment, "action_space", None)
    shape, low, high = (getattr(space, name, None) for name in ("shape", "low", "high"))
    if shape is None or low is None or high is None:
        return action
    if int(np.prod(shape)) != len(action):
        raise Mendable(
            f"an action of the environment has {int(np.prod(shape))} numbers, and the model gives "
            f"{len(action)}"
        )
    return np.clip(action.reshape(shape), low, high).astype(getattr(space, "dtype", np.float64))
