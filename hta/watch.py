"""Score images as they arrive in a folder: python -m hta.watch --input_name MODEL --dir INBOX

Each image is answered by a line of JSON on stdout with its path, score and decision. Ctrl-C ends.
"""

# torch, and everything that needs it, is imported where it is used: --help and wrong options respond without delay.

import io
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hta.cli import NOT_FOR_SCORING, Parser, add_settings, announce_torch, run_command, take_settings
from hta.config import RuntimeConfig, ScoringConfig
from hta.data.specs import InputOptions
from hta.errors import HtaError, UserError
from hta.files import write_atomically
from hta.settings import Checked, option

logger = logging.getLogger("hta.watch")
_MARK, _HEAD_BYTES = b"made by hta.watch", 64  # the comment in overlays, the only files that are replaced; its place


@dataclass(frozen=True)
class WatchOptions(Checked):
    """What is watched, and where overlays go."""

    input_name: str = option("", "the model: its name, the name of its training image, or the path of its folder")
    dir: str = option("", "the folder that images arrive in, with its subfolders")
    overlays: str | None = option(None, "folder for the overlays; by default <dir>_overlays, beside --dir")
    no_overlays: bool = option(False, "write no overlays")
    new_only: bool = option(False, "leave out the files that are there at the start, unless they change")
    once: bool = option(False, "end when all files are answered")
    interval: float = option(0.2, "between looks; two must find a file the same", low=0.01, high=3600, unit="seconds")
    patience: float = option(5.0, "a file is called unreadable once it is the same for so long", low=0, unit="seconds")

    def __post_init__(self):
        super().__post_init__()
        if not (self.input_name and self.dir):
            raise UserError("--input_name or --dir is missing: give --input_name MODEL and --dir INBOX; see --help")
        if not Path(self.dir).is_dir():
            raise UserError(f"--dir {self.dir}: no such folder; create it, or check the path")

    def overlays_folder(self) -> Path | None:
        """Where overlays go, if anywhere; a UserError if they would arrive as images."""
        inbox = Path(self.dir).resolve()
        place = Path(self.overlays or f"{inbox}_overlays").resolve()
        if not self.no_overlays and (place.is_relative_to(inbox) or inbox.is_relative_to(place)):
            raise UserError(f"--overlays {place}: overlays would arrive in --dir as images; give a folder elsewhere")
        return None if self.no_overlays else place


_OF_MODEL = ("models_dir", "good_dir", "skip_unreadable")
GROUPS: dict[str, tuple[type[Checked], Sequence[str]]] = {
    "watch": (WatchOptions, ()),
    "model": (InputOptions, [f.name for f in fields(InputOptions) if f.name not in _OF_MODEL]),
    "scoring": (ScoringConfig, ["batch_size"]),
    "machine": (RuntimeConfig, NOT_FOR_SCORING),
}


@dataclass
class Arrival:
    """A file as it was found, by time of change and size, at `since`; it is answered once, and anew if it changes."""

    path: Path
    signature: tuple[int, int]
    since: float
    answered: bool = False


class Inbox:
    """A folder that is looked at again and again; `new_only` leaves out what is there now. Hidden files never count."""

    def __init__(self, folder: Path, *, new_only: bool = False):
        self._folder, self._closed = folder, set[str]()  # those below it that cannot be opened
        self.arrivals = {path: Arrival(path, found, 0, True) for path, found in (self._files() if new_only else ())}

    def look(self) -> list[Arrival]:
        """Look once; gives the files to read, oldest first: not answered, and the same as at the look before."""
        from hta.data.folders import is_image_name

        found = {path: signature for path, signature in self._files() if is_image_name(path.name)}
        before, now = self.arrivals, time.monotonic()
        # What is in a folder that cannot be opened for now, such as a share that is away, has not gone.
        self.arrivals = {path: before[path] for path in before if any(map(path.is_relative_to, self._closed))}
        for path, signature in found.items():
            is_same = path in before and before[path].signature == signature
            self.arrivals[path] = before[path] if is_same else Arrival(path, signature, now)
        ready = [arrival for arrival in self.arrivals.values() if arrival.since < now and not arrival.answered]
        return sorted(ready, key=lambda arrival: (arrival.signature, arrival.path))

    def _files(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        errors: list[OSError] = []
        for folder, subfolders, names in os.walk(self._folder, onerror=errors.append):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for path in (Path(folder, name) for name in names):
                if signature := _signature(path):
                    yield path, signature
        closed = {error.filename for error in errors}
        if new := closed - self._closed:
            logger.warning("cannot be opened for now: %s", ", ".join(sorted(new)))
        self._closed = closed


def _signature(path: Path) -> tuple[int, int] | None:
    """What changes with a file; None where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return None


class Judge:
    """The model that the options name, with the threshold that they ask for."""

    def __init__(self, options: WatchOptions, of_model: InputOptions, scoring: ScoringConfig, runtime: RuntimeConfig):
        from hta.images import png_of, to_uint8
        from hta.inputs import score_good
        from hta.model import load
        from hta.runtime import own_process

        own_process(runtime)
        self._model, self._draws = load(options.input_name, of_model.models_dir, runtime), not options.no_overlays
        fraction, score = self._model.fraction(scoring), self._model.score_name(scoring)
        self._scoring = replace(scoring, fraction_defect=fraction, score=score)
        good = score_good(self._model, of_model, [], self._scoring, with_maps=self._draws)
        self._limits = self._model.threshold(self._scoring, with_maps=self._draws, good=good)
        self(io.BytesIO(png_of(to_uint8(self._model.training_images[0]))), warn=False)  # the first time takes longer

    def __call__(self, source: Path | io.BytesIO, *, warn: bool = True) -> tuple[dict[str, Any], bytes | None]:
        """Score, decision and fault of an image as in scores.csv, or the error in reading it; and its overlay."""
        from hta.evaluation.nearest import usual_value
        from hta.evaluation.overlays import ColourScale, draw_overlay, picture_of
        from hta.evaluation.thresholds import NormalVotes, decide, decision_words
        from hta.images import jpeg_of

        images: list[Any] = []
        try:
            (votes,) = self._model.stream(
                [source], self._scoring, with_maps=self._draws, with_shares=False, observe=images.append, warn=warn
            )
        except UserError as error:
            if images:  # it is the model's fault
                raise
            return {"error": str(error)}, None
        found = NormalVotes.of([(votes.shares, votes.peak, votes.error)])
        scores = self._model.anomaly_scores(found, self._scoring, self._limits)
        (decision,) = decision_words(decide(scores, self._limits, found.peaks, [votes.fault]), 1)
        overlay, limit = None, self._limits.pixel_threshold
        if self._draws and votes.anomaly_map is not None and limit is not None:
            scale = ColourScale.around(limit, usual_value(self._scoring.score))
            overlay = jpeg_of(draw_overlay(picture_of(images[0]), votes.anomaly_map, scale), quality=90, comment=_MARK)
        return {"score": float(scores[0]), "decision": decision, "fault": votes.fault}, overlay


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.watch", description=__doc__)
    for title, (cls, unused) in GROUPS.items():
        add_settings(parser, title, cls, exclude=unused)
    given = vars(parser.parse_args(argv))
    options, *others = (take_settings(cls, given) for cls, _ in GROUPS.values())
    overlays = options.overlays_folder()
    inbox = Inbox(Path(options.dir), new_only=options.new_only)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    announce_torch()
    _watch(Judge(options, *others), inbox, options, overlays)


def _watch(judge: Judge, inbox: Inbox, options: WatchOptions, overlays: Path | None) -> None:
    """Answer every file that arrives, until Ctrl-C or, with --once, until all are answered; then say how many."""
    counts: Counter[str] = Counter()
    with suppress(KeyboardInterrupt):  # Ctrl-C or SIGTERM
        logger.info("ready: watching %s", options.dir)
        while True:
            for arrival in inbox.look():
                start = time.perf_counter()
                answer, overlay = judge(arrival.path)
                took = {"milliseconds": round(1e3 * (time.perf_counter() - start), 1)}
                is_growing = "error" in answer and time.monotonic() < arrival.since + options.patience
                if is_growing or _signature(arrival.path) != arrival.signature:
                    continue
                name = arrival.path.relative_to(options.dir).as_posix()
                sys.stdout.write(json.dumps({"path": name} | answer | took) + "\n")
                sys.stdout.flush()
                arrival.answered = True
                counts[answer.get("decision", "error")] += 1
                if overlays is not None and overlay is not None:
                    _write_overlay(overlays / f"{name}.jpg", overlay)
            if options.once and all(arrival.answered for arrival in inbox.arrivals.values()):
                break
            time.sleep(options.interval)
    text = "%d images: %d accepted, %d rejected, %d could not be read"
    logger.info(text, counts.total(), counts["pass"], counts["reject"], counts["error"])


def _write_overlay(path: Path, overlay: bytes) -> None:
    """Write an overlay; what keeps it from being written does not end the watch."""
    try:
        if os.path.lexists(path) and _MARK not in path.read_bytes()[:_HEAD_BYTES]:
            raise UserError(f"{path}: exists, and hta.watch did not write it; move it away")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, overlay)
    except (HtaError, OSError) as error:
        logger.warning("no overlay: %s", error)


def main(argv: Sequence[str] | None = None) -> int:
    """Watch a folder and return the exit status, 0 also after Ctrl-C."""
    return run_command(_command, argv, "no image was scored")


if __name__ == "__main__":
    sys.exit(main())
