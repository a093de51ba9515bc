"""Figures: their size, whole files, labels that cover nothing."""

import pytest
from PIL import Image

from cotnet.figures import figure, write_labels


def test_labels_cover_nothing(tmp_path):
    points = [(100 + x, 80 + x / 10, "a_long_name") for x in range(12)]
    with figure(tmp_path / "labels.png", (8, 5.8)) as (page, (axes,)):
        axes.scatter([x for x, _, _ in points], [y for _, y, _ in points])
        page.draw_without_rendering()
        write_labels(axes, points)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    with Image.open(tmp_path / "labels.png") as drawn:
        assert drawn.size == (800, 580)


def test_a_figure_that_fails_leaves_the_file_as_it_was(tmp_path):
    png = tmp_path / "old.png"
    png.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no data"), figure(png, (1, 1)):
        raise RuntimeError("no data")
    assert png.read_bytes() == b"old"
    with figure(png, (3, 2), rows=2, columns=2, dpi=50) as (_, panels):
        assert len(panels) == 4
    with Image.open(png) as drawn:
        assert drawn.size == (150, 100)
    assert list(tmp_path.iterdir()) == [png]
