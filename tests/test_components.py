"""Components, boxes and dilation are those of SciPy."""

import numpy as np
import pytest

from predict.components import Mask, dilate, label, measure

ndimage = pytest.importorskip("scipy.ndimage")
RNG = np.random.default_rng(7)
SHAPES = [(1, 1), (1, 30), (40, 1), (50, 60)]
MASKS = [RNG.random(shape) < share for shape in SHAPES for share in (0, 0.05, 0.3, 0.5, 0.7, 1)]


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_components_are_scipys(mask: Mask) -> None:
    expected, count = ndimage.label(mask, np.ones((3, 3)))
    labels = label(mask)
    assert np.array_equal(labels, expected)
    if count:
        boxes, areas, _ = measure(labels)
        slices = ndimage.find_objects(expected)
        assert boxes.tolist() == [[x.start, y.start, x.stop, y.stop] for y, x in slices]
        assert areas.tolist() == np.bincount(expected.ravel())[1:].tolist()


@pytest.mark.parametrize("reach", [1, 2, 5, 70])
def test_dilation_is_scipys(reach: int) -> None:
    mask = np.random.default_rng(reach).random((50, 60)) < 0.003
    expected = ndimage.binary_dilation(mask, np.ones((2 * reach + 1, 2 * reach + 1)))
    assert np.array_equal(dilate(mask, reach), expected)
