"""The roofline figure: it is drawn for any profile, and no label hides another."""

import io
import itertools

import matplotlib.image
import numpy as np
import pytest
from matplotlib.transforms import Bbox

from fastkoop.profile import roofline
from fastkoop.profile.roofline import draw
from fastkoop.profile.throughput import COSTS


def results(sizes, threads=(1, 2), dtype="float32", crowded=False):
    """A profile with every kernel at each size."""
    rows = [
        {
            "n": n, "m": m, "kernel": kernel, "data": data, "share": 0.01 * i,
            "intensity": 0.2 if crowded else 0.2 * 1.6**i, "gigaflops_per_second": 5.0 if crowded else 0.5 * 1.7**i,
        }
        for n, m in sizes
        for i, (kernel, data) in enumerate(
            [*((kernel, "full") for kernel in COSTS), ("solve", "truncated"), ("predict", "truncated")]
        )
    ]  # fmt: skip
    return {
        "config": {"dtype": dtype},
        "machine": {"processor": "A $trange Processor_9000 @ 3 GHz"},
        "ceilings": [{"threads": k, "copy": 1e10 * k, "float32": 1e11 * k, "float64": 5e10 * k} for k in threads],
        "kernels": rows,
    }


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(785, 8)], (498, 864)),
        ([(785, 8), (1, 9)], (498, 864)),
        ([(785, m) for m in range(1, 8)], (1218, 1296)),
    ],
)
def test_a_panel_for_each_size(sizes, shape):
    image = matplotlib.image.imread(io.BytesIO(draw(results(sizes))))
    assert image.shape[:2] == shape
    assert np.ptp(image[..., :3]) > 0.9


@pytest.mark.parametrize("options", [{"threads": (1,)}, {"dtype": "float64"}, {"crowded": True}])
def test_any_machine(options):
    assert draw(results([(785, 8)], **options)).startswith(b"\x89PNG")


def test_labels_lie_apart(monkeypatch):
    boxes, place = [], roofline._place

    def watched(*arguments):
        boxes.append(place(*arguments))
        return boxes[-1]

    monkeypatch.setattr(roofline, "_place", watched)
    draw(results([(785, 8)], crowded=True))
    assert len(boxes) == len(COSTS) + 2
    for one, other in itertools.combinations(boxes, 2):
        assert not roofline._overlap(one, other)


def test_a_label_without_room_is_still_placed():
    everything = (-1e4, -1e4, 1e4, 1e4)
    left, low, right, top = roofline._place(50, 50, 20, 10, Bbox([[0, 0], [100, 100]]), [everything])
    assert right - left == pytest.approx(20) and top - low == pytest.approx(10)
