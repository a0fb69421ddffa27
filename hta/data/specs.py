"""What the protocol fixes for each data set: class names, preparation of images, transformations (paper, section 4)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from hta.data.names import LABELS_RULE
from hta.errors import UserError
from hta.settings import Checked, option

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")

ROTATIONS = 4
"""The number of transformations for which images with defects have a preparation of their own, without CLAHE."""


@dataclass(frozen=True)
class Preparation(Checked):
    """How the images of a data set are prepared (paper, section 4); `--prepare` changes it.

    Attributes:
        geometry: "squash" (to a square, whatever the aspect ratio), "crop" (shorter side to `size`, then the centre) or
            "fit_then_squash" (training images shrink to fit `size`, aspect kept, before they are squashed).
    """

    geometry: str = option(
        "squash", "from the image's shape to a square", choices=("squash", "fit_then_squash", "crop")
    )
    size: int = option(128, "side of a prepared image", low=11, high=4096, unit="px")
    train_filter: str = option("bicubic", "resampling of training images", choices=_FILTERS)
    test_filter: str = option("bicubic", "resampling of test images", choices=_FILTERS)
    train_clahe: bool = option(True, "whether training images, and only they, go through CLAHE")
    mean_intensity: float = option(
        0.0,
        "if not 0, every image, training or test, is multiplied to have this mean (not of the protocol)",
        low=0,
        below=1,
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec(Preparation):
    """One row of the protocol's table.

    Attributes:
        name: The name that `--dataset` accepts.
        title: The name for people, which says so where only a part of the data set is present.
        table_name: The data set's name in the file of the paper's values.
        classes: Class names in label order, in the paper's spelling.
        is_gray: Whether the images are gray (R = G = B).
        has_defects: Whether anomalies are defects of the class's own object, not images of other classes.
        aliases: Pairs of another spelling of a class and the paper's.
    """

    name: str
    title: str
    table_name: str
    classes: tuple[str, ...]
    num_transforms: int = 54
    is_gray: bool = False
    has_defects: bool = False
    aliases: tuple[tuple[str, str], ...] = ()

    def class_name(self, pos_class: str | int) -> str:
        """Return a class in the paper's spelling, or refuse one that is not there and list the choices.

        Args:
            pos_class: That spelling, a usual one, or the label's number; case, spaces and punctuation do not matter.
                A name wins over a number.
        """
        spellings = {_fold(alias): name for alias, name in self.aliases} | {_fold(name): name for name in self.classes}
        if (key := _fold(str(pos_class))) in spellings:
            return spellings[key]
        if str(pos_class).isdecimal() and int(pos_class) < len(self.classes):
            return self.classes[int(pos_class)]
        choices = f"{', '.join(self.classes)} or a label number"
        raise UserError(f"--pos_class {pos_class}: {self.title} has no such class; choose from {choices}")


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
    classes=tuple("0123456789"),
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

_LANDMARKS = "defense eiffel invalides louvre moulinrouge museedorsay notredame pantheon pompidou sacrecoeur triomphe"
PARIS = BenchmarkSpec(
    name="paris",
    title="Paris",
    table_name="paris",
    classes=tuple(_LANDMARKS.split()),
    geometry="fit_then_squash",
    size=450,
    test_filter="bilinear",
)

_OBJECTS = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
)
MVTEC = BenchmarkSpec(
    name="mvtec",
    title="MVTec AD",
    table_name="mvtec",
    classes=tuple(_OBJECTS.split()),
    geometry="crop",
    train_filter="lanczos",
    test_filter="lanczos",
    has_defects=True,
)

# Any other data set, as a tree with one folder per class or of one object's defects; the tree gives title and classes.
DEFECTS = replace(MVTEC, name="defects", title="defects", table_name="defects", classes=())
FOLDER = BenchmarkSpec(name="folder", title="folder", table_name="folder", classes=())
FOLDER_GRAY = replace(MNIST, name="folder", title="folder", table_name="folder", classes=(), aliases=())

SPECS: Mapping[str, BenchmarkSpec] = MappingProxyType(
    {spec.name: spec for spec in (CIFAR, MNIST, FASHION_MNIST, PARIS, MVTEC, FOLDER, DEFECTS)}
)
_SET_ALIASES = {"cifar10": "cifar", "mvtecad": "mvtec"}


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which model main_eval.py takes, and which images it scores."""

    input_name: str = option(
        "",
        "the model: its name, the name of its training image, or the path of its folder; by default, with --dataset, "
        "the model that main_train.py makes with the same options",
    )
    models_dir: str = option("TrainedModels", "folder that holds the models")
    test_dir: str = option(
        "",
        "an image or a folder of images; in a folder laid out like MVTec AD, the subfolder good (or normal, ok, ...) "
        "and those named after defects provide labels, and ground_truth (or masks, gt, ...) provides masks",
    )
    labels_csv: str | None = option(
        None, f"take labels from a CSV file with the header path,label, or a list of VisA: {LABELS_RULE}"
    )
    mask_dir: str | None = option(None, "folder of the masks, laid out like --test_dir; by default looked for there")
    invert_masks: bool = option(False, "black instead of white pixels of the masks are the anomalous ones")
    good_dir: str | None = option(
        None,
        "folder of normal images that are neither trained on nor scored (at least 19 for 5 % false alarms), from which "
        "the threshold is made, instead of from altered copies (views) of the training images",
    )
    skip_unreadable: bool = option(False, "leave out images that cannot be read")
    task: str | None = option(
        None,
        "use the fraction of patches and the calibration of a task other than the model's",
        choices=("defect", "class"),
    )
    num_images: int | None = option(
        None, "how many images of a --dataset the model was trained on; by default 1", low=1
    )
    test_limit: int | None = option(
        None, "score only this many test images of a --dataset, with every class in proportion", low=1
    )


@dataclass(frozen=True)
class DatasetOptions(Checked):
    """A data set of the protocol instead of the user's own images."""

    dataset: str | None = option(None, f"data set to use: {', '.join(SPECS)}")
    data_root: str = option("data", "folder that holds the files of the data set")
    pos_class: str | None = option(None, "the class to take as normal, by name or number")
    index_download: int = option(
        1, "which training images of the class to use: k takes the k-th group of --num_images, in order", low=1
    )
    random_images_download: bool = option(False, "use random images instead: draw number --index_download")
    download: bool = option(False, "download CIFAR10, MNIST or FashionMNIST into --data_root")


def benchmark_spec(name: str, num_transforms: int | None = None) -> BenchmarkSpec:
    """Return the protocol's row for a data set.

    Args:
        name: A key of `SPECS`; case and hyphens do not matter.
        num_transforms: M; None: the paper's number, for defects the 4 rotations, which have a row of their own.

    Raises:
        UserError: No such data set.
    """
    key = _fold(name)
    spec = SPECS.get(_SET_ALIASES.get(key, key))
    if spec is None:
        raise UserError(f"--dataset {name}: no such data set; choose from {', '.join(SPECS)}")
    if spec.has_defects and num_transforms in (None, ROTATIONS):
        return replace(spec, train_clahe=False, num_transforms=ROTATIONS)
    return spec


def default_task(dataset: str) -> str:
    """The task that a data set is for: "defect" or "class"; refuses an unknown data set as `benchmark_spec` does."""
    return "defect" if benchmark_spec(dataset).has_defects else "class"


def default_model_name(options: DatasetOptions, num_images: int) -> str:
    """Return a name for the model of one run from the options alone, such as `fashionmnist_sandals_5shot_2`.

    A class has the paper's spelling where the data set's classes are known beforehand, else the given one. Random
    draws end in `draw2` instead of `2`. A missing option or an unknown data set or class is refused.
    """
    dataset, pos_class = required_options(options)
    spec = benchmark_spec(dataset)
    name = spec.class_name(pos_class) if spec.classes else pos_class
    choice = f"{'draw' if options.random_images_download else ''}{options.index_download}"
    return f"{spec.name}_{name}_{num_images}shot_{choice}"


def required_options(options: DatasetOptions) -> tuple[str, str]:
    """Return the names of data set and class; refuses options that lack one of them with a `UserError`."""
    if options.dataset is None or options.pos_class is None:
        missing = "dataset" if options.dataset is None else "pos_class"
        raise UserError(f"--{missing} is missing: name a data set and its normal class")
    return options.dataset, options.pos_class


def _fold(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())
