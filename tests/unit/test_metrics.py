"""Golden vectors, counted by hand."""

import numpy as np
import pytest
from skimage.measure import label

from irstd_edge.data import Dataset, Normalisation, Sample
from irstd_edge.metrics import ROC_THRESHOLDS, DetectionMetrics, ThresholdSweep, UnionShares, evaluate


def canvas(*boxes, value=1.0, shape=(20, 20)):
    """Boxes (row, column, height, width) of a value on zeros."""
    out = np.zeros(shape)
    for row, column, height, width in boxes:
        out[row:row + height, column:column + width] = value
    return out


def score(*pairs):
    metrics = DetectionMetrics()
    for probability, mask in pairs:
        metrics.update(probability, mask.astype(np.uint8))
    return metrics.result()


def mask(*boxes, value=255, shape=(20, 20)):
    return canvas(*boxes, value=value, shape=shape)


def test_iou_is_summed_over_the_set_and_niou_averaged_over_images():
    # Image 1: 4 of 9 + 4 - 4 pixels; image 2: 1 of 4.
    result = score((canvas((2, 2, 2, 2)), mask((2, 2, 3, 3))), (canvas((5, 5, 1, 1)), mask((5, 5, 2, 2))))
    assert result.iou == pytest.approx(5 / 13)
    assert result.niou == pytest.approx((4 / 9 + 1 / 4) / 2)
    assert (result.images, result.targets) == (2, 2)


def test_empty_truth_and_empty_prediction_score_zero():
    result = score((canvas(), mask()), (canvas((2, 2, 2, 2)), mask((2, 2, 2, 2))))
    assert (result.iou, result.niou, result.pd, result.fa) == (pytest.approx(1), pytest.approx(0.5), 1, 0)
    empty = score((canvas(), mask()))
    assert (empty.iou, empty.niou, empty.pd, empty.fa, empty.targets) == (0, 0, 0, 0, 0)


def test_nothing_measured_is_all_zeros():
    assert DetectionMetrics().result().as_dict() == {
        "iou": 0, "niou": 0, "pd": 0, "fa": 0, "fa_by_area": 0, "images": 0, "targets": 0}


def test_threshold_is_strict():
    assert score((canvas((2, 2, 1, 1), value=0.5), mask((2, 2, 1, 1)))).iou == 0
    assert score((canvas((2, 2, 1, 1), value=np.nextafter(0.5, 1)), mask((2, 2, 1, 1)))).iou == pytest.approx(1)


@pytest.mark.parametrize("offset, matched", [((0, 2), 1), ((2, 2), 1), ((0, 3), 0), ((2, 3), 0)])
def test_centroids_match_below_3_pixels_strictly(offset, matched):
    result = score((canvas((10 + offset[0], 10 + offset[1], 1, 1)), mask((10, 10, 1, 1))))
    assert result.pd == matched
    assert result.fa == pytest.approx((1 - matched) / 400)


def test_components_are_8_connected():
    diagonal = canvas((3, 3, 1, 1), (4, 4, 1, 1))
    result = score((diagonal, diagonal * 255))
    assert (result.targets, result.pd) == (1, 1)
    apart = canvas((3, 3, 1, 1), (3, 5, 1, 1))
    assert score((apart, apart * 255)).targets == 2


def test_matching_is_greedy_by_label_order_not_by_distance():
    # The first prediction in raster order is 2 px away, the second right on the target: the first is taken,
    # the second counts as false.
    result = score((canvas((8, 10, 1, 1), (10, 10, 1, 2)), mask((10, 10, 1, 1))))
    assert (result.pd, result.fa) == (1, 2 / 400)


def test_a_prediction_matches_once():
    # Both targets are near the one prediction: the first in raster order takes it.
    result = score((canvas((10, 10, 1, 1)), mask((9, 9, 1, 1), (11, 11, 1, 1))))
    assert (result.targets, result.pd, result.fa) == (2, 0.5, 0)


def test_a_matched_blob_counts_no_false_pixels_however_large():
    result = score((canvas((6, 6, 9, 9)), mask((10, 10, 1, 1))))
    assert (result.pd, result.fa) == (1, 0)
    assert result.iou == pytest.approx(1 / 81)


def test_false_alarms_by_pixels_and_by_area():
    # A matched 2 x 2, and false ones of 4 (the same area: it vanishes from the older count) and of 3 pixels.
    truth = mask((3, 3, 2, 2))
    result = score((canvas((3, 3, 2, 2), (12, 3, 2, 2), (12, 12, 1, 3)), truth))
    assert result.fa == pytest.approx(7 / 400)
    assert result.fa_by_area == pytest.approx(3 / 400)
    # Without a collision both agree.
    result = score((canvas((3, 3, 2, 2), (12, 12, 1, 3)), truth))
    assert result.fa == result.fa_by_area == pytest.approx(3 / 400)


@pytest.mark.parametrize("value, union, target", [(127, 1, 0), (128, 0, 0), (254, 0, 0), (255, 0, 1)])
def test_grey_mask_pixels_count_for_iou_from_128_and_for_pd_at_255_alone(value, union, target):
    truth = mask((10, 10, 1, 1), value=value)
    result = score((canvas((10, 10, 1, 1)), truth))
    assert result.iou == pytest.approx(1 - union)
    assert (result.targets, result.pd) == (target, target)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        score((canvas(), mask(shape=(20, 21))))


def brute_force(predicted, truth):
    """Pd and both Fa pixel counts, the field's loops spelt out with plain pixel lists."""
    def components(x):
        labels = label(x, connectivity=2)
        return [np.argwhere(labels == i) for i in range(1, labels.max() + 1)]

    predictions, used, matched = components(predicted), [], 0
    for t in components(truth):
        for i, p in enumerate(predictions):
            if i not in used and np.linalg.norm(p.mean(0) - t.mean(0)) < 3:
                used.append(i)
                matched += 1
                break
    areas = [len(p) for p in predictions]
    return matched, sum(a for i, a in enumerate(areas) if i not in used), sum(
        a for a in areas if a not in [areas[i] for i in used])


def test_matching_equals_plain_loops_on_random_images():
    rng = np.random.default_rng(0)
    for _ in range(40):
        predicted, truth = rng.random((24, 30)) < 0.08, rng.random((24, 30)) < 0.05
        metrics = DetectionMetrics()
        metrics.update(predicted.astype(np.float32), truth.astype(np.uint8) * 255)
        assert (metrics.matched, metrics.false_pixels, metrics.false_pixels_by_area) == brute_force(predicted, truth)


def test_evaluate_by_both_protocols():
    seen = []

    def bright(x):
        seen.append(x.shape)
        return (x > 0.5).astype(np.float32)

    image = canvas((10, 10, 4, 4), value=255.0, shape=(40, 70)).astype(np.float32)
    samples = [Sample("a", image, mask((10, 10, 4, 4), shape=(40, 70)).astype(np.uint8))]
    native = evaluate(bright, samples, Normalisation(0.0, 255.0))
    assert (native.iou, native.pd, native.fa) == (pytest.approx(1), 1, 0)
    resized = evaluate(bright, samples, Normalisation(0.0, 255.0), protocol="resize256")
    assert seen == [(1, 1, 64, 96), (1, 1, 256, 256)]
    assert resized.pd == 1 and 0.8 < resized.iou <= 1


def test_padding_is_cropped_before_counting():
    result = evaluate(np.ones_like, [Sample("a", np.zeros((5, 7), np.float32), np.full((5, 7), 255, np.uint8))],
                      Normalisation(0.0, 1.0))
    assert (result.iou, result.fa) == (pytest.approx(1), 0)


@pytest.mark.external
def test_the_public_masks_hold_the_published_target_counts(public_data):
    counts = {split: sum(label(s.mask >= 128, connectivity=2).max() for s in Dataset(public_data, "NUAA-SIRST", split))
              for split in ("train", "test")}
    assert counts == {"train": 270, "test": 263}


def test_a_sweep_gives_each_threshold_its_figures():
    # Target of 4 pixels: 2 at 0.9, 2 at 0.6; a false pixel far away at 0.7.
    probability = canvas((2, 2, 1, 2), value=0.9) + canvas((3, 2, 1, 2), value=0.6) + canvas((15, 15, 1, 1), value=0.7)
    sweep = ThresholdSweep((0.8, 0.5, 0.65, 0.95))
    sweep(Sample("a", probability, mask((2, 2, 2, 2)).astype(np.uint8)), probability)
    rows = sweep.rows()
    assert [r["threshold"] for r in rows] == [0.5, 0.65, 0.8, 0.95]
    assert [r["iou"] for r in rows] == pytest.approx([4 / 5, 2 / 5, 2 / 4, 0])
    assert [r["pd"] for r in rows] == [1, 1, 1, 0]
    assert [r["fa"] for r in rows] == pytest.approx([1 / 400, 1 / 400, 0, 0])
    assert list(ROC_THRESHOLDS) == sorted(set(ROC_THRESHOLDS)) and 0.5 in ROC_THRESHOLDS


def test_maps_are_handed_on_cropped():
    seen = []
    samples = [Sample("a", np.full((40, 50), 7, np.float32), np.zeros((40, 50), np.uint8))]
    evaluate(lambda x: x, samples, Normalisation(0, 10), on_map=lambda s, p: seen.append((s.name, p.shape, p.max())))
    assert seen == [("a", (40, 50), pytest.approx(0.7))]


def test_shares_of_the_union_tell_where_iou_is_lost():
    shares = UnionShares()
    assert set(shares.as_dict().values()) == {0}
    # Found but for one column and beyond by two rows; missed with 4 pixels; an alarm of 1 that touches by a corner only
    # a prediction on a target, and one of 3 alone.
    truth = mask((2, 2, 3, 3), (12, 12, 2, 2))
    predicted = canvas((2, 3, 5, 2), (7, 5, 1, 1), (16, 2, 1, 3))
    shares(Sample("a", truth, truth.astype(np.uint8)), predicted)
    union = 9 + 4 + 4 + 1 + 3
    assert shares.as_dict() == pytest.approx({"hit": 6 / union, "missed_partly": 3 / union, "missed_wholly": 4 / union,
                                              "false_partly": 5 / union, "false_wholly": 3 / union})
    shares(Sample("b", truth, mask().astype(np.uint8)), predicted)
    assert shares.as_dict()["false_wholly"] == pytest.approx((3 + 10 + 1 + 3) / (union + 14))
    metrics = DetectionMetrics()
    metrics.update(predicted, truth.astype(np.uint8))
    metrics.update(predicted, mask().astype(np.uint8))
    assert shares.as_dict()["hit"] == pytest.approx(metrics.result().iou)
    assert sum(shares.as_dict().values()) == pytest.approx(1)
    beside = UnionShares()  # what Pd matches need not share a pixel
    beside(Sample("c", truth, mask((5, 5, 1, 1)).astype(np.uint8)), canvas((5, 6, 1, 1)))
    assert (beside.as_dict()["missed_wholly"], beside.as_dict()["false_wholly"]) == (0.5, 0.5)
