"""COCO's json, compared with what pycocotools reads of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets.coco import Annotations, box_of, run_lengths


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_give_the_mask_again(seed: int) -> None:
    mask = np.random.default_rng(seed).random((5, 7)) < 0.5
    mask[0, 0] = bool(seed % 2)
    code = run_lengths(mask)
    assert code["size"] == [5, 7]
    assert sum(code["counts"]) == 35
    values = np.repeat(np.arange(len(code["counts"])) % 2, code["counts"])
    np.testing.assert_array_equal(values.reshape(7, 5).T, mask)
    whole = np.ones((2, 3), bool)
    assert run_lengths(whole)["counts"] == [0, 6]
    assert run_lengths(~whole)["counts"] == [6]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its own
def test_pycocotools_reads_the_file(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    mask = np.zeros((20, 30), bool)
    mask[3:9, 5:25] = True
    mask[4, 6] = False
    some = Annotations(["cat", "dog"])
    first, second = some.add_image("a/1.png", (30, 20)), some.add_image("a/2.png", (8, 9))
    some.add(first, "dog", box_of(mask), mask)
    some.add(second, "cat", (1.5, 2, 3, 4))
    some.write(tmp_path / "x.json")
    read = coco.COCO(str(tmp_path / "x.json"))
    assert read.getCatIds(["dog"]) == [2]
    (dog,) = read.loadAnns(read.getAnnIds(imgIds=[first]))
    assert dog["bbox"] == [5, 3, 20, 6]
    assert dog["area"] == 119
    np.testing.assert_array_equal(read.annToMask(dog), mask)
    (cat,) = read.loadAnns(read.getAnnIds(imgIds=[second]))
    assert (cat["area"], cat["image_id"]) == (12, 2)
    assert cat["segmentation"] == [[1.5, 2, 4.5, 2, 4.5, 6, 1.5, 6]]
    table = json.loads((tmp_path / "x.json").read_text())
    assert table["images"][0] == {"id": 1, "file_name": "a/1.png", "width": 30, "height": 20}
