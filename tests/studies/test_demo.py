from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from hta.errors import UserError
from hta.studies import demo

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(4)


@pytest.fixture(scope="module")
def texture():
    return demo.brick_wall()


@pytest.fixture(scope="module")
def files(texture):
    return demo.build_demo(texture, seed=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "Input"
    assert demo.main(["--out", str(out)]) == 0
    return out


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_counts(written):
    names = sorted(tree(written))
    test = "Test/brick/test"
    assert [name for name in names if name.startswith("Images")] == ["Images/brick.png"]
    assert [name for name in names if name.startswith(f"{test}/good/")] == [
        f"{test}/good/{i:03d}.png" for i in range(24)
    ]
    assert sorted(path.name for path in (written / test).iterdir()) == ["displaced", "good", "scratch", "stain"]
    for kind in ("displaced", "scratch", "stain"):
        masks = sorted(path.name for path in (written / "Test/brick/ground_truth" / kind).iterdir())
        images = sorted(path.name for path in (written / test / kind).iterdir())
        assert images == [f"{i:03d}.png" for i in range(12)]
        assert masks == [f"{i:03d}_mask.png" for i in range(12)]
    assert len(names) == 1 + 24 + 2 * 36
    for name in names:
        with Image.open(written / name) as image:
            assert (image.size, image.mode) == ((128, 128), "L")


def test_same_seed_same_bytes_and_another_seed_others(written, tmp_path):
    for seed in (0, 1):
        assert demo.main(["--out", str(tmp_path / str(seed)), "--seed", str(seed)]) == 0
    assert tree(tmp_path / "0") == tree(written)
    other = tree(tmp_path / "1")
    assert other["Images/brick.png"] == tree(written)["Images/brick.png"]
    assert other["Test/brick/test/good/000.png"] != tree(written)["Test/brick/test/good/000.png"]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_test_crop_touches_the_training_crop(texture, seed):
    taken = np.zeros(texture.shape, dtype=bool)
    top, left = demo.TRAINING_CORNER
    taken[top : top + 128, left : left + 128] = True
    crops = demo.plan_crops(texture.shape, seed)
    assert len(crops) == 60
    for crop in crops:
        place = taken[crop.top : crop.top + 128, crop.left : crop.left + 128]
        assert place.shape == (128, 128)
        assert not place.any()


def test_the_wall_is_seen_straight_on(texture):
    assert (texture.shape, texture.dtype) == ((512, 434), np.uint8)

    def uprightness(image):
        """Variance over columns of their mean, among that of all pixels: 1 if every column is of one grey level."""
        return image.mean(axis=0).var() / image.var()

    # The same place of the photograph as it was taken, and as it is used.
    assert uprightness(texture[:, :400]) > 0.35 > 2 * uprightness(data.brick()[:, :400])
    halves = texture[:256], texture[256:]
    spectra = [np.abs(np.fft.rfft(half.mean(axis=0) - half.mean()))[5:30] for half in halves]
    # Bricks are as wide at one end of the wall as at the other.
    assert spectra[0].argmax() == spectra[1].argmax()


def test_training_image_and_good_crops_are_the_untouched_texture(texture, files):
    assert np.array_equal(files["Images/brick.png"], texture[208:336, 137:265])
    for crop in demo.plan_crops(texture.shape, 0):
        if crop.kind == "good":
            clean = texture[crop.top : crop.top + 128, crop.left : crop.left + 128]
            assert np.array_equal(files[crop.image_file], clean)


@pytest.mark.parametrize("kind", ["displaced", "scratch", "stain"])
@pytest.mark.parametrize("seed", SEEDS)
def test_defects_are_small_visible_in_range_and_exactly_masked(texture, kind, seed):
    files = demo.build_demo(texture, seed)
    crops = [crop for crop in demo.plan_crops(texture.shape, seed) if crop.kind == kind]
    assert len(crops) == 12
    for crop in crops:
        clean = texture[crop.top : crop.top + 128, crop.left : crop.left + 128].astype(int)
        image, mask = files[crop.image_file].astype(int), files[crop.mask_file]
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask == 255, image != clean)
        assert 0.005 < (mask == 255).mean() <= 0.02
        assert clean.min() <= image.min()
        assert image.max() <= clean.max()
        # A person sees it: it changes what it covers by more than ten grey levels, of the 145 that the wall has.
        assert np.abs(image - clean)[mask == 255].mean() > 10


def test_baseline_scores_by_hand():
    training = np.array([[0, 10], [20, 30]], dtype=np.uint8)
    brighter, flipped, darker = training + 4, training[::-1], np.zeros_like(training)
    scores = demo.baseline_scores(training, [training, brighter, flipped, darker])
    assert scores["mean_intensity"].tolist() == [0, 4, 0, 15]
    assert scores["mse"].tolist() == [0, 16, 400, 350]


def test_baseline_scores_refuse_another_shape():
    with pytest.raises(UserError, match=r"test_images.*\(2, 2\)"):
        demo.baseline_scores(np.zeros((2, 2)), [np.zeros((2, 2)), np.zeros((2, 3))])


@pytest.mark.parametrize("seed", SEEDS)
def test_trivial_baselines_do_not_find_the_defects(texture, seed):
    aurocs = demo.baseline_aurocs(demo.build_demo(texture, seed))
    assert set(aurocs) == {"mean_intensity", "mse"}
    # Both ends: far below one half would be as telling as far above.
    assert all(0.2 < auroc < 0.8 for auroc in aurocs.values()), aurocs


def test_printed_baselines_equal_pair_counting_on_the_written_files(written, tmp_path, capsys):
    def read(path):
        return np.asarray(Image.open(path), dtype=np.float64)

    def auroc(score):
        good = [score(read(path)) for path in written.glob("Test/brick/test/good/*.png")]
        bad = [score(read(path)) for path in written.glob("Test/brick/test/[!g]*/*.png")]
        return np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])

    training = read(written / "Images/brick.png")
    assert demo.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"mean_intensity: {auroc(lambda image: abs(image.mean() - training.mean())):.3f}" in printed
    assert f"mse: {auroc(lambda image: ((image - training) ** 2).mean()):.3f}" in printed


def test_committed_images_are_the_output_of_the_generator(files):
    committed = {
        "Images/brick.png",
        *(str(p.relative_to(ROOT / "Input")) for p in ROOT.glob("Input/Test/brick/**/*.png")),
    }
    assert committed == set(files)
    for name, image in files.items():
        # Pixels, not bytes: another version of the PNG library may compress differently.
        assert np.array_equal(np.asarray(Image.open(ROOT / "Input" / name)), image), name


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
    assert demo.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert named in err
    assert (tree(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_other_numbers_of_crops(tmp_path):
    assert demo.main(["--out", str(tmp_path), "--num_good", "2", "--num_per_defect", "1"]) == 0
    names = [name for name in tree(tmp_path) if "/test/" in name]
    assert sorted(Path(name).parent.name for name in names) == ["displaced", "good", "good", "scratch", "stain"]


def test_overwrite_replaces_its_own_files_and_leaves_others(written, tmp_path):
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images/brick.png").write_bytes(b"old")
    (tmp_path / "Images/mine.png").write_bytes(b"mine")
    assert demo.main(["--out", str(tmp_path), "--overwrite"]) == 0
    assert tree(tmp_path) == tree(written) | {"Images/mine.png": b"mine"}
