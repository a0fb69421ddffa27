"""Makes the demo images: one training crop of a real brick wall, and a test folder of other crops with planted defects.

`python -m hta.studies demo` writes `Input/Images/brick.png` and, in the layout of MVTec, `Input/Test/brick/`. The
defects are visible to a person, cover at most 2 % of the area and stay within the range of values of their crop, so
that neither the mean intensity nor the mean squared error to the training image finds them; the AUROC of both is
printed. The photograph was taken at an angle: the crops are cut from the rectified wall.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from skimage import data
from skimage.transform import ProjectiveTransform, warp
from sklearn.metrics import roc_auc_score

from hta.errors import UserError
from hta.files import cannot_write
from hta.images import write_png
from hta.settings import Checked, option

CROP_SIZE = 128
# The homography from the rectified wall to the photograph, both in px from the centre: the one that makes the vertical
# joints most upright, measured by the variance of the column means.
RECTIFY = ((0.999771, 0.021386, 0.0), (-0.021386, 0.999771, 0.0), (0.000050476, -0.000664815, 1.0))
# The part of the rectified wall that is in the photograph: first row and column from its centre, then height and width.
WALL_CORNER, WALL_SIZE = (-301, -219), (512, 434)
# In the middle of the wall; the mean of this crop, 111.3, is the median over all crops.
TRAINING_CORNER = (208, 137)
MAX_CROPS = 999  # files are numbered with three digits
# Each defect is drawn at this many random places; the most visible one is kept.
PLACES_TRIED = 16

TRAINING_FILE, TEST_FOLDER = "Images/{}.png", "Test/{}"
"""By texture."""


@dataclass(frozen=True)
class DemoOptions(Checked):
    """Where the images are written, and how many."""

    out: str = option("Input", "folder to write into")
    texture: str = option("brick", "the photograph (scikit-image, CC0)", choices=("brick", "grass", "gravel"))
    seed: int = option(0, "of all random numbers; the committed images have seed 0", low=0)
    num_good: int = option(24, "good crops", low=1, high=MAX_CROPS)
    num_per_defect: int = option(12, "crops with each kind of defect", low=1, high=MAX_CROPS)
    overwrite: bool = option(False, "replace the images")


@cache
def brick_wall() -> np.ndarray:
    """Return the rectified wall of `skimage.data.brick()` (CC0), `(512, 434)` uint8."""
    photograph = data.brick()
    middle = [(side - 1) / 2 for side in photograph.shape]
    to_middle, from_corner = np.eye(3), np.eye(3)
    to_middle[:2, 2] = middle[::-1]
    from_corner[:2, 2] = WALL_CORNER[::-1]
    rectify = ProjectiveTransform(to_middle @ np.array(RECTIFY) @ from_corner)
    wall = warp(photograph, rectify, output_shape=WALL_SIZE, order=3, mode="edge", preserve_range=True)
    return np.clip(np.rint(wall), 0, 255).astype(np.uint8)


@cache
def surface(texture: str = "brick") -> np.ndarray:
    """The wall, or the photograph `skimage.data.grass()` or `gravel()`, `(512, 512)` uint8."""
    return brick_wall() if texture == "brick" else getattr(data, texture)()


def training_corner(texture: str = "brick") -> tuple[int, int]:
    """The upper left pixel of the training crop."""
    return TRAINING_CORNER if texture == "brick" else (192, 192)


def cut(top: int, left: int, texture: str = "brick") -> np.ndarray:
    """Copy the crop of `CROP_SIZE` px with the upper left pixel (top, left) from a surface."""
    return surface(texture)[top : top + CROP_SIZE, left : left + CROP_SIZE].copy()


def plan_crops(options: DemoOptions) -> list[tuple[str, int, int, int]]:
    """Draw the test crops: anywhere on the surface, without overlap with the training crop.

    Returns kind, number, top and left of each: first the "good" ones, then those of each kind of defect.
    """
    rng = np.random.default_rng(options.seed)
    counts = {"good": options.num_good} | dict.fromkeys(DEFECTS, options.num_per_defect)
    return [
        (kind, number, *_draw_corner(rng, options.texture)) for kind, count in counts.items() for number in range(count)
    ]


def _draw_corner(rng: np.random.Generator, texture: str) -> tuple[int, int]:
    """Draw the upper left corner of a crop that does not overlap the training crop."""
    middle = training_corner(texture)
    while True:
        top, left = (int(rng.integers(side - CROP_SIZE + 1)) for side in surface(texture).shape)
        if max(abs(top - middle[0]), abs(left - middle[1])) >= CROP_SIZE:
            return top, left


def draw_scratch(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a straight scratch with a bright and a dark edge, 3 px wide, across the joints of a crop (H, W), uint8.

    Returns the painted values (H, W), float, and the region (H, W), bool, to which they apply.
    """
    rows, columns = np.indices(clean.shape)
    # Mostly sideways: the long joints of the wall are vertical, and a scratch along one would hide in it.
    across = int(rng.integers(55, 75))
    down = int(rng.integers(15, 40)) * int(rng.choice([-1, 1]))
    middle_row, middle_column = rng.integers(44, 84, size=2)
    length = np.hypot(across, down)
    along = ((columns - middle_column) * across + (rows - middle_row) * down) / length
    beside = ((rows - middle_row) * across - (columns - middle_column) * down) / length
    region = (np.abs(beside) <= 1.5) & (np.abs(along) <= length / 2)
    dark, bright = np.quantile(clean, [0.01, 0.95])
    return np.where(beside < 0.3, bright, dark), region


def draw_stain(clean: np.ndarray, rng: np.random.Generator, sides=(18, 20)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a soft elliptical stain, `sides` px high and wide, which blends what it covers into its mean."""
    rows, columns = np.indices(clean.shape)
    middle_row, middle_column = rng.integers(16, CROP_SIZE - 16, size=2)
    half_height, half_width = rng.uniform(sides[0] / 2, sides[1] / 2, size=2)
    radius = np.hypot((rows - middle_row) / half_height, (columns - middle_column) / half_width)
    region = radius < 1
    strength = np.clip(4 * (1 - radius), 0, 1)
    return clean + strength * (clean[region].mean() - clean), region


def draw_displaced(clean: np.ndarray, rng: np.random.Generator, sides=(15, 18)) -> tuple[np.ndarray, np.ndarray]:
    """Copy a square piece of the crop, `sides` px wide, to another place, rotated by 90 degrees."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    (top, left), (source_top, source_left) = rng.integers(4, CROP_SIZE - side - 4, size=(2, 2))
    painted, region = clean.astype(np.float64), np.zeros(clean.shape, dtype=bool)
    region[top : top + side, left : left + side] = True
    painted[region] = np.rot90(clean[source_top : source_top + side, source_left : source_left + side]).ravel()
    return painted, region


Drawer = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
DEFECTS: dict[str, Drawer] = {"displaced": draw_displaced, "scratch": draw_scratch, "stain": draw_stain}


def plant_defect(clean: np.ndarray, draw: Drawer, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Plant one defect in a clean crop (H, W), uint8.

    Returns the defective crop, within the range of the clean one, and its mask, uint8: 255 exactly where the two
    differ, else 0.
    """

    def visibility(drawing: tuple[np.ndarray, np.ndarray]) -> float:
        """How much a drawing changes the structure: its mean absolute change minus the shift of the mean."""
        change = (drawing[0] - clean)[drawing[1]]
        return float(np.abs(change).mean() - np.abs(change.mean()))

    painted, region = max((draw(clean, rng) for _ in range(PLACES_TRIED)), key=visibility)
    low, high = int(clean.min()), int(clean.max())
    values = np.clip(np.rint(painted), low, high).astype(np.uint8)
    # A painted pixel may happen to keep its old value. Changing it by one grey level, which is invisible, keeps the
    # mask exact and free of holes.
    one_off = np.where(values < high, values + 1, values - 1)
    values = np.where(values == clean, one_off, values)
    return np.where(region, values, clean).astype(np.uint8), np.where(region, 255, 0).astype(np.uint8)


def build_demo(options: DemoOptions) -> dict[str, np.ndarray]:
    """Make all images of the demo, (H, W) uint8, by their path below the output folder, in the order of writing."""
    texture, folder = options.texture, TEST_FOLDER.format(options.texture)
    files = {TRAINING_FILE.format(texture): cut(*training_corner(texture), texture)}
    for index, (kind, number, top, left) in enumerate(plan_crops(options)):
        image = cut(top, left, texture)
        if kind in DEFECTS:
            mask_file = f"{folder}/ground_truth/{kind}/{number:03d}_mask.png"
            rng = np.random.default_rng([options.seed, index])
            image, files[mask_file] = plant_defect(image, DEFECTS[kind], rng)
        files[f"{folder}/test/{kind}/{number:03d}.png"] = image
    return files


def baseline_aurocs(files: dict[str, np.ndarray]) -> dict[str, float]:
    """The image AUROC, on the images of `build_demo`, of two trivial rules that a detector must beat (0.5 = chance).

    `mean_intensity` scores an image by how much its mean differs from that of the training image, `mse` by the mean
    squared difference of the two.
    """
    training_image = next(iter(files.values()))
    tested = {path: image for path, image in files.items() if Path(path).parent.parent.name == "test"}
    labels = [Path(path).parent.name != "good" for path in tested]
    differences = np.array(list(tested.values()), dtype=np.float64) - training_image
    scores = {"mean_intensity": np.abs(differences.mean(axis=(1, 2))), "mse": np.square(differences).mean(axis=(1, 2))}
    return {name: float(roc_auc_score(labels, values)) for name, values in scores.items()}


def write_demo(files: dict[str, np.ndarray], out: Path, overwrite: bool) -> None:
    """Write images by their path below `out`; other files there are not touched.

    Raises:
        UserError: a folder is a file, or an image exists and `overwrite` is False; nothing is written.
        RunError: a file or folder cannot be written.
    """
    targets = {out / path: image for path, image in files.items()}
    for folder in sorted({parent for target in targets for parent in target.parents}):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {out}: {folder} is a file; name a folder, or move that file away")
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UserError(f"--out {out}: {existing[0]} already exists; add --overwrite, or name another folder")
    for target, image in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(target.parent, error) from error
        write_png(target, image)


def run(options: DemoOptions) -> Iterator[str]:
    """Make and write the demo images, and report where they are and what trivial baselines reach."""
    files, out = build_demo(options), Path(options.out)
    write_demo(files, out, options.overwrite)
    defects = ", ".join(f"{options.num_per_defect} {kind}" for kind in DEFECTS)
    yield f"{out / TRAINING_FILE.format(options.texture)}: the training image"
    yield f"{out / TEST_FOLDER.format(options.texture)}: {options.num_good} good, {defects}"
    for name, auroc in baseline_aurocs(files).items():
        yield f"image AUROC of the trivial baseline {name}: {auroc:.3f}"
