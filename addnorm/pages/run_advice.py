"""What to do after a run: the commands that its page ends with."""

import math
import shlex
import signal

from addnorm.pages.look import clean
from addnorm.pages.numbers import as_float
from addnorm.pages.run_story import Story, as_count, as_mapping


def commands(story: Story) -> str:
    """Commands that go on from here: to resume, in the way that fits how it ended, and those that
    the run itself names for its model, with ``{model}`` for the folder."""
    folder, config = shlex.quote(str(story.folder)), story.config
    several = as_count(story.state.get("processes")) or 1
    start = f"torchrun --standalone --nproc-per-node {several} -m " if several > 1 else ""
    resume = f"{start}addnorm train --resume {folder}"
    ways: list[tuple[str, str]] = []
    if "task" not in config:
        ways.append(
            (
                "Go on, in Python, with the same task:",
                f"addnorm.train(task, out={str(story.folder)!r}, loop=loop, resume=True)",
            )
        )
    elif story.finished:
        ways.append(
            (
                "Go on for longer:",
                f"{resume} steps={2 * (story.steps or story.step)}",
            )
        )
    elif story.failure and story.failure not in signal.Signals.__members__:
        rate = as_float(config.get("lr"))
        lower = f" lr={rate / 2:g}" if math.isfinite(rate) else ""
        ways.append(
            (
                "Go on from the last checkpoint, with half the learning rate:",
                f"{resume}{lower}",
            )
        )
    else:
        ways.append(("Go on from the last checkpoint:", resume))
    of_model = as_mapping(story.state.get("commands"))
    if of_model and story.models:
        best = story.folder / "best" if "best" in story.models else story.folder
        model = shlex.quote(str(best))
        ways += [(f"{what}:", str(how).replace("{model}", model)) for what, how in of_model.items()]
    elif of_model:
        ways.append(("No model is saved yet.", ""))
    return "".join(
        f"<p>{clean(what)}</p>"
        + (f'<pre tabindex="0"><code>{clean(how)}</code></pre>' if how else "")
        for what, how in ways
    )
