"""train.html: complete, right, small, of one piece, and the same every time."""

import base64
import io
import json
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import hta
from hta.errors import RunError, UserError
from hta.images import to_uint8
from hta.models.pyramid import Pyramid, fresh_noise
from hta.models.scales import image_pyramid
from hta.models.storage import RunFolder
from hta.runtime import seeded_generator
from hta.training.progress import Costs, Journal, read_losses
from hta.training.report import PageNotes, _thinned, picture_for_page, verdict, write_train_page
from hta.training.scale import IterationLosses
from tests.browser import assert_quiet_and_from_disk, boxes, open_page

SCALES, NUM_IMAGES, ITERATIONS, CHANCE = 3, 2, 3, 0.25
SHARES = np.array([[0.9, 0.5, 0.30], [0.8, 0.6, 0.32]])
HOSTILE = '<script>alert("1")</script>&amp;\udcff.png'
VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """A parsed page: its elements in order, its visible text, and its sections by heading; all elements are closed."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.addresses, self.open = [], [], [], []
        self.sections = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self.addresses += [attrs[name] for name in ("src", "href", "xlink:href", "srcset", "action") if name in attrs]
        if tag == "section":
            self.sections[attrs["aria-labelledby"]] = dict(images=[], text=[])
        if tag == "img":
            self.section()["images"].append(attrs)
        if tag not in VOID:
            self.open.append((tag, attrs.get("aria-labelledby")))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.section():
            self.section()["text"].append(data)

    def section(self):
        names = [name for tag, name in self.open if tag == "section"]
        return self.sections[names[-1]] if names else None

    def texts(self, section):
        return " ".join(" ".join(self.sections[section]["text"]).split()).replace(chr(0xD7), "x")  # the sign of sizes

    def pictures(self, section):
        """The pictures of a section by their alternative text, `(h, w, 3)` uint8."""
        return {image["alt"]: decode(image["src"]) for image in self.sections[section]["images"]}


def decode(address):
    kind, data = address.split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def train(folder, **settings):
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (19, 22, 3), dtype=np.uint8) for _ in range(NUM_IMAGES)]
    quick = dict(niter=ITERATIONS, Gsteps=1, Dsteps=1, min_size=15, max_size=22, nfc=4, lr_g=5e-3)
    quick |= dict(threads=1, precision="float32")
    return hta.train(images, hta.default_config(**quick | settings), folder=folder, num_samples=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained model with its run folder; only to be read."""
    return train(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def write(model, tmp_path):
    """Writes the model's page, with parts replaced, into a folder with the run's losses."""

    def write_page(name="run", **parts):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if not (folder / "metrics.csv").exists():
            (folder / "metrics.csv").write_bytes((model.folder.path / "metrics.csv").read_bytes())
        given = dict(
            record=model.record, pyramid=model.pyramid, images=model.training_images, vote_shares=SHARES, seed=7
        )
        return write_train_page(folder, **given | parts)

    return write_page


def test_it_is_one_file_that_fetches_nothing(write):
    path = write()
    assert path.name == "train.html"
    assert {file.name for file in path.parent.iterdir()} == {"train.html", "curves.png", "metrics.csv"}
    page = Page(path)
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    (policy,) = (attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    styles = path.read_text(encoding="utf-8")
    assert "@import" not in styles
    assert {part[:1] for part in styles.split("url(")[1:]} <= {"#"}  # clip paths of the curves


def test_what_cannot_be_seen_is_named_and_headings_and_labels_fit(write):
    page = Page(write())
    identities = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identities) == len(set(identities))
    labels = [attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs]
    assert set(labels) <= set(identities)
    assert all(attrs["alt"] for tag, attrs in page.elements if tag == "img")
    assert [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")] == ["h1", *["h2"] * 5, *["h3"] * SCALES]
    # What scrolls can be reached with the keyboard.
    scrolling = [attrs for tag, attrs in page.elements if tag == "pre" or "curves" in attrs.get("class", "").split()]
    assert [attrs.get("tabindex") for attrs in scrolling] == ["0"] * 2


def test_every_scale_has_its_curves_its_figures_and_its_pictures(write, model):
    page = Page(write())
    curves = page.texts("losses")
    assert all(curves.count(f"{name}, ") == 2 for name in ("discriminator", "generator"))
    whole = " ".join(page.text)
    assert not [name for name in ("d_real", "d_fake", "g_adversarial", "g_reconstruction", "RMSE") if name in whole]
    assert len(page.sections["images"]["images"]) == NUM_IMAGES
    assert len(page.sections["losses"]["images"]) == 0
    for n, (height, width) in enumerate(model.pyramid.plan.sizes):
        assert f"scale {n}: {width} x {height} px" in curves
        text = page.texts(f"scale-{n}")
        assert text.startswith(f"Scale {n}: {width} x {height} px")
        assert f"{['85', '55', '31'][n]} % (chance 25 %)" in text
        assert ("near chance" in text) == (n == 2)  # 0.31 lies below 1.5 times chance, 0.55 above
        low, high = sorted(f"{value:.3g}" for value in model.pyramid.scales[n].noise_amp.tolist())
        assert ("strength of the noise 1 " if n == 0 else f"strength of the noise {low} to {high} ") in text
        names = ["training image 1", "reconstruction 1", "training image 2", "reconstruction 2"]
        names += [f"sample {i}" for i in range(1, 5)]
        assert list(page.pictures(f"scale-{n}")) == [f"{name}, scale {n}" for name in names]


def test_pictures_are_the_models_pixel_by_pixel(write, model):
    page, pyramid = Page(write()), model.pyramid
    sizes = pyramid.plan.sizes
    levels = image_pyramid(model.training_images, sizes)
    # Sample i varies training image i modulo 2: here by hand, one at a time, from the coarsest scale on.
    current = [None] * 4
    for n, size in enumerate(sizes):
        pictures = page.pictures(f"scale-{n}")
        rebuilt = pyramid.reconstruct(n + 1)
        for i in range(NUM_IMAGES):
            assert np.array_equal(pictures[f"training image {i + 1}, scale {n}"], to_uint8(levels[n][i]))
            assert np.array_equal(pictures[f"reconstruction {i + 1}, scale {n}"], to_uint8(rebuilt[i]))
        error = (rebuilt.clamp(-1, 1) - levels[n]).square().mean().sqrt()
        assert f"{50 * error:.1f}".removesuffix(".0") + " % of the brightness range" in page.texts(f"scale-{n}")
        for i in range(4):
            image = torch.tensor([i % NUM_IMAGES])
            noise = fresh_noise(n, 1, size, seeded_generator(7, "sample", i, n))
            amplitude = pyramid.scales[n].noise_amp[image].view(1, 1, 1, 1)
            with torch.no_grad():
                below = pyramid.upsample(current[i], size, 1)
                current[i] = pyramid.scales[n].generator(amplitude * noise, below, image)
            difference = pictures[f"sample {i + 1}, scale {n}"].astype(int) - to_uint8(current[i])[0]
            assert np.abs(difference).max() <= 1  # alone or in a batch: a tie may be rounded to the other side
    assert np.array_equal(page.pictures("images")["training image 2"], to_uint8(model.training_images)[1])


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_all_of_it_from_disk_without_an_error(write, model, chromium, width):
    record = replace(model.record, sources=("wall_" * 40 + ".png", HOSTILE))
    path = write(record=record, notes=PageNotes(next_command="python main_eval.py --input_name " + "wall_" * 40))
    open_page(chromium, path, width)
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    WebDriverWait(chromium, 5).until(lambda driver: driver.execute_script(loaded))
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    assert max(right for _, right, _, _ in boxes(chromium, "body *:not(.curves *)")) <= width
    chromium.find_element("css selector", "summary").send_keys(Keys.ENTER)
    assert chromium.find_element("css selector", "pre").is_displayed()
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    assert_quiet_and_from_disk(chromium, path)


@pytest.mark.parametrize(
    ("count", "size", "shown"),
    [
        (1, (90, 400), (90, 400)),
        (1, (500, 2000), (256, 1024)),
        (4, (90, 400), (90, 400)),
        (4, (1024, 256), (512, 128)),
        (5, (90, 400), (43, 192)),
        (30, (20, 30), (20, 30)),
    ],
)
def test_training_images_are_shown_at_their_own_size_unless_that_is_large(count, size, shown):
    assert picture_for_page(np.zeros((*size, 3), np.float32), count).shape == (*shown, 3)


def test_the_page_shows_the_image_that_was_given_and_how_to_go_on(tmp_path):
    given = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    config = hta.default_config(niter=1, min_size=15, max_size=18, nfc=4, threads=1)
    model = hta.train(given, config, folder=tmp_path / "own", num_samples=0)
    page = Page(tmp_path / "own" / "train.html")
    (image,) = page.sections["images"]["images"]
    assert (image["width"], image["height"]) == ("50", "60")
    assert np.array_equal(decode(image["src"]), given)  # a PNG up to 64 px
    assert f"hta.load('{tmp_path / 'own'}').score(" in page.texts("verdict")
    assert "trained in 0 s" in " ".join(page.text) or "trained in 1 s" in " ".join(page.text)
    assert model.training_images.shape[2:] == (18, 15)


@pytest.mark.parametrize(
    ("seconds", "is_resumed", "words"),
    [
        (None, False, "px"),
        (75, False, "px; trained in 1 min 15 s"),
        (75, True, "px; trained in 1 min 15 s since the training was resumed"),
    ],
)
def test_duration_and_next_command_are_said(write, seconds, is_resumed, words):
    command = "python main_eval.py --input_name 'a <b>' --test_dir YOUR_TEST_FOLDER"
    page = Page(write(notes=PageNotes((), seconds, is_resumed, command)))
    assert (
        next(text for text in page.text if text.startswith("2 training images")).replace(chr(0xA0), " ").endswith(words)
    )
    assert command in page.texts("verdict")


@pytest.mark.parametrize(
    ("shares", "word", "said"),
    [
        (
            [1.0, 0.7, 0.63],
            "learnt",
            "at every scale its patches are recognised in 63 % to 100 % of cases (by chance in 25 %)",
        ),
        ([1.0, 0.62, 0.3], "hardly learnt", "Too little was learnt at scale 1, 2: "),
        ([0.5, 0.5, 0.5], "hardly learnt", "recognised in 50 % of cases"),
        ([0.9, 0.25], "hardly learnt", "larger --niter"),
        ([0.25, 0.37], "not learnt", "learnt nothing"),
    ],
)
def test_the_vote_shares_give_a_verdict(shares, word, said):
    found = verdict(np.array(shares), 0.25)
    assert found[0] == word
    assert said in found[1]


def test_the_verdict_stands_first(write):
    page = Page(write())
    assert page.texts("verdict").startswith(
        "hardly learnt Too little was learnt at scale 1, 2: its patches are recognised in 31 % to"
    )
    assert list(page.sections) == [
        "verdict",
        "images",
        "settings",
        "losses",
        "scales",
        *(f"scale-{n}" for n in range(3)),
    ]


def test_votes_that_are_not_finite_are_not_drawn(write):
    with pytest.raises(RunError, match="votes are not finite"):
        write(vote_shares=SHARES * np.nan)


def test_settings_in_short_and_in_full(write, model):
    page = Page(write())
    text = page.texts("settings")
    said = (
        "task find small defects",
        "transformations 4",
        "iterations per scale 3",
        "22 x 19 px, colour",
        "numbers computed as float32",
    )
    assert all(words in text for words in said)
    full = text[text.index("{") :]
    record = asdict(model.record.config)
    assert json.loads(full) == {"model": record["model"], "training": record["training"]}


def test_same_seed_same_bytes_and_no_draw_from_the_global_stream(write):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    path = write()
    files = [path, path.with_name("curves.png")]
    first, one = [file.read_bytes() for file in files], Page(path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    write()
    assert [file.read_bytes() for file in files] == first
    other = Page(write(seed=8))
    for n in range(SCALES):
        before, after = one.pictures(f"scale-{n}"), other.pictures(f"scale-{n}")
        unlike = [name for name in before if not np.array_equal(before[name], after[name])]
        assert unlike == [f"sample {i}, scale {n}" for i in range(1, 5)]


def test_names_are_text_and_never_markup(write, model):
    record = replace(model.record, sources=(HOSTILE, "'\"><img src=x>\u202egnp.exe\a"), hta_version="<i>0</i>")
    path = write(name='a"<b>&', record=record)
    page = Page(path)
    assert not {tag for tag, _ in page.elements} & {"script", "b"}
    assert sum(tag == "i" for tag, _ in page.elements) == SCALES  # the marks of the bars
    assert len([tag for tag, _ in page.elements if tag == "img"]) == NUM_IMAGES + SCALES * (2 * NUM_IMAGES + 4)
    assert '<script>alert("1")</script>&amp;\\xff.png' in page.texts("images")
    assert "'\"><img src=x>\\u202egnp.exe\\x07" in page.texts("images")
    assert {'a"<b>&', 'a"<b>&: training'} <= set(page.text)


def test_a_run_that_was_stopped_gives_the_same_page(write, model, tmp_path):
    folder = tmp_path / "stopped"
    folder.mkdir()
    plan, config = model.pyramid.plan, model.record.config.model
    rows = read_losses(model.folder.path / "metrics.csv")
    assert [row[:2] for row in rows] == [(n, i) for n in range(SCALES) for i in range(ITERATIONS)]
    for first, last in ((0, 4), (4, len(rows))):
        journal = Journal(Costs(plan, config), ITERATIONS, folder)
        journal.resume(*rows[first][:2])
        for row in rows[first:last]:
            journal.begin_scale(row[0], row[1])
            journal.record(row[0], row[1], IterationLosses(*row[2:]))
            journal.end_scale()
        journal.save()
    whole = write(name="whole").read_text()
    assert write(name="stopped").read_text().replace("stopped", "whole") == whole


def untrained(model, num_images, image_size, niter, **changes):
    """What the page of a large training takes, without the training: a record, a pyramid and images of noise."""
    config = replace(model.record.config.model, nfc=1, **changes)
    training = replace(model.record.config.training, niter=niter)
    settings = replace(model.record.config, model=config, training=training)
    sources = tuple(f"{i}.png" for i in range(num_images))
    record = replace(model.record, config=settings, sources=sources, image_size=image_size)
    pyramid = Pyramid(config, image_size, num_images, model.runtime.device, torch.float32)
    for n in range(pyramid.plan.num_scales):
        pyramid.scales.append(pyramid.new_scale(n, torch.Generator().manual_seed(n)))
        pyramid.scales[n].freeze()
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(num_images, 3, *pyramid.plan.working_size, generator=noise) * 2 - 1
    shares = np.full((num_images, pyramid.plan.num_scales), 0.5)
    return dict(record=record, pyramid=pyramid, images=images, vote_shares=shares)


def test_long_runs_of_large_images_stay_below_three_megabytes(write, model):
    iterations = 1200
    large = untrained(model, 4, (225, 300), iterations, min_size=25, max_size=300, scale_factor=0.7)
    sizes = large["pyramid"].plan.sizes
    assert len(sizes) > 6
    folder = write(name="long").parent
    losses = np.random.default_rng(0).uniform(0.1, 2, (len(sizes), iterations, 4))
    lines = [f"{n},{i}," + ",".join(f"{x:.6g}" for x in losses[n, i]) for n, i in np.ndindex(*losses.shape[:2])]
    (folder / "metrics.csv").write_text("\n".join(["scale,iteration,a,b,c,d", *lines]) + "\n")
    path = write(name="long", **large)
    assert path.stat().st_size < 3_000_000
    page = Page(path)
    assert "Each point is the mean of 4 iterations on average." in page.texts("losses")  # 1,200 / 300
    for n, (height, width) in enumerate(sizes):
        pictures = page.pictures(f"scale-{n}")
        assert len(pictures) == 2 * 4 + 4
        for picture in pictures.values():
            assert max(picture.shape) <= 192
            assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.03)


def test_one_training_image_needs_no_number_and_of_many_the_first_are_shown(write, model):
    page = Page(write(**untrained(model, 1, (19, 22), 3, max_size=18)))
    names = ["training image", "reconstruction", *(f"sample {i}" for i in range(1, 5))]
    assert list(page.pictures("scale-0")) == [f"{name}, scale 0" for name in names]
    assert page.texts("images") == "Trained on 0.png"
    page = Page(write(**untrained(model, 26, (19, 22), 3, max_size=18)))
    assert len(page.sections["images"]["images"]) == 24
    assert "and 2 more" in page.texts("images")
    assert len(page.pictures("scale-0")) == 2 * 4 + 4


def test_curves_are_means_of_stretches_that_end_with_a_gap():
    rows = [(1, i, float(i), 0.0, 0.0, 2.0) for i in range(900)]
    thinned = _thinned(rows)
    assert thinned.shape == (301, 6)
    np.testing.assert_array_equal(thinned[:2], [[1, 1, 1, 0, 0, 2], [1, 4, 4, 0, 0, 2]])
    assert np.isnan(thinned[-1]).all()
    assert _thinned(rows[:2]).shape == (3, 6)
    assert _thinned([]).shape == (1, 6)


@pytest.mark.parametrize("text", ["scale,iteration\n0,0,1,1,1,x\n", "scale,iteration\n0,0,1\n", "\n\n"])
def test_damaged_losses_are_named(write, text):
    folder = write(name="damaged").parent
    page = (folder / "train.html").read_bytes()
    (folder / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be read"):
        write(name="damaged")
    assert (folder / "train.html").read_bytes() == page


def test_missing_losses_leave_the_curves_empty(model, tmp_path):
    path = write_train_page(tmp_path, model.record, model.pyramid, model.training_images, SHARES, 0)
    assert set(tmp_path.iterdir()) == {path, tmp_path / "curves.png"}
    assert [len(Page(path).pictures(f"scale-{n}")) for n in range(3)] == [2 * NUM_IMAGES + 4] * 3


def test_a_trained_folder_holds_the_page_and_a_new_training_replaces_it(tmp_path):
    folder = tmp_path / "kept"
    own = train(folder, niter=1)
    assert RunFolder(folder).finished
    names = ["curves.png", "train.html"]
    first = [(folder / name).read_bytes() for name in names]
    sections = Page(folder / "train.html").sections
    write_train_page(folder, own.record, own.pyramid, own.training_images, own.scorer.shares(own.training_images)[0], 0)
    assert (folder / "curves.png").read_bytes() == first[0]
    again = Page(folder / "train.html").sections
    assert [again[name] for name in ("settings", "scale-2")] == [sections[name] for name in ("settings", "scale-2")]
    hta.train([np.eye(19, 22, dtype=np.uint8) * 255], own.record.config, folder=folder, overwrite=True)
    assert all((folder / name).read_bytes() != content for name, content in zip(names, first, strict=True))
