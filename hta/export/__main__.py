"""Write a trained model as one graph that scores images without hta:
    python -m hta.export --input_name brick

The graph takes images of any size in [0, 1] and gives their anomaly scores, vote shares and anomaly maps, as
main_eval.py does in float32. The thresholds and what else there is to know are in the file's metadata.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from hta.cli import NOT_FOR_SCORING, Parser, add_settings, announce_torch, run_command, take_settings
from hta.config import RuntimeConfig, ScoringConfig
from hta.data.specs import InputOptions
from hta.errors import UserError
from hta.files import printable, write_atomically
from hta.settings import Checked, option


@dataclass(frozen=True)
class ExportOptions(Checked):
    """Which model is written, and where."""

    input_name: str = option("", "the trained model: its name, or the path of its folder")
    models_dir: str = option("TrainedModels", "folder that holds the models")
    good_dir: str | None = option(None, "folder of good images from which the threshold is made, as for main_eval.py")
    format: str = option("onnx", "file format: ONNX, or PyTorch's torch.export", choices=("onnx", "pt2"))
    output: str | None = option(None, "the file; by default model.onnx or model.pt2 in the model's folder")
    overwrite: bool = option(False, "replace an existing file")


GROUPS = {"model": ExportOptions, "scoring": ScoringConfig, "machine": RuntimeConfig}
_UNUSED = (*NOT_FOR_SCORING, "compile", "batch_size", "device", "not_cuda", "precision", "deterministic")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_command, argv, "nothing was written")


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.export", description=__doc__, usage="%(prog)s --input_name MODEL [options]")
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls, exclude=_UNUSED)
    given = vars(parser.parse_args(argv))
    if not given.get("input_name"):
        raise UserError("--input_name is missing: name a trained model; see --help")
    needed = ("onnx", "onnxscript") if given.get("format") != "pt2" else ()
    if missing := " ".join(name for name in needed if find_spec(name) is None):
        raise UserError(f"--format onnx: packages are missing; install them with: pip install {missing}")
    announce_torch()
    path = _export(*(take_settings(cls, given) for cls in GROUPS.values()))
    print(f"graph: {printable(path)} ({path.stat().st_size / 1e6:.1f} MB)")  # noqa: T201


def _export(options: ExportOptions, scoring: ScoringConfig, runtime: RuntimeConfig) -> Path:
    """Load the model, find its thresholds, and write its graph; returns the file."""
    from hta.export.formats import describe, onnx_file, pt2_file
    from hta.export.graph import ScoreGraph
    from hta.inputs import score_good
    from hta.model import load

    model = load(options.input_name, options.models_dir, replace(runtime, not_cuda=True, precision="float32"))
    path, scoring = _target(options, model.saved_folder.path), replace(scoring, score=model.score_name(scoring))
    good = InputOptions(good_dir=options.good_dir)
    limits = model.threshold(scoring, good=score_good(model, good, [], scoring, with_maps=True))
    write = onnx_file if options.format == "onnx" else pt2_file
    write_atomically(path, write(ScoreGraph(model, scoring, limits).eval(), describe(model, scoring, limits)))
    return path


def _target(options: ExportOptions, folder: Path) -> Path:
    """The file to write, or a UserError if it may not be."""
    path = folder / f"model.{options.format}" if options.output is None else Path(options.output)
    if path.suffix != f".{options.format}" or not path.parent.is_dir():
        raise UserError(f"--output {path}: must be a file .{options.format} in a folder that exists")
    if path.is_dir() or (path.exists() and not options.overwrite):
        raise UserError(f"{path}: exists; give another --output, or --overwrite to replace a file")
    return path


if __name__ == "__main__":
    sys.exit(main())
