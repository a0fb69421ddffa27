"""What the protocol fixes for each data set: class names, preparation of images, transformations (section 7)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from hta.errors import UserError
from hta.settings import Checked, option

Geometry = Literal["squash", "fit_then_squash", "crop"]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class BenchmarkSpec:
    """One row of the protocol's table.

    Attributes:
        name: What `--dataset` takes.
        title: The name for people; where only a part of a data set is at hand it says so.
        table_name: The data set's name in the file of the paper's values.
        classes: Class names in label order, in the paper's spelling.
        geometry: "squash" (to a square, whatever the aspect ratio), "crop" (shorter side to `size`, then the centre) or
            "fit_then_squash" (training images shrink to fit `size`, aspect kept, before they are squashed).
        size: Side of a prepared image in pixels.
        train_filter: Resampling of training images.
        test_filter: Resampling of test images.
        train_clahe: Whether training images, and only they, go through CLAHE.
        num_transforms: The paper's number of transformations.
        is_gray: Whether the images are gray (R = G = B).
        aliases: Pairs of another spelling of a class and the paper's.
    """

    name: str
    title: str
    table_name: str
    classes: tuple[str, ...]
    geometry: Geometry = "squash"
    size: int = 128
    train_filter: Filter = "bicubic"
    test_filter: Filter = "bicubic"
    train_clahe: bool = True
    num_transforms: int = 54
    is_gray: bool = False
    aliases: tuple[tuple[str, str], ...] = ()


CIFAR = BenchmarkSpec(
    name="cifar",
    title="CIFAR10",
    table_name="cifar10",
    classes=("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    aliases=(("airplane", "plane"), ("automobile", "car")),
)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MNIST = BenchmarkSpec(
    name="mnist",
    title="MNIST",
    table_name="mnist",
    classes=tuple(str(digit) for digit in range(10)),
    train_filter="bilinear",
    train_clahe=False,
    num_transforms=42,
    is_gray=True,
    aliases=tuple((text, str(n)) for n, word in enumerate(_DIGITS) for text in (word, f"{n} - {word}")),
)

FASHION_MNIST = replace(
    MNIST,
    name="fashionmnist",
    title="FashionMNIST",
    table_name="fashionmnist",
    classes=("t_shirt", "trouser", "pullover", "dress", "coat", "sandals", "shirt", "sneaker", "bag", "ankle_boot"),
    aliases=(("T-shirt/top", "t_shirt"), ("Sandal", "sandals")),
)

PARIS = BenchmarkSpec(
    name="paris",
    title="Paris",
    table_name="paris",
    classes=(
        "defense",
        "eiffel",
        "invalides",
        "louvre",
        "moulinrouge",
        "museedorsay",
        "notredame",
        "pantheon",
        "pompidou",
        "sacrecoeur",
        "triomphe",
    ),
    geometry="fit_then_squash",
    size=450,
    test_filter="bilinear",
)

MVTEC = BenchmarkSpec(
    name="mvtec",
    title="MVTec AD",
    table_name="mvtec",
    classes=(
        "bottle",
        "cable",
        "capsule",
        "carpet",
        "grid",
        "hazelnut",
        "leather",
        "metal_nut",
        "pill",
        "screw",
        "tile",
        "toothbrush",
        "transistor",
        "wood",
        "zipper",
    ),
    geometry="crop",
    train_filter="lanczos",
    test_filter="lanczos",
)

MVTEC_ROTATIONS = replace(MVTEC, train_clahe=False, num_transforms=4)

# Any other data set, as a tree of one folder a class; the tree fills in the title and the classes.
FOLDER = BenchmarkSpec(name="folder", title="folder", table_name="folder", classes=())
FOLDER_GRAY = replace(MNIST, name="folder", title="folder", table_name="folder", classes=(), aliases=())

SPECS: Mapping[str, BenchmarkSpec] = MappingProxyType(
    {spec.name: spec for spec in (CIFAR, MNIST, FASHION_MNIST, PARIS, MVTEC, FOLDER)}
)
DEFECTS = "defects"
"""What `--dataset` takes for a folder of defects in MVTec's layout."""

_SET_ALIASES: Mapping[str, str] = MappingProxyType({"cifar10": "cifar", "mvtecad": "mvtec"})


@dataclass(frozen=True)
class BenchmarkOptions(Checked):
    """A data set of the protocol instead of images of one's own."""

    dataset: str | None = option(None, f"data set of the protocol: {', '.join((*SPECS, DEFECTS))}")
    data_root: str = option("data", "folder of its files")
    pos_class: str | None = option(None, "the class that is normal: its name or number")
    index_download: int = option(1, "which images of the class: k takes the k-th --num_images of them", low=1)
    random_images_download: bool = option(False, "take the random draw of number --index_download instead")
    download: bool = option(False, "fetch CIFAR10, MNIST or FashionMNIST into --data_root")


def benchmark_spec(name: str, preparation: str = "full") -> BenchmarkSpec:
    """Return the protocol's row for a data set.

    Args:
        name: cifar, mnist, fashionmnist, paris, mvtec or folder; case and hyphens do not matter.
        preparation: "full", or "rotations" for the row of the 4 rotations, which only MVTec has.

    Raises:
        UserError: No such data set, or no such row of it.
    """
    key = _fold(name)
    spec = SPECS.get(_SET_ALIASES.get(key, key))
    if spec is None:
        raise UserError(f"--dataset {name}: no such data set; choose from {', '.join(SPECS)}")
    if preparation == "full":
        return spec
    if preparation == "rotations" and spec is MVTEC:
        return MVTEC_ROTATIONS
    raise UserError(f"preparation {preparation!r}: {spec.name} has only 'full' (mvtec has 'rotations' as well)")


def class_index(spec: BenchmarkSpec, pos_class: str | int) -> int:
    """Return the label of a class.

    Args:
        spec: The data set; one read from a class-per-folder tree knows its classes only once it is loaded.
        pos_class: The paper's spelling, a usual one, or the label's number; case, spaces and punctuation do not matter.
            A name wins over a number.

    Raises:
        UserError: No such class; the line lists the choices.
    """
    labels = {_fold(name): label for label, name in enumerate(spec.classes)}
    spellings = {_fold(alias): labels[_fold(name)] for alias, name in spec.aliases} | labels
    key = _fold(str(pos_class))
    if key in spellings:
        return spellings[key]
    if str(pos_class).isdecimal() and int(pos_class) < len(spec.classes):
        return int(pos_class)
    choices = ", ".join(spec.classes)
    raise UserError(f"--pos_class {pos_class}: {spec.title} has no such class; choose from {choices} or a label number")


def is_defect_set(dataset: str) -> bool:
    """Whether a data set's anomalies are defects, not images of another class."""
    return dataset == DEFECTS or benchmark_spec(dataset).name == "mvtec"


def default_task(dataset: str) -> str:
    """The task that a data set is for: "defect" or "class"."""
    return "defect" if is_defect_set(dataset) else "class"


def default_model_name(options: BenchmarkOptions, num_images: int) -> str:
    """A name for the model of one run, told from the options alone, such as `fashionmnist_sandals_5shot_2`.

    A class goes by the paper's spelling where the data set's classes are known beforehand, else as it is given. Random
    draws end in `draw2` instead of `2`.

    Raises:
        UserError: An option is missing, or there is no such data set or class.
    """
    require_class(options)
    dataset, pos_class = options.dataset, options.pos_class
    if dataset != DEFECTS:
        spec = benchmark_spec(dataset)
        dataset = spec.name
        pos_class = spec.classes[class_index(spec, pos_class)] if spec.classes else pos_class
    choice = f"{'draw' if options.random_images_download else ''}{options.index_download}"
    return f"{dataset}_{pos_class}_{num_images}shot_{choice}"


def require_class(options: BenchmarkOptions) -> None:
    """Refuse options that do not name a data set and a class.

    Raises:
        UserError: Names what is missing.
    """
    if options.dataset is None or options.pos_class is None:
        missing = "dataset" if options.dataset is None else "pos_class"
        raise UserError(f"--{missing} is missing: name a data set and its normal class")


def _fold(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())
