"""Labels from a CSV file, as programs and spreadsheets write it."""

import csv
import io
import logging
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hta.data.names import LABELS_RULE, composed, is_answer, is_normal
from hta.errors import UserError

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 26  # a million rows and more
_LISTED = 5  # how many offending names a message has before it only counts them


def read_labels(labels_csv: Path, files: Sequence[Path], folder: Path) -> tuple[dict[Path, str], set[Path]]:
    """Read the label of each file that a CSV file with the columns path and label names.

    Returns these labels, and the files that are to be trained on, which only a list in the form of the data set VisA
    tells (split = train). Such a list has the columns image and label; its rows that name no file are passed over, and
    where all begin with one folder, that of the class, it may have another name here.

    Columns may be separated by commas, semicolons, tabs or bars, the text UTF-8 or UTF-16. Where a name, relative to
    the folder, that of the CSV file or the ones above them, fits no file, it is tried without spaces around it, with
    `/` for a backslash, and in the code page of western Windows. What does not fit the files is a `UserError`.
    """
    exact = {str(absolute(path)): path for path in files}
    places = {composed(name): path for name, path in exact.items()} | exact
    folders = (folder, labels_csv.parent, folder / "..", labels_csv.parent / "..")
    labels: dict[Path, str] = {}
    training: set[Path] = set()
    unknown = []
    is_list, rows = _rows(labels_csv)
    classes = {name.partition("/")[0] for name, *_ in rows} if is_list else {}
    for name, label, split in rows:
        western = name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
        below = name.partition("/")[2] if len(classes) == 1 else name
        forms = (name, name.strip(), name.replace("\\", "/"), western, below)
        wanted = [str(absolute(place / form)) for form in forms for place in folders]
        found = next((places[text] for text in (*wanted, *map(composed, wanted)) if text in places), None)
        if found is None:
            unknown.append(name)
        elif found in labels or found in training:
            raise UserError(f"{labels_csv}: two rows for {printed(name)}; remove one")
        elif split.strip().casefold() == "train":
            training.add(found)
        else:
            labels[found] = label
    if unknown and not is_list:
        raise UserError(f"{labels_csv}: no such test image: {listing(unknown)}; correct or remove these rows")
    if unknown or training:
        text = "%s: %d rows of other images, %d images to train on left out"
        logger.info(text, labels_csv, len(unknown), len(training))
    return labels, training


def parse_label(label: str, where: str) -> tuple[int, str | None]:
    """Return 0 (normal) or 1 (anomalous), and the kind of defect if it names one; refuses other numbers.

    Several defects, separated by commas, are a kind of their own, in whatever order.
    """
    try:
        number = float(label.replace(",", "."))
    except ValueError:
        normal = is_normal(label)
        kind = ",".join(sorted(map(str.strip, label.split(","))))
        return int(not normal), None if normal or is_answer(label) else kind
    if number not in (0, 1):
        raise UserError(f"{where}: label {printed(label)}; {LABELS_RULE}")
    return int(number), None


def _rows(labels_csv: Path) -> tuple[bool, list[tuple[str, str, str]]]:
    """Read (path, label, split) of every row that is not blank; tells first whether they are a list like VisA's."""
    rows = []
    try:
        reader, is_list, columns = _open_table(_text(labels_csv), labels_csv)
        for row in reader:
            path, label, split = (row[column] if column < len(row) else "" for column in columns)
            if path.strip() and label.strip():
                rows.append((path, label.strip(), split))  # names of files may begin with a space
            elif any(map(str.strip, row)):
                raise UserError(f"{labels_csv}: line {reader.line_num} lacks a path or a label; complete it")
        return is_list, rows
    except (OSError, UnicodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{labels_csv}: cannot be read as a CSV file ({reason}); check path and text") from error


def _open_table(text: str, labels_csv: Path) -> tuple[Any, bool, list[int]]:
    """Return a reader that has read the header, whether it is a list's, and the numbers of its columns."""
    for delimiter in ",;\t|":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        # Some spreadsheets write a line `sep=;` first.
        rows = (row for row in reader if any(map(str.strip, row)) and not row[0].lower().startswith("sep="))
        names = [name.strip().casefold() for name in next(rows, [])]
        name = "path" if "path" in names else "image"
        if {name, "label"} <= set(names):
            break
    else:
        raise UserError(f"{labels_csv}: its first line lacks path,label; add this header")
    if twice := next((column for column in (name, "label") if names.count(column) > 1), None):
        raise UserError(f"{labels_csv}: has several columns {twice}; keep one of them")
    is_list = name == "image"
    split = names.index("split") if is_list and "split" in names else sys.maxsize  # beyond every row
    return reader, is_list, [names.index(name), names.index("label"), split]


def _text(path: Path) -> str:
    """Read a text file in UTF-8 or UTF-16; bytes of other encodings become surrogates, as in names of files."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise csv.Error(f"not a file of at most {_MAX_BYTES >> 20} MiB")
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    if 0 in data[:2]:  # UTF-16 without a mark: every other byte of ASCII is zero
        encoding = "utf-16-le" if data[0] else "utf-16-be"
    text = data.decode(encoding, "surrogateescape")
    if "\0" in text:
        raise csv.Error("it holds zero bytes")
    return text.removeprefix("\ufeff")


def absolute(path: Path) -> Path:
    """Make a path comparable without following links: two links to one file stay two samples."""
    return Path(os.path.normpath(path.absolute()))


def printed(text: str) -> str:
    """A name for a message, cut if it is long; control characters and bytes that are no text are escaped."""
    cut = text if len(text) <= 200 else f"{text[:200]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def listing(names: Sequence[str]) -> str:
    """Name the first few, count the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(printed, names[:_LISTED])) + more
