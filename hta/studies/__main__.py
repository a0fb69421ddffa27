"""Studies of the method: python -m hta.studies NAME [options]

  demo        makes the demo images, good and defective crops of a brick wall
  planted     counts how often the anomaly map peaks on a planted defect
  samples     measures the reconstructions and random samples of a model
  scores      compares what anomaly maps and scores can be made of
  shots       measures what more iterations bring with several training images
  thresholds  compares ways of choosing a threshold from the training images

`python -m hta.studies NAME --help` describes a study and its options.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

from hta.cli import announce_torch

announce_torch()  # before the imports that need it

from hta.cli import NOT_FOR_SCORING, Parser, add_settings, run_command, take_settings
from hta.config import RuntimeConfig
from hta.model import load
from hta.runtime import own_process
from hta.settings import Checked
from hta.studies import demo, planted, samples, scores, shots, thresholds

_STUDIES: dict[str, tuple[str | None, type[Checked], Callable[..., Iterator[str]]]] = {
    "demo": (demo.__doc__, demo.DemoOptions, demo.run),
    "planted": (planted.__doc__, planted.PlantedOptions, planted.run),
    "samples": (samples.__doc__, samples.SampleOptions, samples.run),
    "scores": (scores.__doc__, scores.ScoreOptions, scores.run),
    "shots": (shots.__doc__, shots.ShotsOptions, shots.run),
    "thresholds": (thresholds.__doc__, thresholds.ThresholdOptions, thresholds.run),
}


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.studies", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, (description, cls, _) in _STUDIES.items():
        study = names.add_parser(name, description=description)
        add_settings(study, "study", cls)
        if hasattr(cls, "input_name"):  # the study looks at a model
            study.usage = study.format_usage().removeprefix("usage: ").rstrip() + " ..."
            add_settings(study, "machine", RuntimeConfig, exclude=NOT_FOR_SCORING)
    given = vars(parser.parse_args(argv))
    _, cls, run = _STUDIES[given["name"]]
    options, subjects = take_settings(cls, given), []
    if hasattr(options, "input_name"):
        runtime = take_settings(RuntimeConfig, given)
        own_process(runtime)
        subjects = [load(options.input_name, options.models_dir, runtime)]
    for line in run(options, *subjects):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    unfinished = "some images may be missing; --overwrite makes them again"
    return run_command(_command, argv, unfinished if "demo" in argv[:1] else "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
