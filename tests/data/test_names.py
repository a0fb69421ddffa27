"""What the names of folders, files and labels mean."""

import pytest

from hta.data.names import image_stem, is_answer, is_normal, mask_kind

NORMAL = "good Good OK ok okay Normal normals NOMINAL pass i.O. healthy no_defect No-Defects nondefective defect-free"
NORMAL += " defects_free inliers faultless 00_good 1-OK conforming zero_defects"
ANOMALOUS = "bad NG ng ko NOK n.i.O. not_ok no-good Abnormal anomaly Anomalies anomalous defects defective FAIL faulty"
ANOMALOUS += " 01_bad non-conforming"
NEITHER = "crack 2 -1 00 no.1 no_label notch kos01 goods_in Freeze données"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([*NORMAL.split(), "No Defect", "not anomalous", "good_2", "test images ok", "without defects"], True),
        ([*ANOMALOUS.split(), "NG 3", "Defect_images", "not normal"], False),
        (["0", "False", "FALSE", "no", "N", "negative", "Neg", "none"], True),
        (["1", "True", "yes", "Y", "positive", "POS"], False),
        ([*NEITHER.split(), "image 1", ""], None),
    ],
)
def test_words_for_normal_and_anomalous(names, expected):
    assert {name: is_normal(name) for name in names} == dict.fromkeys(names, expected)


def test_answers_are_told_from_words():
    assert all(map(is_answer, ("0", "No", "true", "Positive")))
    assert not any(map(is_answer, ("good", "NG", "-1", "10", "crack")))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("", "mask masks Mask MASKS ground_truth GroundTruth ground-truth gt GT label Labels annotations test_masks"),
        ("", "segmentation_masks binary-masks label_masks gt_masks pixel_labels semantic_segmentation"),
        ("crack", "crack_mask Crack_Masks mask_crack crack-gt ground_truth_crack"),
        (None, "crack maskless label_torn missing_label good unmasked"),
    ],
)
def test_folders_of_masks(kind, names):
    assert {name: mask_kind(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_stems_of_masks():
    masks = "007 007_mask 007_MASK 007-gt 007.label 007_ground_truth 007_mask2 007_mask_10 mask_007 gt-007 007_seg"
    assert {image_stem(stem) for stem in masks.split()} == {"007"}
    assert [image_stem(stem) for stem in ("mask", "_mask", "007_masked", "unmask")] == [
        *("mask", "_mask", "007_masked", "unmask")
    ]
