"""Whether a folder can become a run folder, and what would be lost if it did."""

import os
import re
from pathlib import Path

from hta import files
from hta.errors import UserError
from hta.evaluation import calibration, results
from hta.files import check_replaceable, foreign, printable, recover
from hta.models import storage
from hta.models.storage import RunFolder
from hta.training import animation, logs, progress, report, samples

# Paths in a run folder that the scripts write, or desktops of their own accord; all of them may be replaced.
_WRITERS = (storage, progress, report, samples, animation, logs, calibration, results)
_OWN_FILES = re.compile("|".join(module.OWN_FILES for module in _WRITERS) + rf"|(results/)?{files.OWN_FILES}")


def check_vacant(folder: RunFolder, *, overwrite: bool) -> None:
    """Refuse, with a UserError, a folder that cannot become a run folder, or would lose something to a new run.

    That is a model if `overwrite` is off, and always files that hta did not write and the working directory.
    """
    path = folder.path
    recover(path)
    if re.search("[\ud800-\udfff]", str(path)):
        raise UserError(f"{printable(path)}: is not UTF-8, as the name of a model must be; give another --name")
    nearest = next((parent for parent in (path, *path.parents) if os.path.exists(parent)), None)  # noqa: PTH110
    if nearest is not None and not nearest.is_dir():
        raise UserError(f"{nearest}: is a file where the run folder should be; give another --name or --models_dir")
    if nearest != path or not any(path.iterdir()):
        return
    if not folder.exists:
        raise UserError(f"{path}: exists and is not a model of hta; give another --name")
    if not overwrite:
        try:
            folder.read_record()
            state = "a trained model" if folder.finished else "an unfinished run, which --resume continues"
        except UserError:
            state = "a model that this version of hta cannot read"
        raise UserError(f"{path}: contains {state}; give another --name, or --overwrite to replace it")
    check_overwritable(folder, "give another --name")


def check_overwritable(folder: RunFolder, remedy: str, part: str = "") -> None:
    """Refuse to replace a run folder, or its subfolder `part`, with the working directory or files of others in it."""
    others = [name for name in foreign_files(folder.path) if not part or f"{name}/".startswith(f"{part}/")]
    if others:
        found = others[0] + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        reason = "which hta did not write and would delete"
        raise UserError(f"{folder.path}: contains {found}, {reason}; move it away, or {remedy}")
    check_replaceable(folder.path / part, str(folder.path / part), remedy)


def foreign_files(folder: Path) -> list[str]:
    """What hta did not write into a run folder, see `hta.files.foreign`."""
    evaluated = [path for path in folder.glob("results/*/") if not path.is_symlink()]
    inside = [f"results/{path.name}/{name}" for path in evaluated for name in results.foreign_files(path)]
    return foreign(folder, _OWN_FILES.fullmatch) + inside
