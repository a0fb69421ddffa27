"""Resampling and CLAHE of the benchmarks' images, as the protocol prescribes for each data set (paper, section 4).

Resampling is Pillow's, on 8-bit images: that is what the named filters mean on the images of these data sets (bicubic
has a = -0.5; all filters widen when shrinking). CLAHE comes after the resampling unless the geometry says otherwise.
"""

import numpy as np
from PIL import Image

from hta.data.clahe import clahe
from hta.data.specs import BenchmarkSpec, Filter, Geometry


def prepare_training_image(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Prepare an image to train on, `(H, W, 3)` to `(size, size, 3)`, both float32 in [0, 1]."""
    if spec.geometry != "fit_then_squash":
        resampled = resample(image, spec.geometry, spec.size, spec.train_filter)
        return clahe(resampled) if spec.train_clahe else resampled
    # A smaller image stays as it is. The paper names no filter for this step: bicubic, as in the squash that follows.
    picture = _to_picture(image)
    picture.thumbnail((spec.size, spec.size), Image.Resampling.BICUBIC, reducing_gap=None)
    fitted = _to_array(picture)
    return resample(clahe(fitted) if spec.train_clahe else fitted, "squash", spec.size, spec.train_filter)


def prepare_test_image(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Prepare an image to score; the same shapes and ranges as `prepare_training_image`, never with CLAHE."""
    return resample(image, spec.geometry, spec.size, spec.test_filter)


def prepare_mask(mask: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Resample a mask as its image is, by nearest neighbour: bool `(H, W)` to `(size, size)`, true on the defect."""
    return resample(mask, spec.geometry, spec.size, "nearest") > 0.5


def resample(image: np.ndarray, geometry: Geometry, size: int, filter_name: Filter) -> np.ndarray:
    """Resize an image `(H, W, 3)` or `(H, W)`, values in [0, 1], to size x size px, cropped or squashed; float32."""
    picture, resampling = _to_picture(image), Image.Resampling[filter_name.upper()]
    if geometry != "crop":
        return _to_array(picture.resize((size, size), resampling))
    shorter = min(picture.size)
    width, height = (side * size // shorter for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return _to_array(picture.resize((width, height), resampling).crop((left, top, left + size, top + size)))


def _to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _to_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255
