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


# --- trees as they are published --------------------------------------------------------------------------------------


def save_all(root: Path, *names: str) -> Path:
    """Write a picture at each path below `root`; returns `root`."""
    for seed, name in enumerate(names):
        save(root / name, seed=seed)
    return root


def save_marks(root: Path, *names: str, mark: tuple[int, int] | None = (4, 9), gray: int = 255) -> None:
    """Write a mask at each path below `root`, black but for a square of pixels; `mark` None: all black."""
    pixels = np.zeros((20, 20), np.uint8)
    if mark:
        pixels[slice(*mark), slice(*mark)] = gray
    for name in names:
        save(root / name, pixels)


def btad_tree(root: Path) -> Path:
    """A class of BTAD, with its own words and types of files."""
    save_all(root, *(f"01/{name}.bmp" for name in ("train/ok/0000", "train/ok/0001", "test/ok/0000", "test/ok/0001")))
    save_all(root, "01/test/ko/0000.bmp", "01/test/ko/0001.bmp", "01/test/ko/0002.bmp")
    save_marks(root, *(f"01/ground_truth/ko/000{number}.png" for number in range(3)))
    return root / "01"


def visa_tree(root: Path, name: str = "candle") -> Path:
    """A class of VisA as it is published: the rows of its list begin with the name of its folder."""
    normal = [f"{name}/Data/Images/Normal/000{number}.JPG" for number in range(3)]
    defects = {"burnt": 0, "burnt,melt": 1, "melt": 2}
    rows = [f"{path},normal," for path in normal]
    for label, number in defects.items():
        image, mask = (f"{name}/Data/{part}/Anomaly/00{number}" for part in ("Images", "Masks"))
        save_all(root, f"{image}.JPG")
        save_marks(root, f"{mask}.png", gray=number + 1)
        rows.append(f'{image}.JPG,"{label}",{mask}.png' if "," in label else f"{image}.JPG,{label},{mask}.png")
    save_all(root, *normal)
    (root / name / "image_anno.csv").write_text("\n".join(["image,label,mask", *rows]) + "\n")
    return root / name


def visa_split(root: Path) -> Path:
    """The list of all classes of VisA, one of which is not there, with an image to train on; returns its path."""
    rows = []
    for name in ("candle", "pcb1"):
        folder = f"{name}/Data/Images"
        rows += [f"{name},train,{folder}/Normal/0000.JPG,normal,", f"{name},test,{folder}/Normal/0001.JPG,normal,"]
        rows += [f"{name},test,{folder}/Normal/0002.JPG,normal,"]
        rows += [f"{name},test,{folder}/Anomaly/00{n}.JPG,anomaly,{name}/Data/Masks/00{n}.png" for n in range(3)]
    path = root / "split_csv" / "1cls.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["object,split,image,label,mask", *rows]) + "\n")
    return path


def toy_tree(root: Path) -> Path:
    """The folder toy of anomalib: kinds of defect beside good images, stems alike, masks in a folder beside them."""
    save_all(root, "good/00.jpg", "good/01.jpg", "crack/00.jpg", "crack/01.jpg", "colour/00.jpg", "LICENSE.png")
    (root / "LICENSE.png").rename(root / "LICENSE")
    save_marks(root, "mask/crack/00.jpg", "mask/crack/01.jpg", "mask/colour/00.jpg")
    return root


def loco_tree(root: Path) -> Path:
    """A class of MVTec LOCO: the masks of an image, one for each of its defects, are in a folder of its stem."""
    save_all(root, "train/good/000.png", "validation/good/000.png", "test/good/000.png", "test/good/001.png")
    save_all(root, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    save_marks(root, "ground_truth/logical_anomalies/000/000.png", mark=(2, 6), gray=250)
    save_marks(root, "ground_truth/logical_anomalies/000/001.png", mark=(10, 14), gray=251)
    save_marks(root, "ground_truth/structural_anomalies/000/000.png")
    return root


def mpdd_tree(root: Path) -> Path:
    """A class of MPDD, which has MVTec's layout."""
    save_all(root, "train/good/000.png", "test/good/000.png", "test/hole/000.png", "test/hole/001.png")
    save_all(root, "test/scratches/000.png")
    save_marks(root, "ground_truth/hole/000_mask.png", "ground_truth/hole/001_mask.png")
    save_marks(root, "ground_truth/scratches/000_mask.png")
    return root


def ksdd_tree(root: Path) -> Path:
    """KolektorSDD: a folder for each item, beside every image its label, which is black where there is no defect."""
    for item in ("kos01", "kos02", "kos03"):
        save_all(root, f"{item}/Part0.jpg", f"{item}/Part5.jpg")
        save_marks(root, f"{item}/Part0_label.bmp", mark=None)
        save_marks(root, f"{item}/Part5_label.bmp", mark=None if item == "kos02" else (4, 9))
    return root


def ksdd2_tree(root: Path) -> Path:
    """KolektorSDD2: no folders of kinds, beside every image its mask."""
    numbers = {"train/10000": None, "train/10001": (4, 9), "test/20000": (4, 9), "test/20001": None, "test/20002": None}
    for name, mark in numbers.items():
        save_all(root, f"{name}.png")
        save_marks(root, f"{name}_GT.png", mark=mark)
    return root


def mvtec_part(root: Path) -> Path:
    """Two classes of MVTec AD; of one, a kind of defect has no masks, and an image of the other kind has none."""
    for name in ("bottle", "wood"):
        mvtec_class(root, name)
    (root / "wood" / "ground_truth" / "contamination" / "000_mask.png").unlink()
    save(root / "wood" / "test" / "broken_large" / "001.png", picture(4, 40, 40))
    return root
