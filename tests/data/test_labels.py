"""Labels from CSV files: spreadsheets' forms, hostile files, and mutations of good ones."""

import os
import random
import unicodedata

import pytest

from hta.data.folders import find_test_images
from hta.errors import UserError
from tests.data.test_folders import make, rejected
from tests.fuzzing import TIMES

NAMES = ("a.png", "b.png")
ROWS = "path,label\na.png,0\nb.png,crack\n"


@pytest.fixture
def images(tmp_path):
    make(tmp_path / "in", *NAMES)
    return tmp_path / "in"


def labels_of(images, data, name="labels.csv"):
    """Label and kind of every image when the CSV file has these bytes."""
    labels_csv = images.parent / name
    labels_csv.write_bytes(data)
    return [(sample.label, sample.defect) for sample in find_test_images(images, labels_csv)]


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        ROWS.replace(",", ";"),
        ROWS.replace(",", "\t"),
        "sep=;\n" + ROWS.replace(",", ";"),
        ROWS.replace("\n", "\r\n"),
        ROWS.replace("\n", "\r"),
        "\n\n Path ,LABEL \n\na.png, 0\n,\n  \nb.png ,crack\n\n",
        'Label;"path";note\n"0";"a.png";"x;y"\n"crack";"b.png";\n',
        "no,path,label,more\n1,a.png,0,x\n2,b.png,crack\n",
        "path,label\n.\\a.png,0\n./b.png,crack",
        "path;label\na.png;0,0\nb.png;crack",
        "path;label\na.png;FALSCH\nb.png;crack",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_forms_that_spreadsheets_write(images, text, encoding):
    assert labels_of(images, text.encode(encoding)) == [(0, None), (1, "crack")]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form_match(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    make(tmp_path / "in", unicodedata.normalize(form, "größe.png"))
    data = f"path,label\n{unicodedata.normalize(other, 'größe.png')},1\n".encode()
    assert labels_of(tmp_path / "in", data) == [(1, None)]


def test_two_files_that_differ_in_their_unicode_form_stay_two(tmp_path):
    make(tmp_path / "in", unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"))
    rows = [f"{unicodedata.normalize(form, 'é.png')},{label}" for form, label in (("NFC", "0"), ("NFD", "crack"))]
    found = labels_of(tmp_path / "in", "\n".join(["path,label", *rows]).encode())
    assert sorted(found, key=str) == [(0, None), (1, "crack")]


def test_names_in_other_encodings_match(tmp_path):
    make(tmp_path / "in", "größe.png", os.fsdecode(b"gr\xf6sse.png"))
    data = b"path,label\ngr\xf6\xdfe.png,0\ngr\xf6sse.png,crack\n"
    assert sorted(labels_of(tmp_path / "in", data), key=str) == [(0, None), (1, "crack")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"path,label,label\na.png,0,1\nb.png,0,1\n", "several columns label"),
        (b"path,label,Path \na.png,0,b.png\n", "several columns path"),
        (b"path\na.png\n", "lacks path,label"),
        (b"\xff\xfep\x00a", "cannot be read"),
        (b"path,label\na.png,0\nb\0.png,1\n", "zero bytes"),
        (b'path,label\na.png,"' + b"x" * 200_000 + b'"\n', "cannot be read"),
        (b"path,label\na.png,0\nb.png," + b"9" * 400 + b"\n", "label 9999"),
        (b'path,label\na.png,0\n"b\n\x1b[31m.png",1\n', r"b\n\x1b[31m.png"),
        (b"path,label\na.png,0\n\xed\xa0\x80.png,1\n", "no such test image"),
        (b"path,label\n" + b"x" * 5000 + b",0\n", "xxx...;"),
    ],
)
def test_hostile_files_are_refused_in_one_short_line(images, data, words):
    labels_csv = images.parent / "labels.csv"
    labels_csv.write_bytes(data)
    rejected(words, find_test_images, images, labels_csv)
    with pytest.raises(UserError) as error:
        find_test_images(images, labels_csv)
    assert len(str(error.value)) < 1000


def test_what_is_no_plain_file_is_never_opened(images):
    os.mkfifo(images.parent / "pipe")
    for path in (images.parent / "pipe", images, "/dev/zero"):
        rejected("cannot be read as a CSV file", find_test_images, images, images.parent / path)
    with (images.parent / "large.csv").open("wb") as file:
        file.truncate(1 << 33)
    rejected("at most 64 MiB", find_test_images, images, images.parent / "large.csv")


def test_mutated_files_give_labels_or_one_line(images):
    draw = random.Random(16)
    seeds = [
        ROWS.encode(),
        ROWS.replace(",", ";").encode("utf-16"),
        b'\xef\xbb\xbf"path"\t"label"\r\n"a.png"\tTrue\r\n',
    ]
    odd = [
        b"\0",
        b'"',
        b",",
        b";",
        b"\n",
        b"\r",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"nan",
        b"-1",
        b"=",
        b"\\",
        b"../",
        b"label",
    ]
    accepted, messages = 0, []
    for _ in range(300 * TIMES):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(0, 4)):
            at = draw.randrange(len(data) + 1)
            data[at : at + draw.choice((0, 0, 1, 5))] = draw.choice([*odd, draw.randbytes(3), bytes(data[at : at + 9])])
        try:
            labels_of(images, bytes(data))
            accepted += 1
        except UserError as error:
            messages.append(str(error))
    assert accepted > 20
    assert len(messages) > 20
    assert not [message for message in messages if "\n" in message]
