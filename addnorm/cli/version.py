"""``addnorm --version --verbose``: the versions of what computes here, and whether it computes what
is defined."""

import platform

import torch

from addnorm.ops import verify
from addnorm.version import __version__


def run() -> int:
    """Print both; the exit status is 1 if a kernel is off by more than it may be."""
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"addnorm {__version__}\n"
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()} ({capability}), {torch.get_num_threads()} threads"
    )
    for n in range(torch.cuda.device_count()):
        print(f"GPU {n}: {torch.cuda.get_device_name(n)}")
    result = verify()
    print(f"\nLargest errors, in roundings (docs/numerics.md):\n\n{result}")
    return 0 if result.ok else 1
