"""Helpers of the experiment tests: a tiny class-per-folder tree, tiny settings, results made by hand."""

import json

import numpy as np
from PIL import Image

from hta.experiments.plan import METHOD_VERSION, RunSpec
from hta.experiments.results import FORMAT_VERSION

TINY = ("min_size=11", "max_size=13", "nfc=3", "niter=1", "Gsteps=1", "Dsteps=1")


def make_tree(root, train=3, test=4):
    """Two classes of noise, one of them darker."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, high in (("ant", 255), ("bee", 120)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, high, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def run_arguments(tree, results, *more, tiny=TINY):
    """Arguments of a tiny run on the CPU."""
    base = ["run", "--datasets", "folder", "--data_root", str(tree), "--dataset_title", "Insects", "--not_cuda"]
    return [*base, "--num_transforms", "4", "--results", str(results), "--set", *tiny, *more]


def records(results):
    """All results by file name, without what differs from run to run."""
    loaded = {path.name: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    for record in loaded.values():
        assert record["run"].keys() == {"seconds_training", "seconds_scoring", "date", "machine", "versions"}
        del record["run"]
    return loaded


def write_result(folder, auroc, *, false_alarms=None, combined=None, dtype="bfloat16", **spec):
    """A result made by hand, by default of FashionMNIST's bag, one-shot."""
    fields = dict(dataset="fashionmnist", title="FashionMNIST", pos_class="bag", shots=1, draw=1, variant="ours")
    fields |= dict(preset="fast", num_transforms=42, data_sha256="", test_limit=1000, paper_dataset="fashionmnist")
    spec = RunSpec(**fields | spec)
    by_fraction = auroc if isinstance(auroc, dict) else {"1": auroc}
    values = {name: {"mean": value, "minmax": value - 0.01} for name, value in by_fraction.items()}
    main = by_fraction[f"{spec.main_fraction:g}"]
    record = {
        "format_version": FORMAT_VERSION,
        "method_version": METHOD_VERSION,
        "key": spec.key,
        "spec": {name: getattr(spec, name) for name in spec.__dataclass_fields__},
        "results": {
            "auroc": values[f"{spec.main_fraction:g}"],
            "auroc_by_fraction": values,
            "auroc_by_scale": [main / 2, main],
            "training_shares": [main / 4, main / 8],
        },
        "run": {"seconds_training": 3000.0, "seconds_scoring": 600.0, "machine": {"dtype": dtype}},
    }
    if false_alarms is not None:
        record["results"]["decision"] = {"false_positive_rate": {"value": false_alarms}}
    if combined is not None:
        decision = {"false_positive_rate": {"value": combined / 2}}
        record["results"]["combined"] = {"auroc": combined, "decision": decision}
    folder.mkdir(exist_ok=True)
    (folder / f"{spec.name}.json").write_text(json.dumps(record))
    return spec
