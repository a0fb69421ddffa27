"""Makes the demo images: one training crop of a real brick wall, and a test folder of other crops with planted defects.

The photograph was taken at a slant, so that its joints lean to both sides of the middle and its bricks shrink towards
one end. The crops are cut from the wall seen straight on, as a camera mounted for inspection would see it.

`python -m hta.studies.demo` writes `Input/Images/brick.png` and, in the layout of MVTec, `Input/Test/brick/`.
Everything is drawn from one seed. The defects are visible to a person, cover at most 2 % of the area and keep to
the range of values of the crop they are in, so that neither the mean intensity nor the mean squared error to the
training image finds them; both figures are printed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage import data
from skimage.transform import ProjectiveTransform, warp
from sklearn.metrics import roc_auc_score

from hta.cli import Parser, run_command
from hta.errors import RunError, UserError
from hta.images import write_png

CROP_SIZE = 128
# The homography from the wall seen straight on to the photograph, both in px from its middle: the one that makes the
# vertical joints most upright, by the variance of the mean over each column.
STRAIGHT_ON = (
    (0.999771, 0.021386, 0.0),
    (-0.021386, 0.999771, 0.0),
    (0.000050476, -0.000664815, 1.0),
)
# What the photograph shows of the wall seen straight on: first row and column from its middle, then height and width.
WALL_CORNER, WALL_SIZE = (-301, -219), (512, 434)
# In the middle; its mean of 111.3 is the median over all crops.
TRAINING_CORNER = (208, 137)
NUM_GOOD = 24
NUM_PER_DEFECT = 12
_MOST_CROPS = 999  # files are numbered with three digits
# Each defect is drawn at this many random places, and the most visible one is kept.
PLACES_TRIED = 16

TRAINING_FILE = "Images/brick.png"
TEST_FOLDER = "Test/brick"


@dataclass(frozen=True)
class TestCrop:
    """One test image to be: its folder below `test`, its number there, and its upper left corner in the texture."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    kind: str
    number: int
    top: int
    left: int

    @property
    def image_file(self) -> str:
        """Path of the image below the output folder."""
        return f"{TEST_FOLDER}/test/{self.kind}/{self.number:03d}.png"

    @property
    def mask_file(self) -> str:
        """Path of the mask below the output folder (defective crops only)."""
        return f"{TEST_FOLDER}/ground_truth/{self.kind}/{self.number:03d}_mask.png"


def brick_wall() -> np.ndarray:
    """The wall of `skimage.data.brick()` (CC0) seen straight on, `(512, 434)` uint8."""
    photograph = data.brick()
    middle = [(side - 1) / 2 for side in photograph.shape]
    to_middle, from_corner = np.eye(3), np.eye(3)
    to_middle[:2, 2] = middle[::-1]
    from_corner[:2, 2] = WALL_CORNER[::-1]
    straight_on = ProjectiveTransform(to_middle @ np.array(STRAIGHT_ON) @ from_corner)
    wall = warp(photograph, straight_on, output_shape=WALL_SIZE, order=3, mode="edge", preserve_range=True)
    return np.clip(np.rint(wall), 0, 255).astype(np.uint8)


def cut(texture: np.ndarray, top: int, left: int) -> np.ndarray:
    """Copy the crop of `CROP_SIZE` px whose upper left pixel is (top, left) out of a texture (H, W)."""
    return texture[top : top + CROP_SIZE, left : left + CROP_SIZE].copy()


def plan_crops(
    texture_shape: tuple[int, int], seed: int, num_good: int = NUM_GOOD, num_per_defect: int = NUM_PER_DEFECT
) -> tuple[TestCrop, ...]:
    """Draw where the test crops lie: anywhere in the texture, and no pixel of them in the training crop.

    Args:
        texture_shape: (H, W) of the texture.
        seed: not negative; the same seed draws the same places.
        num_good: crops without a defect.
        num_per_defect: crops with each kind of defect.

    Returns:
        The good crops, then those of each kind of defect.
    """
    rng = np.random.default_rng(seed)
    counts = {"good": num_good} | dict.fromkeys(DEFECTS, num_per_defect)
    return tuple(
        TestCrop(kind, number, *_draw_corner(texture_shape, rng))
        for kind, count in counts.items()
        for number in range(count)
    )


def _draw_corner(texture_shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Draw the upper left corner of a crop that does not touch the training crop."""
    while True:
        corner = tuple(int(rng.integers(side - CROP_SIZE + 1)) for side in texture_shape)
        if max(abs(own - taken) for own, taken in zip(corner, TRAINING_CORNER, strict=True)) >= CROP_SIZE:
            return corner


def draw_scratch(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a straight scratch with a bright edge and a dark one, 3 px wide, across the joints.

    Args:
        clean: crop (H, W), uint8.
        rng: source of the place and the direction.

    Returns:
        The painted values (H, W) in float, and the region (H, W) of bool they are meant for.
    """
    rows, columns = np.indices(clean.shape)
    # Mostly sideways: the long joints of the wall run up and down, and a scratch along one would hide in it.
    across = int(rng.integers(55, 75))
    down = int(rng.integers(15, 40)) * int(rng.choice([-1, 1]))
    middle_row, middle_column = rng.integers(44, 84, size=2)
    length = np.hypot(across, down)
    along = ((columns - middle_column) * across + (rows - middle_row) * down) / length
    beside = ((rows - middle_row) * across - (columns - middle_column) * down) / length
    region = (np.abs(beside) <= 1.5) & (np.abs(along) <= length / 2)
    dark, bright = np.quantile(clean, [0.01, 0.95])
    return np.where(beside < 0.3, bright, dark), region


def draw_stain(
    clean: np.ndarray, rng: np.random.Generator, sides: tuple[int, int] = (18, 20)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a soft elliptical stain, which smears what it covers into its mean.

    Args:
        clean, rng: as of `draw_scratch`.
        sides: least and largest height and width, px.

    Returns:
        As of `draw_scratch`.
    """
    rows, columns = np.indices(clean.shape)
    middle_row, middle_column = rng.integers(16, CROP_SIZE - 16, size=2)
    half_height, half_width = rng.uniform(sides[0] / 2, sides[1] / 2, size=2)
    radius = np.hypot((rows - middle_row) / half_height, (columns - middle_column) / half_width)
    region = radius < 1
    strength = np.clip(4 * (1 - radius), 0, 1)
    return clean + strength * (clean[region].mean() - clean), region


def draw_displaced(
    clean: np.ndarray, rng: np.random.Generator, sides: tuple[int, int] = (15, 18)
) -> tuple[np.ndarray, np.ndarray]:
    """Put a square piece of the crop, turned by 90 degrees, in another place; arguments as `draw_stain`."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    (top, left), (source_top, source_left) = rng.integers(4, CROP_SIZE - side - 4, size=(2, 2))
    painted, region = clean.astype(np.float64), np.zeros(clean.shape, dtype=bool)
    region[top : top + side, left : left + side] = True
    painted[region] = np.rot90(clean[source_top : source_top + side, source_left : source_left + side]).ravel()
    return painted, region


Drawer = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
DEFECTS: dict[str, Drawer] = {"displaced": draw_displaced, "scratch": draw_scratch, "stain": draw_stain}


def plant_defect(clean: np.ndarray, draw: Drawer, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Plant one defect in a clean crop.

    Args:
        clean: crop (H, W), uint8.
        draw: how the defect is drawn, as those of `DEFECTS`.
        rng: source of everything random.

    Returns:
        The defective crop (H, W), uint8, within the range of the clean one, and its mask, uint8: 255 exactly where
        the two differ, and 0 elsewhere.
    """
    drawings = [draw(clean, rng) for _ in range(PLACES_TRIED)]
    painted, region = max(drawings, key=lambda drawing: _visibility(clean, *drawing))
    low, high = int(clean.min()), int(clean.max())
    values = np.clip(np.rint(painted), low, high).astype(np.uint8)
    # A painted pixel may happen to have its old value. One grey level, seen by nobody, keeps the mask free of holes
    # and still true to the letter.
    one_off = np.where(values < high, values + 1, values - 1)
    values = np.where(values == clean, one_off, values)
    return np.where(region, values, clean).astype(np.uint8), np.where(region, 255, 0).astype(np.uint8)


def _visibility(clean: np.ndarray, painted: np.ndarray, region: np.ndarray) -> float:
    """Say how much a drawing changes structure: its mean absolute change, less what is a mere shift of the mean."""
    change = (painted - clean)[region]
    return float(np.abs(change).mean() - np.abs(change.mean()))


def build_demo(
    texture: np.ndarray, seed: int, num_good: int = NUM_GOOD, num_per_defect: int = NUM_PER_DEFECT
) -> dict[str, np.ndarray]:
    """Make all images of the demo.

    Args:
        texture: (H, W), uint8.
        seed: not negative.
        num_good: test crops without a defect.
        num_per_defect: test crops with each kind of defect.

    Returns:
        Arrays (H, W), uint8, by their path below the output folder, in the order of writing.
    """
    files = {TRAINING_FILE: cut(texture, *TRAINING_CORNER)}
    for index, crop in enumerate(plan_crops(texture.shape, seed, num_good, num_per_defect)):
        image = cut(texture, crop.top, crop.left)
        if crop.kind in DEFECTS:
            image, files[crop.mask_file] = plant_defect(image, DEFECTS[crop.kind], np.random.default_rng([seed, index]))
        files[crop.image_file] = image
    return files


def baseline_scores(training_image: np.ndarray, test_images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Score images by two trivial rules that a detector has to beat.

    Args:
        training_image: (H, W) or (H, W, 3), any real dtype.
        test_images: N images of the same shape and range.

    Returns:
        Two arrays (N,), float64, higher = more anomalous: `mean_intensity`, the absolute difference of the mean
        intensities, and `mse`, the mean squared difference.

    Raises:
        UserError: if an image has another shape than the training image.
    """
    if any(np.shape(image) != np.shape(training_image) for image in test_images):
        raise UserError(
            f"test_images: all must have the training image's shape {np.shape(training_image)}; resize them"
        )
    differences = np.asarray(test_images, dtype=np.float64) - np.asarray(training_image, dtype=np.float64)
    per_image = differences.reshape(len(differences), -1)
    return {"mean_intensity": np.abs(per_image.mean(axis=1)), "mse": np.square(per_image).mean(axis=1)}


def baseline_aurocs(files: dict[str, np.ndarray]) -> dict[str, float]:
    """Compute the image AUROC of each of `baseline_scores` on the images of `build_demo` (0.5 = finds nothing)."""
    images = {path: image for path, image in files.items() if path.startswith(f"{TEST_FOLDER}/test/")}
    labels = [Path(path).parent.name != "good" for path in images]
    scores = baseline_scores(files[TRAINING_FILE], list(images.values()))
    return {name: float(roc_auc_score(labels, values)) for name, values in scores.items()}


def write_demo(files: dict[str, np.ndarray], out: Path, overwrite: bool) -> None:
    """Write the images of `build_demo` below `out`; other files there are left alone.

    Raises:
        UserError: if `out` cannot be a folder, or a file is there already and `overwrite` is False. Nothing is
            written then.
    """
    targets = {out / path: image for path, image in files.items()}
    for folder in sorted({parent for target in targets for parent in target.parents}):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {out}: {folder} is a file; name a folder, or move that file away")
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UserError(f"--out {out}: {existing[0]} is there already; add --overwrite, or name another folder")
    for target, image in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"--out {out}: {target.parent} cannot be made ({error.strerror}); name another folder"
            ) from error
        write_png(target, image)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m hta.studies.demo", description="Make the demo images: a brick wall, good and defective."
    )
    parser.add_argument("--out", type=Path, default=Path("Input"), help="folder to write into (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="0 or more; the committed images are 0 (default: 0)")
    parser.add_argument("--num_good", type=int, default=NUM_GOOD, help="good crops, 1 or more (default: %(default)s)")
    parser.add_argument(
        "--num_per_defect", type=int, default=NUM_PER_DEFECT, help="crops a defect, 1 or more (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="replace the images")
    options = parser.parse_args(argv)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    for name in ("num_good", "num_per_defect"):
        if not 1 <= getattr(options, name) <= _MOST_CROPS:
            raise UserError(f"--{name} {getattr(options, name)}: must be 1 to {_MOST_CROPS}")
    return options


def _command(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    files = build_demo(brick_wall(), options.seed, options.num_good, options.num_per_defect)
    write_demo(files, options.out, options.overwrite)
    defects = ", ".join(f"{options.num_per_defect} {kind}" for kind in DEFECTS)
    print(f"{options.out / TRAINING_FILE}: the training image")
    print(f"{options.out / TEST_FOLDER}: {options.num_good} good, {defects}")
    for name, auroc in baseline_aurocs(files).items():
        print(f"image AUROC of the trivial baseline {name}: {auroc:.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m hta.studies.demo` and return its exit status."""
    return run_command(_command, argv, "some images may be missing; --overwrite makes them again")


if __name__ == "__main__":
    sys.exit(main())
