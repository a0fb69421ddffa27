"""What names mean: which folders and labels are normal or anomalous, and which folders and files are masks."""

import re
import unicodedata
from functools import cache, partial

NORMAL_FOLDER = "good"
LABELS_RULE = "0, false, no, good, ok and the like are normal; 1, true, yes, bad, ng and names of defects anomalous"
"""The labels that a CSV file may have, in words."""

# Answers to "is it defective?"; of a folder they are understood only where all others are, too.
_NO, _YES = "0|no?|false|falsch|faux|neg(ative)?|none", "1|y(es)?|true|wahr|vrai|pos(itive)?"
_GOOD = (
    "good|ok|okay|io|normal|nominal|pass(ed)?|accept(ed)?|healthy|clean|intact|undamaged|flawless|faultless|"
    "inlier|conform(ing|ant)?"
)
_BAD = (
    "bad|ng|nok|nio|ko(?!s)|abnormal(ity|ities)?|anomal(y|ies|ous)|defect(ive)?|faulty?|fail(ed)?|damaged?|broken|"
    "outlier|reject(ed)?|unhealthy"
)
# Items may be numbered kos01. The digits are those of a second folder, `good_2`, or of an order, `00_good`.
_NORMAL = re.compile(rf"\d*({_GOOD}|(no|non|not|without|zero)({_BAD})s?|({_BAD})s?free)s?\d*")
_ANOMALOUS = re.compile(rf"\d*({_BAD}|(no|non|not)({_GOOD}))s?\d*")

composed = partial(unicodedata.normalize, "NFC")
"""Takes a name to the Unicode form in which names are compared; macOS writes another."""

_FILLERS = re.compile("(image|img|picture|photo|sample|test)s?|data|testing")
_CLEAR_MASK = r"(?:masks?|gts?|ground_?truths?)"
_MASK = rf"(?:{_CLEAR_MASK}|labels?|annotations?|segmentations?|seg)"
_MASK_FOLDER = re.compile(
    rf"(?:(?:binary|pixel(?:wise)?|semantic|{_MASK})_)*{_MASK}|(?P<before>.+)_{_CLEAR_MASK}|{_CLEAR_MASK}_(?P<after>.+)"
)
_MASK_STEM = re.compile(rf"(?i)^{_MASK}[-_. ]+(?=.)|(?<=.)[-_. ]+{_MASK}(?:[-_. ]?\d+)?$")


@cache
def fold(name: str) -> str:
    """A name in lower case, its words joined by `_`, without those that say nothing: `Test Images/Good` is `good`."""
    return "_".join(word for word in _words(name) if not _FILLERS.fullmatch(word))


@cache
def is_normal(name: str) -> bool | None:
    """Whether a label or folder name means normal (True) or anomalous (False); None: neither, as a kind of defect."""
    if is_answer(name):
        return re.fullmatch(_NO, "".join(_words(name))) is not None
    word = fold(name).replace("_", "")
    return True if _NORMAL.fullmatch(word) else False if _ANOMALOUS.fullmatch(word) else None


def is_answer(name: str) -> bool:
    """Whether `is_normal` takes a name for an answer, such as 0 or yes, that may mean something else as a folder."""
    return bool(re.fullmatch(f"{_NO}|{_YES}", "".join(_words(name)))) and not name.strip().startswith("-")


@cache
def mask_kind(name: str) -> str | None:
    """The kind in the name of a folder of masks: empty for `masks`, `crack` for `crack_gt`; None for other names."""
    match = _MASK_FOLDER.fullmatch(fold(name))
    return match and (match["before"] or match["after"] or "")


def image_stem(stem: str) -> str:
    """The stem of the image that a mask of this stem belongs to: `007` for `007`, `007_mask`, `gt-007`, `007_mask2`."""
    return _MASK_STEM.sub("", stem, count=1)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold())
