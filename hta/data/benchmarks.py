"""The five data sets of the paper, and any other laid out as class folders, under the protocol's table (section 7)."""

from pathlib import Path

from hta.data.class_folders import load_class_folders
from hta.data.image_sets import Benchmark
from hta.data.mvtec import load_mvtec
from hta.data.paris import load_paris
from hta.data.specs import BenchmarkSpec, benchmark_spec
from hta.data.torchvision_sets import load_torchvision
from hta.errors import UserError


def load_benchmark(name: str, data_root: str | Path, *, download: bool = False, preparation: str = "full") -> Benchmark:
    """Load a data set; images are decoded and prepared only when they are asked for.

    Args:
        name: cifar, mnist, fashionmnist, paris, mvtec or folder.
        data_root: Where its files lie; each loader's docstring has the layout.
        download: Whether torchvision may fetch CIFAR10, MNIST or FashionMNIST into `data_root`.
        preparation: "full", or "rotations" for MVTec's row of the 4 rotations (no CLAHE).

    Raises:
        UserError: No such data set or preparation, files that are missing or of another form.
        RunError: A download or an archive could not be written.
    """
    spec = benchmark_spec(name, preparation)
    root = Path(data_root)
    try:
        return _load(spec, root, download)
    except UserError as error:
        if root.is_dir():
            raise
        raise UserError(f"{error}; there is no such folder yet") from error


def _load(spec: BenchmarkSpec, root: Path, download: bool) -> Benchmark:
    if spec.name == "paris":
        return load_paris(spec, root)
    if spec.name == "mvtec":
        return load_mvtec(spec, root)
    if spec.name == "folder":
        return load_class_folders(root)
    return load_torchvision(spec, root, download)
