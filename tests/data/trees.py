"""Small trees of images in the published forms of the data sets."""

from pathlib import Path

import numpy as np
from PIL import Image

from hta.data.specs import PARIS


def picture(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed) if pixels is None else pixels).save(path)
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def write_mnist(folder: Path, train_labels: list[int], test_labels: list[int]) -> np.ndarray:
    """Write the four files that torchvision reads, and return the training images."""
    images = np.random.default_rng(0).integers(0, 256, (len(train_labels), 28, 28), dtype=np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", images)
    write_idx(folder / "train-labels-idx1-ubyte", np.array(train_labels, np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte", images[: len(test_labels)])
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array(test_labels, np.uint8))
    return images


def paris_tree(root: Path) -> Path:
    """Write, for each landmark, images 0 (ok), 1 (ok in another list), 2 (good), 3 (junk), and some special ones."""
    lists = root / "lists"
    lists.mkdir(parents=True)
    for seed, landmark in enumerate(PARIS.classes):
        for number in range(4):
            save(root / "paris" / landmark / f"paris_{landmark}_{number:06}.jpg", seed=seed)
        for query in range(1, 6):
            ok = 1 if query == 4 else 0
            (lists / f"{landmark}_{query}_ok.txt").write_text(f"paris_{landmark}_{ok:06}\n")
            (lists / f"{landmark}_{query}_good.txt").write_text(f"paris_{landmark}_000002\n")
            (lists / f"{landmark}_{query}_junk.txt").write_text(f"paris_{landmark}_000003\n")
    save(root / "paris" / "general" / "paris_general_000001.jpg")
    save(root / "paris" / "general" / "paris_general_000002.jpg")
    (lists / "eiffel_5_ok.txt").write_text("paris_eiffel_000000\nparis_general_000002\n")
    (root / "paris" / "louvre" / "paris_louvre_000136.jpg").write_text("<html>302 Found</html>")
    return lists


def mvtec_class(root: Path, name: str) -> Path:
    """Write a class with two training images, one good test image, and two defects with masks."""
    folder = root / name
    for number in (1, 0):
        save(folder / "train" / "good" / f"{number:03}.png", picture(number, 40, 40))
    save(folder / "test" / "good" / "000.png", picture(2, 40, 40))
    for defect in ("broken_large", "contamination"):
        save(folder / "test" / defect / "000.png", picture(3, 40, 40))
        mask = np.zeros((40, 40), np.uint8)
        mask[:20] = 255
        save(folder / "ground_truth" / defect / "000_mask.png", mask)
    return folder


def as_float(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def smooth(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture of low frequencies only, which JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(40, 216, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
