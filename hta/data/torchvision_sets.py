"""CIFAR10, MNIST and FashionMNIST through torchvision's own classes.

CIFAR10's published files are pickles: torchvision compares each with its published checksum before it opens it. hta
itself opens no pickle.
"""

from pathlib import Path

from hta.data.image_sets import Benchmark, array_benchmark
from hta.data.specs import BenchmarkSpec
from hta.errors import RunError, UserError

_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"
_LAYOUT = {
    "cifar": ("CIFAR10", "the folder cifar-10-batches-py of cifar-10-python.tar.gz"),
    "mnist": ("MNIST", f"MNIST/raw/ with {_IDX_FILES}"),
    "fashionmnist": ("FashionMNIST", f"FashionMNIST/raw/ with {_IDX_FILES}"),
}


def load_torchvision(spec: BenchmarkSpec, data_root: Path, download: bool) -> Benchmark:
    """Load a data set of torchvision.

    Args:
        spec: Its row of the table.
        data_root: torchvision's `root`.
        download: Whether files that are not there may be fetched; an archive that is there is checked and unpacked.

    Raises:
        UserError: The files are not there, or are damaged.
        RunError: The download failed.
    """
    # Slow to import, and of all data sets only these three need it.
    from torchvision import datasets

    class_name, layout = _LAYOUT[spec.name]
    dataset = getattr(datasets, class_name)
    try:
        train, test = (dataset(str(data_root), train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        if download:
            reason = " ".join(str(error).split())  # torchvision's text has several lines
            raise RunError(f"--download: {spec.title} not fetched ({reason}); put {layout} into {data_root}") from error
        raise UserError(
            f"--data_root {data_root}: {spec.title} is not there or not whole; put {layout} into it, or use --download"
        ) from error
    except (ValueError, LookupError, AssertionError, EOFError) as error:
        raise UserError(
            f"--data_root {data_root}: files of {spec.title} are damaged; delete them and use --download"
        ) from error
    return array_benchmark(spec, train, test)
