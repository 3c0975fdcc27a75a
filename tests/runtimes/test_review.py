import numpy as np

from irstd_edge.data import Sample
from irstd_edge.runtimes.review import PREDICTION, TRUTH, WorstImages, plot_sweep, worst_sheet


def blob(row, column, side, shape=(48, 64)):
    out = np.zeros(shape, bool)
    out[row:row + side, column:column + side] = True
    return out


def judge(worst, name, truth, predicted):
    image = np.where(truth, 200, 50).astype(np.float32)
    worst(Sample(name, image, (truth * 255).astype(np.uint8)), predicted.astype(np.float32))


def test_the_worst_come_first_and_empty_images_do_not_count():
    worst, nothing = WorstImages(2, 0.5), blob(0, 0, 0)
    judge(worst, "good", blob(9, 9, 4), blob(9, 9, 4))
    judge(worst, "empty", nothing, nothing)
    judge(worst, "half", blob(9, 9, 4), blob(9, 9, 4) & blob(9, 9, 4, (48, 64)) & (np.arange(64) < 11))
    judge(worst, "missed", blob(9, 9, 4), nothing)
    assert [(c.name, c.iou) for c in worst.cases] == [("missed", 0.0), ("half", 0.5)]


def test_both_outlines_are_drawn():
    worst = WorstImages(12, 0.5)
    judge(worst, "a", blob(20, 10, 5), blob(20, 40, 5))
    judge(worst, "b", blob(0, 0, 5), blob(0, 0, 5))
    pixels = np.asarray(worst_sheet(worst.cases)).reshape(-1, 3)
    for colour in (TRUTH, PREDICTION):
        assert (pixels == colour).all(1).sum() > 50
    only_truth = WorstImages(1, 0.5)
    judge(only_truth, "a", blob(20, 10, 5), blob(0, 0, 0))
    rows = np.asarray(worst_sheet(only_truth.cases))[34:]  # below the legend
    assert (rows == TRUTH).all(2).any() and not (rows == PREDICTION).all(2).any()
    assert worst_sheet([]).width > 400


def test_the_plot_is_written_whole(tmp_path):
    rows = [{"threshold": t, "pd": 1 - t, "fa": 0.0, "iou": t, "niou": t} for t in (0.1, 0.5, 0.9)]
    plot_sweep(rows, 0.5, "a network", tmp_path / "roc.png")
    assert [p.name for p in tmp_path.iterdir()] == ["roc.png"]
