"""What is mutated, and by which tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Project:
    """What is mutated, and by which tests."""

    root: Path = ROOT
    package: str = "addnorm"
    files: tuple[str, ...] = (
        *("addnorm/stream.py", "addnorm/joins.py", "addnorm/schemes.py", "addnorm/norms.py"),
        *("addnorm/branches.py", "addnorm/masks.py", "addnorm/init.py", "addnorm/positions.py"),
        "addnorm/ops/*.py",
        *("addnorm/models/gpt*.py", "addnorm/generation/decode.py", "addnorm/generation/cache.py"),
        *("addnorm/generation/sampling.py", "addnorm/generation/likelihood.py"),
        *("addnorm/training/loop.py", "addnorm/training/optim.py"),
        *("addnorm/training/checkpoint*.py", "addnorm/tasks/language.py"),
        *("addnorm/training/parallel.py", "addnorm/adapt/*.py"),
        *("addnorm/data/windows.py", "addnorm/data/order.py"),
    )
    # Test files that mirror a file, beside that of its own name and that of its folder's.
    mirrors: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "addnorm/stream.py": ("tests/test_schemes.py", "tests/whole/test_rules.py"),
            "addnorm/masks.py": ("tests/test_branches.py",),
            "addnorm/joins.py": ("tests/test_schemes.py", "tests/test_init.py"),
            "addnorm/schemes.py": ("tests/test_init.py", "tests/references/test_references.py"),
            "addnorm/ops/__init__.py": ("tests/ops/test_dispatch.py",),
            "addnorm/ops/aten.py": ("tests/ops/test_dispatch.py",),
            "addnorm/ops/reference.py": ("tests/ops/test_reference.py",),
            "addnorm/ops/attention.py": ("tests/test_branches.py",),
            "addnorm/ops/offers.py": ("tests/ops/test_dispatch.py", "tests/ops/test_attention.py"),
            "addnorm/models/gpt_config.py": ("tests/models/test_gpt.py",),
            "addnorm/models/gpt_classifier.py": ("tests/tasks/test_classify.py",),
            "addnorm/tasks/language.py": ("tests/training/test_training.py",),
            "addnorm/training/parallel.py": ("tests/training/test_processes.py",),
            "addnorm/generation/cache.py": ("tests/generation/test_decode.py",),
            "addnorm/training/checkpoint.py": ("tests/training/test_kill.py",),
            "addnorm/training/checkpoint_file.py": ("tests/training/test_checkpoint.py",),
            "addnorm/training/checkpoint_parts.py": ("tests/training/test_processes.py",),
        }
    )
    # They judge the text of the code, or are about this tool: no test of what the code does.
    left_out: tuple[str, ...] = ("tests/test_house.py", "tests/benchmarks/test_mutants.py")
    # What each child would else import again; never the package itself.
    warm: tuple[str, ...] = (
        *("numpy", "torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.optim.adamw"),
        *("hypothesis", "safetensors.torch", "tokenizers", "transformers", "tyro"),
        *("rich.progress", "xdist.plugin", "pytest_timeout", "anyio.pytest_plugin", "typeguard"),
    )
    patience: float = 10.0  # seconds beyond four times what the tests take: then they are stopped

    def paths(self) -> list[str]:
        """The files that are mutated, in order."""
        groups = [sorted(self.root.glob(pattern)) for pattern in self.files]
        return [p.relative_to(self.root).as_posix() for group in groups for p in group]

    def near(self, file: str) -> set[str]:
        """The test files that mirror a file."""
        path = Path("tests", *Path(file).parts[1:])
        names = {path.with_name(f"test_{n}.py").as_posix() for n in (path.stem, path.parent.name)}
        return {n for n in names | {*self.mirrors.get(file, ())} if (self.root / n).exists()}

    @property
    def out(self) -> Path:
        """Where the measurements and the results are."""
        return self.root / "out" / "mutants"
