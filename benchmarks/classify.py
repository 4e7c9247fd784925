"""Which package of the standard library is a function from: ours beside TF-IDF + regression.

    python benchmarks/classify.py --seeds 1 2 3

Every function and method of the running Python's standard library of at least five lines is a text,
the package or module it is defined in its class, the twelve largest public ones; bodies only, since
a name may give the package away. The baseline is the usual one: TF-IDF of words and word pairs, and
multinomial logistic regression, its L2 penalty chosen on a fifth of the training texts. Both get
the same texts to learn from and are asked for the same held-out ones.
"""

import argparse
import ast
import re
import statistics
import sysconfig
import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F

from addnorm.tasks.labelled_texts import read_texts
from addnorm.tasks.recipes import classify_text
from addnorm.training.run import train

CLASSES = 12
LEAST_LINES = 5


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    changes = dict(word.split("=", 1) for word in args.set)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "texts"
        counts = write_functions(folder)
        print(f"{sum(counts.values())} functions: {counts}")
        config = classify_text().changed({"data": str(folder), **changes})
        texts = read_texts(folder, None, config.task.val_fraction)
        learn, val_rows = (
            [(row.text, row.labels[0]) for row in side] for side in (texts.train, texts.val)
        )
        print(f"TF-IDF + logistic regression: {baseline(learn, val_rows):.4f}", flush=True)
        accuracies = []
        for seed in args.seeds:
            run = train(config, out=Path(name) / f"run{seed}", seed=seed)
            accuracies.append(run.metrics["accuracy"])
            print(f"ours, seed {seed}: {accuracies[-1]:.4f}", flush=True)
        print(f"ours, median: {statistics.median(accuracies):.4f}")


def write_functions(folder: Path) -> dict[str, int]:
    """One file for each function, in a folder for each package; how many of each."""
    root = Path(sysconfig.get_paths()["stdlib"])
    bodies: dict[str, dict[str, None]] = defaultdict(dict)
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if {"test", "tests", "site-packages", "idle_test", "lib2to3"} & set(parts):
            continue
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        lines = source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = lines[node.body[0].lineno - 1 : node.end_lineno]
                if len(body) >= LEAST_LINES:
                    bodies[parts[0].removesuffix(".py")]["\n".join(body)] = None
    public = [name for name in bodies if not name.startswith("_")]  # others count as hidden folders
    largest = sorted(public, key=lambda name: -len(bodies[name]))[:CLASSES]
    for name in largest:
        (folder / name).mkdir(parents=True)
        for i, text in enumerate(bodies[name]):
            (folder / name / f"{i}.py").write_text(text)
    return {name: len(bodies[name]) for name in largest}


def baseline(learn: list[tuple[str, int]], val_rows: list[tuple[str, int]]) -> float:
    """The accuracy of TF-IDF with logistic regression, the best penalty of four."""
    cut = len(learn) * 4 // 5
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [learn[i] for i in order]
    scores = {p: fit(shuffled[:cut], shuffled[cut:], p) for p in (1e-6, 1e-5, 1e-4, 1e-3)}
    return fit(learn, val_rows, max(scores, key=lambda p: scores[p]))


def fit(learn: list[tuple[str, int]], val_rows: list[tuple[str, int]], penalty: float) -> float:
    """Accuracy on ``val_rows``."""
    terms = [words(text) for text, _ in learn]
    often = Counter(w for ws in terms for w in set(ws))
    vocabulary = {w: i for i, w in enumerate(w for w, n in often.items() if n >= 2)}
    idf = {w: torch.tensor((1 + len(learn)) / (1 + often[w])).log().item() + 1 for w in vocabulary}

    def matrix(texts: list[list[str]]) -> torch.Tensor:
        rows, columns, values = [], [], []
        for i, ws in enumerate(texts):
            counted = Counter(w for w in ws if w in vocabulary)
            weights = {w: n * idf[w] for w, n in counted.items()}
            norm = sum(v * v for v in weights.values()) ** 0.5 or 1.0
            for w, v in weights.items():
                rows.append(i)
                columns.append(vocabulary[w])
                values.append(v / norm)
        size = (len(texts), len(vocabulary))
        places = torch.tensor([rows, columns])
        return torch.sparse_coo_tensor(places, torch.tensor(values), size, check_invariants=False)

    x, y = matrix(terms), torch.tensor([label for _, label in learn])
    weight = torch.zeros(len(vocabulary), int(y.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.sparse.mm(x, weight) + bias, y)
        value = value + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        counts = matrix([words(t) for t, _ in val_rows])
        answers = (torch.sparse.mm(counts, weight) + bias).argmax(-1)
    return float((answers == torch.tensor([label for _, label in val_rows])).float().mean())


def words(text: str) -> list[str]:
    """Words, and pairs of neighbours."""
    single = re.findall(r"\w+|[^\w\s]", text.lower())
    return [*single, *(f"{a} {b}" for a, b in pairwise(single))]


if __name__ == "__main__":
    main()
