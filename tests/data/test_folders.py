"""Finding and reading training images, test folders, labels and masks."""

import logging

import numpy as np
import pytest
from PIL import Image

from hta.data import folders
from hta.data.folders import find_good_images, find_test_images, find_training_images, load_training_images
from hta.data.names import LABELS_RULE
from hta.data.sample import check_readable
from hta.errors import UserError
from hta.images import IMAGE_SUFFIXES, is_gray, read_image


def make(root, *names, size=(4, 6)):
    """Write a small gray PNG, whatever the suffix, at each path below `root`; returns their paths."""
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size[::-1], 90).save(path, format="PNG")
    return paths


def load(paths, size_image=None):
    return np.stack(list(load_training_images(paths, size_image)))


def table(samples, base):
    """Name, label, kind of defect and mask of each sample."""
    return [
        (s.relative, s.label, s.defect, s.masks[0].relative_to(base).as_posix() if s.masks else None) for s in samples
    ]


@pytest.fixture
def mvtec(tmp_path):
    """A class folder in MVTec's layout, with equal stems in different folders and both spellings of masks."""
    root = tmp_path / "brick"
    make(root, "train/good/000.png", "test/good/000.png", "test/good/001.png", "test/stain/000.png")
    make(root, "test/scratch/000.png", "test/scratch/001.png", "ground_truth/scratch/000_mask.png")
    make(root, "ground_truth/scratch/001.png", "ground_truth/stain/000_mask.png")
    (root / "readme.txt").write_text("text")
    return root


def rejected(message, call, *arguments, **options):
    """The call ends in one line that holds the message."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class TestFindTrainingImages:
    def test_plain_names_go_to_the_input_folder_first_and_paths_to_their_place(self, tmp_path, monkeypatch):
        inside, outside, below, other = make(tmp_path, "Input/a.png", "a.png", "Input/deeper/b.png", "c.png")
        make(tmp_path, "Input/shots/c.png", "shots/d.png")
        monkeypatch.chdir(tmp_path)
        places = {"a.png": inside, "./a.png": outside, str(outside): outside, "deeper/b.png": below, "c.png": other}
        for name, expected in places.items():
            (found,) = find_training_images([name], tmp_path / "Input")
            assert found.resolve() == expected
        assert folders.locate("shots/", tmp_path / "Input") == tmp_path / "Input/shots"
        assert folders.locate("./shots", tmp_path / "Input").resolve() == tmp_path / "shots"

    def test_files_keep_their_order_and_a_folder_is_sorted_and_not_recursive(self, tmp_path):
        make(tmp_path, "f/b.PNG", "f/a.jpg", "f/c.tiff", "f/._a.jpg", "f/deeper/d.png")
        (tmp_path / "f" / "notes.txt").write_text("text")
        for names, expected in ((["f"], ["a.jpg", "b.PNG", "c.tiff"]), (["f/c.tiff", "f/a.jpg"], ["c.tiff", "a.jpg"])):
            assert [path.name for path in find_training_images(names, tmp_path)] == expected

    def test_other_files_and_masks_are_left_out_with_a_notice(self, tmp_path, caplog):
        make(tmp_path, "f/a.png", "f/a_mask.png", "f/b.heic")
        with caplog.at_level(logging.INFO):
            assert [path.name for path in find_training_images(["f"], tmp_path)] == ["a.png"]
        assert "2 file(s) left out: a_mask.png, b.heic" in caplog.text

    def test_num_images_caps_a_folder_with_a_notice(self, tmp_path, caplog):
        make(tmp_path, "f/b.png", "f/a.png", "f/c.png")
        with caplog.at_level(logging.INFO):
            assert len(find_training_images(["f"], tmp_path, 3)) == 3
            assert not caplog.messages
            assert [path.name for path in find_training_images(["f"], tmp_path, 2)] == ["a.png", "b.png"]
        assert "the first 2 of its 3 images" in caplog.text

    @pytest.mark.parametrize(
        ("names", "num_images", "message"),
        [
            (["brik.png"], None, "did you mean brick.png?"),
            (["brick"], None, "did you mean brick.png?"),
            (["zzz"], None, "check the name"),
            ([""], None, "check the name"),
            (["x" * 300], None, "check the name"),
            (["empty"], None, "holds no image file"),
            (["brick.png", "many"], None, "one folder, or files only"),
            (["many"], 3, "3 asked"),
            (["brick.png"], 2, "2 asked, 1 files named"),
            (["brick.png", "many/../brick.png"], None, "given twice"),
        ],
    )
    def test_mistakes(self, tmp_path, names, num_images, message):
        make(tmp_path, "brick.png", "many/a.png", "many/b.png")
        (tmp_path / "empty").mkdir()
        rejected(message, find_training_images, names, tmp_path, num_images)
        rejected(str(tmp_path / "none"), find_training_images, ["a.png"], tmp_path / "none")


class TestLoadTrainingImages:
    def test_one_size_stays_as_read_when_it_is_asked_for(self, tmp_path, monkeypatch, caplog):
        read = []
        monkeypatch.setattr(folders, "read_image", lambda path: read.append(path) or read_image(path))
        paths = make(tmp_path, "a.png", "b.png")
        images = load_training_images(paths)
        assert read == []
        for number, image in enumerate(images, 1):
            assert read == paths[:number]
            assert image.dtype == np.float32
            np.testing.assert_array_equal(image, read_image(read[-1]))
        assert not caplog.messages

    def test_others_take_the_size_of_the_first_with_a_notice(self, tmp_path, caplog):
        paths = make(tmp_path, "a.png") + make(tmp_path, "b.png", "c.png", size=(8, 8))
        images = load(paths)
        assert images.shape == (3, 4, 6, 3)
        np.testing.assert_allclose(images, 90 / 255, atol=1e-6)
        assert len(caplog.messages) == 1
        assert "2 of 3 training images" in caplog.text
        assert "6 x 4 px (width x height)" in caplog.text

    @pytest.mark.parametrize(
        ("size", "expected"), [((20, 20), (10, 10)), ((20, 31), (10, 16)), ((40, 20), (20, 10)), ((5, 5), (10, 10))]
    )
    def test_size_image_is_the_shorter_side(self, tmp_path, size, expected):
        images = load(make(tmp_path, "a.png", size=size), size_image=10)
        assert images.shape == (1, *expected, 3)

    def test_resizing_keeps_gray_gray_colours_and_the_range(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 2, (37, 53), dtype=np.uint8) * 255
        Image.fromarray(noise).save(tmp_path / "a.png")
        images = load([tmp_path / "a.png"], size_image=29)
        assert is_gray(images)
        assert (images.min(), images.max()) == (0, 1)
        Image.new("RGB", (20, 20), (255, 0, 51)).save(tmp_path / "b.png")
        np.testing.assert_allclose(load([tmp_path / "b.png"], size_image=10)[0, 5, 5], [1, 0, 0.2], atol=1e-6)

    def test_no_image(self, tmp_path):
        (tmp_path / "a.png").write_text("text")
        rejected("not an image", load_training_images, [tmp_path / "a.png"])


class TestFindTestImages:
    @pytest.mark.parametrize(
        ("files", "given", "expected"),
        [
            (["a.png"], "a.png", [("a.png", None, None, None)]),
            # Recursive, without labels and masks, in an order that does not depend on creation.
            (
                ["b/1.png", "a/z.jpg", "a.b/1.png", "a-b/1.png", ".hidden/c.png", "a/ground_truth/z.png", "10.png"],
                ".",
                [
                    *[(name, None, None, None) for name in ("10.png", "a-b/1.png", "a.b/1.png")],
                    ("a/z.jpg", None, None, "a/ground_truth/z.png"),
                    ("b/1.png", None, None, None),
                ],
            ),
            (
                ["good/a.png", "bad/deep/a.jpg", "ground_truth/bad/deep/a_mask.png"],
                ".",
                [("bad/deep/a.jpg", 1, "bad", "ground_truth/bad/deep/a_mask.png"), ("good/a.png", 0, None, None)],
            ),
            (["test/a.png", "train/b.png"], ".", [("test/a.png", None, None, None)]),
            # Masks, but no good images.
            (["test/c/a.png", "ground_truth/c/a.png"], ".", [("test/c/a.png", 1, "c", "ground_truth/c/a.png")]),
            (
                ["images/a.png", "images/b.png", "masks/a.png"],
                ".",
                [("images/a.png", None, None, "masks/a.png"), ("images/b.png", None, None, None)],
            ),
            (["images/a.png", "masks/a.png"], "images", [("a.png", 1, None, "masks/a.png")]),
            (
                ["c/a.png", "c/b.png", "gt/c/a.png"],
                ".",
                [("c/a.png", None, None, "gt/c/a.png"), ("c/b.png", *[None] * 3)],
            ),
            (["test/bad/a.png", "ground_truth/bad/a.png"], "test", [("bad/a.png", 1, "bad", "ground_truth/bad/a.png")]),
        ],
    )
    def test_layouts(self, tmp_path, files, given, expected):
        make(tmp_path, *files)
        assert table(find_test_images(tmp_path / given), tmp_path) == expected

    @pytest.mark.parametrize(
        ("folders_of", "labels"),
        [
            ("ok ko", [("ko", 1), ("ok", 0)]),
            ("OK NG", [("NG", 1), ("OK", 0)]),
            ("Normal Abnormal", [("Abnormal", 1), ("Normal", 0)]),
            ("0 1", [("0", 0), ("1", 1)]),
            ("accepted rejected", [("accepted", 0), ("rejected", 1)]),
            ("no yes", [("no", 0), ("yes", 1)]),
            ("No-defect crack", [("No-defect", 0), ("crack", 1)]),
            ("good good_2 no", [("good", 0), ("good_2", 0), ("no", 0)]),
            ("line1/ok line2/ng", [("line1/ok", 0), ("line2/ng", 1)]),
            ("test_images/good test_images/hole", [("test_images/good", 0), ("test_images/hole", 1)]),
            ("test/Good test/Bad train/Good", [("test/Bad", 1), ("test/Good", 0)]),
            ("Test/Normal Train/Normal", [("Test/Normal", 0)]),
            ("bad defects", [("bad", 1), ("defects", 1)]),
            # 0, yes and the like are labels only where all folders are understood.
            ("0 1 2", [("0", None), ("1", None), ("2", None)]),
            ("none crack", [("crack", None), ("none", None)]),
            ("batch1 batch2", [("batch1", None), ("batch2", None)]),
            ("bad rest", [("bad", None), ("rest", None)]),
        ],
    )
    def test_names_of_folders(self, tmp_path, folders_of, labels):
        make(tmp_path, *(f"{name}/x.png" for name in folders_of.split()))
        found = find_test_images(tmp_path, notes=(notes := []))
        assert [(sample.relative.removesuffix("/x.png"), sample.label) for sample in found] == labels
        assert [sample.defect for sample in found] == [name.split("/")[-1] if label else None for name, label in labels]
        _, note = notes
        assert note.startswith("no labels" if labels[0][1] is None else "labels: ")
        assert all(name.split("/")[-1] in note for name, label in labels if label is not None)

    @pytest.mark.parametrize("given", ["Data/Images", "Data", "."])
    def test_the_published_tree_of_visa(self, tmp_path, given):
        make(tmp_path, "Data/Images/Normal/0.JPG", "Data/Images/Anomaly/0.JPG", "Data/Masks/Anomaly/0.png")
        found = table(find_test_images(tmp_path / given), tmp_path)
        assert [row[1:] for row in found] == [(1, "Anomaly", "Data/Masks/Anomaly/0.png"), (0, None, None)]

    @pytest.mark.parametrize(
        "mask",
        [
            *[f"{name}/hole/x.png" for name in ("mask", "Masks", "gt", "GT", "Label", "labels", "annotations")],
            *[f"hole/{name}" for name in ("x_mask.bmp", "x-GT.png", "x_label.png", "mask_x.png", "masks/x.png")],
            *(
                "ground_truth/hole/x_gt.png",
                "gt/Hole/X.bmp",
                "Mask/x.png",
                "hole_mask/x.png",
                "mask_images/x_mask.png",
                "gt/hole/x/1.png",
            ),
        ],
    )
    def test_masks_are_no_images(self, tmp_path, mask):
        make(tmp_path, "good/x.png", "good/y.png", "hole/x.png", mask)
        expected = [("good/x.png", 0, None, None), ("good/y.png", 0, None, None), ("hole/x.png", 1, "hole", mask)]
        assert table(find_test_images(tmp_path), tmp_path) == expected

    def test_masks_beside_the_folder_of_the_images(self, tmp_path):
        make(tmp_path, "pics/ng/x.png", "pics/ok/x.png", "masks/ng/x.png", "test/ng/x.png", "images/ng/z.png")
        masks = [row[3] for row in table(find_test_images(tmp_path / "pics"), tmp_path)]
        assert masks == ["masks/ng/x.png", None]
        # Where they do not fit, they may belong to anything, unless the name of the folder says more.
        make(tmp_path, "masks/ng/y.png")
        assert [row[3] for row in table(find_test_images(tmp_path / "pics"), tmp_path)] == [None, None]
        rejected("mask without an image", find_test_images, tmp_path / "test")

    def test_several_masks_of_an_image(self, tmp_path):
        make(tmp_path, "test/good/0.png", "test/a/000.png", "test/a/001.png", "ground_truth/a/000/000.png")
        make(tmp_path, "ground_truth/a/000/001.png", "ground_truth/a/001_mask1.png", "ground_truth/a/001_mask2.png")
        found = [[mask.name for mask in sample.masks] for sample in find_test_images(tmp_path)]
        assert found == [["000.png", "001.png"], ["001_mask1.png", "001_mask2.png"], []]

    def test_in_doubt_the_user_decides(self, tmp_path):
        # A printed label may be what is defective: its images have the stems of good ones.
        make(tmp_path, "in/good/0.png", "in/label/0.png", "in/hole/1.png", "other/hole/1.png")
        rejected("--labels_csv", find_test_images, tmp_path / "in")
        found = table(find_test_images(tmp_path / "in", mask_dir=tmp_path / "other"), tmp_path)
        assert found == [
            ("good/0.png", 0, None, None),
            ("hole/1.png", 1, "hole", "other/hole/1.png"),
            ("label/0.png", 1, "label", None),
        ]
        (tmp_path / "l.csv").write_text("path,label\ngood/0.png,0\nhole/1.png,1\nlabel/0.png,torn\n")
        found = find_test_images(tmp_path / "in", tmp_path / "l.csv")
        assert [(sample.relative, sample.defect) for sample in found] == [
            *(("good/0.png", None), ("hole/1.png", "hole"), ("label/0.png", "torn"))
        ]
        make(tmp_path, "ordinary/good/0.png", "ordinary/torn_mask/5.png")
        assert [sample.defect for sample in find_test_images(tmp_path / "ordinary")] == [None, "torn_mask"]

    def test_mask_dir_replaces_the_masks_that_would_be_found(self, tmp_path):
        make(tmp_path, "good/0.png", "hole/1.png", "gt/hole/1.png", "masks/hole/1.png")
        rejected("two masks", find_test_images, tmp_path)
        found = find_test_images(tmp_path, mask_dir=tmp_path / "gt", notes=(notes := []))
        assert table(found, tmp_path) == [("good/0.png", 0, None, None), ("hole/1.png", 1, "hole", "gt/hole/1.png")]
        assert "1 file(s) left out: 1.png" in notes[-1]
        image = find_test_images(tmp_path / "hole/1.png", mask_dir=tmp_path / "gt/hole")
        assert table(image, tmp_path) == [("1.png", None, None, "gt/hole/1.png")]
        rejected("no folder", find_test_images, tmp_path, mask_dir=tmp_path / "none")
        (tmp_path / "l.csv").write_text("path,label\ngood/0.png,0\nhole/1.png,1\ngt/hole/1.png,1\n")
        rejected("gt/hole/1.png", find_test_images, tmp_path, tmp_path / "l.csv", tmp_path / "gt")

    def test_good_images_are_neither_masks_nor_defects(self, tmp_path, caplog):
        make(tmp_path, "good/a.png", "good/a_mask.png", "good/notes.heic")
        with caplog.at_level(logging.INFO):
            assert [sample.relative for sample in find_good_images(tmp_path)] == ["good/a.png"]
        assert "--good_dir: 2 file(s) left out: a_mask.png, notes.heic" in caplog.text
        make(tmp_path, "NG/a.png")
        rejected("a folder NG", find_good_images, tmp_path)

    def test_other_files_are_counted_and_named_once(self, tmp_path):
        make(tmp_path, *(f"a{suffix}" for suffix in (*IMAGE_SUFFIXES, ".PNG", ".Jpg")))
        make(tmp_path, "a.heic", "a.dng", "notes.txt", ".DS_Store", "._a.png")
        (tmp_path / "l.csv").write_text(
            "path,label\n" + "".join(f"a{x},0\n" for x in (*IMAGE_SUFFIXES, ".PNG", ".Jpg"))
        )
        found = find_test_images(tmp_path, tmp_path / "l.csv", notes=(notes := []))
        assert len(found) == len(IMAGE_SUFFIXES) + 2
        assert notes[2:] == ["--test_dir: 3 file(s) left out: a.dng, a.heic, notes.txt"]

    def test_loops_of_links_are_no_traceback(self, tmp_path):
        make(tmp_path, "root/a.png")
        for link, target in (("loop", "loop"), ("root/x", "y"), ("root/y", "x"), ("root/z.png", "z.png")):
            (tmp_path / link).symlink_to(tmp_path / link.replace(link.split("/")[-1], target))
        for call, *arguments in (
            (find_test_images, tmp_path / "loop"),
            (find_good_images, tmp_path / "loop"),
            (find_training_images, [str(tmp_path / "loop")], tmp_path),
        ):
            rejected("cannot be opened (Too many levels of symbolic links)", call, *arguments)
        for samples in (find_test_images(tmp_path / "root"), find_good_images(tmp_path / "root")):
            assert [sample.relative for sample in samples] == ["a.png", "z.png"]
            assert list(check_readable(samples)) == ["z.png"]

    def test_class_folder_and_test_folder(self, mvtec, monkeypatch):
        good = [(f"good/{name}.png", 0, None, None) for name in ("000", "001")]
        masks = {"scratch/000": "scratch/000_mask", "scratch/001": "scratch/001", "stain/000": "stain/000_mask"}
        bad = [(f"{name}.png", 1, name.partition("/")[0], f"{mask}.png") for name, mask in masks.items()]
        expected = [*good, *bad]
        assert table(find_test_images(mvtec / "test"), mvtec / "ground_truth") == expected
        samples = find_test_images(mvtec)
        assert table(samples, mvtec / "ground_truth") == [(f"test/{name}", *others) for name, *others in expected]
        assert all(sample.source == mvtec / sample.relative for sample in samples)
        monkeypatch.chdir(mvtec / "test")
        assert table(find_test_images(folders.Path(".")), mvtec / "ground_truth") == expected

    def test_linked_folders_are_searched_and_links_in_a_circle_end(self, tmp_path):
        make(tmp_path, "root/one/a.png", "root/two/b.png", "elsewhere/c.png")
        for link in ("one/up", "one/again", "two/up", "self"):
            (tmp_path / "root" / link).symlink_to(tmp_path / "root")
        (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
        found = [sample.relative for sample in find_test_images(tmp_path / "root")]
        assert found == ["link/c.png", "one/a.png", "two/b.png"]

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ("ground_truth/scratch/007_mask.png", "ground_truth/scratch/007_mask.png; remove it or add the image"),
            ("ground_truth/unknown/000_mask.png", "mask without an image"),
            ("ground_truth/scratch/000.png", "two masks"),
            ("ground_truth/scratch/000_mask.bmp", "two masks"),
            ("ground_truth/000.png", "the mask of both"),
            ("test/scratch/000.jpg", "the mask of both"),
            ("test/loose.png", "beside the folders"),
        ],
    )
    def test_mistakes_in_the_layout(self, mvtec, extra, message):
        make(mvtec, extra)
        rejected(message, find_test_images, mvtec)
        rejected(message, find_test_images, mvtec / "test")

    def test_missing_and_empty(self, tmp_path):
        rejected("no file or folder", find_test_images, tmp_path / "none")
        rejected("holds no image file", find_test_images, tmp_path)
        make(tmp_path, "ground_truth/bad/a.png")
        rejected("holds no image file", find_test_images, tmp_path)


class TestLabelsCsv:
    def write(self, path, *rows, header="path,label", **options):
        path.write_text("\n".join([header, *rows]) + "\n", **options)
        return path

    @pytest.mark.parametrize(
        ("label", "expected"),
        [
            *[
                (word, (0, None))
                for word in ("0", "0.0", "good", "Good", "NORMAL", "OK ", "False", "no defect", "negative")
            ],
            *[(word, (1, None)) for word in ("1", " 1 ", "1.0", "True", "yes", "Positive")],
            *[(word, (1, word)) for word in ("crack", "Crack", "3 holes", "NG")],
        ],
    )
    def test_spellings_of_labels(self, tmp_path, label, expected):
        make(tmp_path, "c/d.png")
        (sample,) = find_test_images(tmp_path, self.write(tmp_path / "labels.csv", f"c/d.png,{label}"))
        assert (sample.label, sample.defect) == expected

    def test_quotes_spaces_other_columns_and_a_byte_order_mark(self, tmp_path):
        make(tmp_path, " 3.png", "3.png", "a, b.png")
        rows = (" 3.png,x,1", "3.png,x,0", '"a, b.png",x,1')
        labels = self.write(tmp_path / "l.csv", *rows, header="path,note,label", encoding="utf-8-sig")
        found = [(sample.relative, sample.label) for sample in find_test_images(tmp_path, labels)]
        assert found == [(" 3.png", 1), ("3.png", 0), ("a, b.png", 1)]

    def test_paths_may_count_from_the_csv(self, tmp_path):
        make(tmp_path, "images/a.png", "images/b.png")
        (tmp_path / "lists").mkdir()
        labels = self.write(tmp_path / "lists" / "labels.csv", "../images/a.png,1", "b.png,0")
        assert [item.label for item in find_test_images(tmp_path / "images", labels)] == [1, 0]
        labels = self.write(tmp_path / "lists" / "labels.csv", "a.png,1")
        assert find_test_images(tmp_path / "images" / "a.png", labels)[0].label == 1

    def test_replaces_the_labels_of_the_layout_and_keeps_masks(self, mvtec):
        names = [item.relative for item in find_test_images(mvtec)]
        labels = self.write(mvtec / "labels.csv", *(f"{name},1" for name in names[:-1]), f"{names[-1]},0")
        items = find_test_images(mvtec, labels)
        assert [(item.label, item.defect) for item in items] == [
            *[(1, None), (1, None), (1, "scratch"), (1, "scratch"), (0, None)]
        ]
        assert items[2].masks

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["a.png,1"], "no row for b.png"),
            (["a.png,1", "b.png,0", "x.png,0", "y.png,1"], "no such test image: x.png, y.png;"),
            (["a.png,1", *(f"x{n}.png,0" for n in range(7))], "x0.png, x1.png, x2.png, x3.png, x4.png and 2 more"),
            (["a.png,1", "b.png,0", "./a.png,1"], "two rows for ./a.png"),
            (["a.png,1", "b.png"], "line 3 lacks"),
            (["a.png,"], "line 2 lacks"),
            *[([f"a.png,{x}"], f"a.png: label {x}; {LABELS_RULE}") for x in ("2", "-1", "0.5", "nan", "inf")],
        ],
    )
    def test_mistakes_in_rows(self, tmp_path, rows, message):
        make(tmp_path, "a.png", "b.png")
        rejected(message, find_test_images, tmp_path, self.write(tmp_path / "labels.csv", *rows))

    def test_mistakes_in_the_file(self, tmp_path):
        make(tmp_path, "a.png")
        for name in ("none.csv", "a.png"):
            rejected("cannot be read", find_test_images, tmp_path, tmp_path / name)
        for text in ("", "file,label\n"):
            (tmp_path / "l.csv").write_text(text)
            rejected("lacks path,label", find_test_images, tmp_path, tmp_path / "l.csv")


def test_check_readable_lists_every_broken_file_with_its_reason(mvtec):
    items = find_test_images(mvtec)
    assert check_readable(items) == {}
    text, link, cut, mask = items[0].source, items[1].source, items[2].source, items[4].masks[0]
    text.write_text("text")
    cut.write_bytes(cut.read_bytes()[:50])
    mask.write_bytes(b"")
    link.unlink()
    link.symlink_to(mvtec / "none.png")
    reasons = check_readable(items)
    assert list(reasons) == [items[number].relative for number in (0, 1, 2, 4)]
    for path, word in ((text, "not an image"), (link, "no such file"), (cut, "damaged"), (mask, "empty")):
        assert any(str(path) in reason and word in reason for reason in reasons.values())
