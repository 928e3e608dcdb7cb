"""The roofline figure: it is drawn for any profile, every point numbered and named."""

import io

import matplotlib.image
import numpy as np
import pytest

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
        ([(785, 8)], (498, 1056)),
        ([(785, 8), (1, 9)], (498, 1056)),
        ([(785, m) for m in range(1, 8)], (1218, 1584)),
    ],
)
def test_a_panel_for_each_size(sizes, shape):
    image = matplotlib.image.imread(io.BytesIO(draw(results(sizes))))
    assert image.shape[:2] == shape
    assert np.ptp(image[..., :3]) > 0.9


@pytest.mark.parametrize("options", [{"threads": (1,)}, {"dtype": "float64"}, {"crowded": True}])
def test_any_machine(options):
    assert draw(results([(785, 8)], **options)).startswith(b"\x89PNG")


def test_every_point_is_numbered_and_named_in_its_panel(monkeypatch):
    figures = []
    monkeypatch.setattr(roofline.FigureCanvasAgg, "print_png", lambda canvas, stream: figures.append(canvas.figure))
    profile = results([(785, 8), (21, 9)], crowded=True)
    draw(profile)
    for ax in figures[0].axes:
        named = [text.get_text() for text in ax.get_legend().get_texts()]
        numbers = [text.get_text() for text in ax.texts if text.get_text().isdecimal()]
        assert len(named) == len(COSTS) + 2 and [name.split()[0] for name in named] == numbers
        assert "1 gram 0%" in named[0] and any("predict, truncated" in name for name in named)
