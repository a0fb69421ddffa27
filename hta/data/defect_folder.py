"""Defects of any one object in MVTec's layout, prepared as the protocol prepares MVTec AD; masks are not needed.

DIR/train/good/*
DIR/test/{good,<defect>}/*
"""

from dataclasses import replace
from pathlib import Path

from hta.data.folders import find_test_images
from hta.data.image_sets import Benchmark, FileImages, images_in
from hta.data.specs import DEFECTS, MVTEC, MVTEC_ROTATIONS
from hta.errors import UserError


def load_defect_folder(data_root: Path, *, rotations: bool = True) -> Benchmark:
    """Load a folder; its name is the only class.

    Args:
        data_root: The folder.
        rotations: Whether images are prepared for the 4 rotations, or else (with CLAHE) for the larger sets.

    Raises:
        UserError: The folder is not of this form.
    """
    training = images_in(data_root / "train" / "good")
    if not training:
        raise UserError(f"--data_root {data_root}: no image in its train/good; give a folder in MVTec's layout")
    items = find_test_images(data_root)
    if any(item.label is None for item in items) or not any(item.label == 0 for item in items):
        raise UserError(f"--data_root {data_root}: no image in its test/good; give a folder in MVTec's layout")
    name = data_root.resolve().name
    spec = replace(
        MVTEC_ROTATIONS if rotations else MVTEC, name=DEFECTS, title=name, table_name=DEFECTS, classes=(name,)
    )
    return Benchmark(
        spec=spec,
        train=FileImages(data_root, tuple(training)),
        test=FileImages(data_root, tuple(item.path for item in items)),
        train_members=(tuple(range(len(training))),),
        normals=(frozenset(i for i, item in enumerate(items) if item.label == 0),),
        strata=tuple(item.defect or "good" for item in items),
        masks={i: item.mask for i, item in enumerate(items) if item.mask is not None} or None,
    )
