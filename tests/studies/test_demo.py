"""The demo images: where they are cut, what their defects are, and the command that writes them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from hta.studies import demo
from hta.studies.__main__ import main
from hta.studies.demo import DemoOptions

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(4)
KINDS = ("displaced", "scratch", "stain")


@pytest.fixture(scope="module")
def builds():
    """The images of several seeds."""
    return [demo.build_demo(DemoOptions(seed=seed)) for seed in SEEDS]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path):
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_layout_and_counts(builds):
    test = "Test/brick/test"
    expected = {"Images/brick.png"} | {f"{test}/good/{i:03d}.png" for i in range(24)}
    expected |= {f"{test}/{kind}/{i:03d}.png" for kind in KINDS for i in range(12)}
    expected |= {f"Test/brick/ground_truth/{kind}/{i:03d}_mask.png" for kind in KINDS for i in range(12)}
    for files in builds:
        assert set(files) == expected
        assert {(image.shape, image.dtype.name) for image in files.values()} == {((128, 128), "uint8")}


def test_the_committed_images_are_the_output_of_the_command(tmp_path, builds):
    written = tmp_path / "Input"
    assert main(["demo", "--out", str(written)]) == 0
    committed = [ROOT / "Input/Images/brick.png", *(ROOT / "Input/Test/brick").rglob("*.png")]
    assert {path.relative_to(ROOT / "Input").as_posix() for path in committed} == set(tree(written)) == set(builds[0])
    for name, image in builds[0].items():
        # Pixels, not bytes: another version of the PNG library may compress differently.
        assert np.array_equal(read(written / name), image), name
        assert np.array_equal(read(ROOT / "Input" / name), image), name


def test_another_seed_gives_other_test_images_of_the_same_training_image(builds):
    again = demo.build_demo(DemoOptions(seed=1))
    assert all(np.array_equal(again[name], image) for name, image in builds[1].items())
    same = {name for name, image in builds[0].items() if np.array_equal(image, again[name])}
    assert same == {"Images/brick.png"}


def test_the_wall_is_rectified():
    wall = demo.brick_wall()
    assert (wall.shape, wall.dtype) == ((512, 434), np.uint8)

    def uprightness(image):
        """Variance over columns of their mean, among that of all pixels: 1 if every column is of one grey level."""
        return image.mean(axis=0).var() / image.var()

    # The same part of the photograph as it was taken, and as it is used.
    assert uprightness(wall[:, :400]) > 0.35 > 2 * uprightness(data.brick()[:, :400])
    halves = wall[:256], wall[256:]
    spectra = [np.abs(np.fft.rfft(half.mean(axis=0) - half.mean()))[5:30] for half in halves]
    # Bricks are as wide at one end of the wall as at the other.
    assert spectra[0].argmax() == spectra[1].argmax()


@pytest.mark.parametrize("seed", SEEDS)
def test_crops_avoid_the_training_crop_and_defects_are_small_visible_in_range_and_exactly_masked(builds, seed):
    wall, files = demo.brick_wall(), builds[seed]
    assert np.array_equal(files["Images/brick.png"], wall[208:336, 137:265])
    crops = demo.plan_crops(DemoOptions(seed=seed))
    assert len(crops) == 60
    trained_on = np.zeros(wall.shape, dtype=bool)
    trained_on[208:336, 137:265] = True
    for kind, number, top, left in crops:
        place = slice(top, top + 128), slice(left, left + 128)
        assert not trained_on[place].any()
        clean = wall[place].astype(int)
        image = files[f"Test/brick/test/{kind}/{number:03d}.png"].astype(int)
        if kind == "good":
            assert np.array_equal(image, clean)
            continue
        mask = files[f"Test/brick/ground_truth/{kind}/{number:03d}_mask.png"]
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask == 255, image != clean)
        assert 0.005 < (mask == 255).mean() <= 0.02
        assert clean.min() <= image.min()
        assert image.max() <= clean.max()
        # A person sees it: it changes what it covers by more than ten grey levels, of the 145 that the wall has.
        assert np.abs(image - clean)[mask == 255].mean() > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_trivial_baselines_do_not_find_the_defects(builds, seed):
    aurocs = demo.baseline_aurocs(builds[seed])
    assert set(aurocs) == {"mean_intensity", "mse"}
    # Both ends: far below one half would be as telling as far above.
    assert all(0.2 < auroc < 0.8 for auroc in aurocs.values()), aurocs


def test_few_crops_with_their_baselines_over_other_files(tmp_path, capsys):
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images/brick.png").write_bytes(b"old")
    (tmp_path / "Images/mine.png").write_bytes(b"mine")
    argv = ["demo", "--out", str(tmp_path), "--num_good", "3", "--num_per_defect", "2", "--overwrite"]
    assert main(argv) == 0
    assert len(tree(tmp_path)) == 2 + 3 + 2 * 2 * len(KINDS)
    assert (tmp_path / "Images/mine.png").read_bytes() == b"mine"

    def auroc(score):
        good = [score(read(path).astype(float)) for path in tmp_path.glob("Test/brick/test/good/*.png")]
        bad = [score(read(path).astype(float)) for path in tmp_path.glob("Test/brick/test/[!g]*/*.png")]
        return np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])

    training = read(tmp_path / "Images/brick.png").astype(float)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/Images/brick.png: the training image",
        f"{tmp_path}/Test/brick: 3 good, 2 displaced, 2 scratch, 2 stain",
        "image AUROC of the trivial baseline mean_intensity: "
        f"{auroc(lambda image: abs(image.mean() - training.mean())):.3f}",
        f"image AUROC of the trivial baseline mse: {auroc(lambda image: ((image - training) ** 2).mean()):.3f}",
    ]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--out", "full"], "--overwrite"),
        (["--out", "file"], "--out file"),
        (["--out", "file/below"], "--out file/below"),
        (["--out", "blocked"], "blocked/Test"),
        (["--out", "new", "--seed", "-1"], "--seed -1"),
        (["--out", "new", "--seed", "x"], "--seed"),
        (["--out", "new", "--num_good", "0"], "--num_good 0"),
        (["--out", "new", "--num_per_defect", "1000"], "--num_per_defect 1000"),
        (["--out", "new", "--sed", "1"], "--sed"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full/Images").mkdir(parents=True)
    (tmp_path / "full/Images/brick.png").write_bytes(b"mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/Test").write_text("mine")
    before = tree(tmp_path), sorted(tmp_path.rglob("*"))
    assert main(["demo", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named in err
    assert (tree(tmp_path), sorted(tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(("argv", "named"), [([], "NAME"), (["nothing"], "NAME: invalid choice: 'nothing'")])
def test_an_unknown_study_is_one_line(argv, named, capsys):
    assert main(argv) == 2
    assert named in capsys.readouterr().err
