"""What every folder of data says of itself."""

from pathlib import Path


def write_readme(folder: Path, text: str | None) -> None:
    """A README.md with what the script says of its data: source, licence, split."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"# {str(text).strip()}\n", encoding="utf-8")


def megabytes(place: Path) -> str:
    """How much a file has, or all files of a folder together."""
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
