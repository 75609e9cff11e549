"""The picture of a store: labels that can be read."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from data.preparation.describe import draw_distributions


@pytest.mark.parametrize("longest_s", [1.0, 1.1, 1.5, 3, 4.9, 5.1, 7, 30, 300, 67_000])
@pytest.mark.parametrize("num_clips", [1, 3, 9, 40, 2_000])
def test_labels_of_an_axis_do_not_overlap(longest_s, num_clips):
    durations = np.geomspace(1.0, longest_s, num_clips)
    figure = draw_distributions({"folder": durations}, {"folder": np.arange(num_clips) % 20 + 1})
    FigureCanvasAgg(figure).draw()
    for axis in (part for axes in figure.axes for part in (axes.xaxis, axes.yaxis)):
        first, last = sorted(axis.get_view_interval())
        labels = [
            tick.label1 for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            if tick.label1.get_text() and first <= tick.get_loc() <= last
        ]  # fmt: skip
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) > 1
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
