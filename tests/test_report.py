"""The report as a page, from made-up results; and what the three approaches differ in."""

import base64
import io
import itertools
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from guided_diffusion_jax import report
from guided_diffusion_jax.commands import approaches
from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment.config import flatten, preset
from guided_diffusion_jax.report import notes, sections
from guided_diffusion_jax.report.figures import LOOKS, STYLE, Line, image_row, place_labels
from guided_diffusion_jax.report.results import nearest_weight

VOID = {"meta", "img", "br", "hr", "link", "input"}
NAME = "own classifier of digits, 98.7% right on its test split"


class Reader(HTMLParser):
    """All elements with their attributes and the text in them; fails where one is not closed in its place."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data.strip())

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def rows():
    """What a sweep of all approaches could have given: recall falls and accuracy rises with w."""
    made = []
    for seed in range(3):
        for approach, weights in {
            "class-conditional": (0.0,),
            "cfg": (0.0, 1.0, 4.0),
            "classifier": (0.0, 2.0),
        }.items():
            for w in weights:
                made.append(
                    {
                        "approach": approach, "method": "classifier" if approach == "classifier" else "cfg",
                        "weight": w,
                        "steps": 20, "seed": seed, "features": NAME, "count": 500, "reference_count": 1500,
                        "fd": 10.0 + seed + w, "sfid": None, "kid": 0.01, "kid_std": 0.001, "precision": 0.6 + w / 20,
                        "recall": 0.8 - w / 10, "density": 0.9, "coverage": 0.8, "accuracy": 0.9 + w / 50,
                        "accuracy_by_class": [], "warnings": ["FD of 40 pictures is biased"], "seconds": 0.0123,
                        "evaluations": 40, "classifier_evaluations": 0, "peak_bytes": 12_345_678,
                        "parameters": 191_073, "train_seconds": 30.0, "classifier_train_seconds": 0.0,
                    }
                )  # fmt: skip
    return made


def made_up():
    """Results as `commands.report.collect` gives them."""
    random = np.random.default_rng(0)
    points = report.points(rows())
    labels = np.repeat(np.arange(10), 10)

    def images(*shape):
        return random.integers(0, 256, (*shape, 8, 8, 1), dtype=np.uint8)

    guided = [p for p in points if p.approach != "class-conditional"]
    samples = [report.Samples(p.approach, p.weight, images(100), labels) for p in guided]
    distances = np.sort(random.uniform(1, 2, (100, 3)))
    return report.Results(
        run="runs/<digits> & co",
        dataset="digits, 8×8 pixels",
        class_names=tuple(str(i) for i in range(10)),
        settings=dict(flatten(preset("digits_report"))),
        sampler="ddim, 20 steps",
        training_setup="600 steps of 128 images",
        checkpoint_step=600,
        features=NAME,
        weights=guided,
        steps=[p._replace(approach="cfg", steps=n) for n, p in zip((5, 20, 50), points, strict=False)],
        approaches=[
            p for p in points if (p.approach, p.weight) in {("class-conditional", 0), ("cfg", 1), ("classifier", 2)}
        ],
        samples=samples,
        trajectory=report.Trajectory(images(10, 10), np.arange(10)),
        neighbors=report.Neighbors(samples[1], images(100, 3), distances, random.uniform(1, 2, 50)),
        training=[{"step": s, "loss": 1 / s, **{f"loss_q{i}": i / s for i in range(1, 5)}} for s in (50, 100, 150)],
        classifier={"time": [0.0, 500.0, 999.0], "accuracy": [0.95, 0.6, 0.1]},
        warnings=["FD of 40 pictures is biased"],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("report"))
    assert report.write(report.build(made_up()), folder) == [folder / "report.html", folder / "report.md"]
    return folder


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text()


def test_the_page_is_well_formed_and_readable_on_a_phone(html):
    read = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and read.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.of("meta")


def test_the_page_needs_nothing_but_itself(html):
    read = Reader(html)
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert not read.of("script") and not read.of("link") and not read.of("iframe")
    kinds = ("data:image/png;base64,", "data:image/svg+xml;base64,")
    assert all(attrs["src"].startswith(kinds) for attrs in read.of("img"))
    assert len(html) < 5_000_000


def test_every_image_has_a_description_and_every_chart_is_svg(html):
    shown = Reader(html).of("img")
    assert len(shown) >= 30 and all(len(attrs["alt"]) > 20 for attrs in shown)
    charts = [attrs["src"].partition(",") for attrs in shown if "svg" in attrs["src"][:20]]
    roots = [xml.etree.ElementTree.fromstring(base64.b64decode(data)) for _, _, data in charts]
    assert len(roots) == 9 and all(root.tag.endswith("svg") for root in roots)


def test_the_same_results_give_the_same_charts(html):
    again = report.html(report.build(made_up()))
    assert [a["src"] for a in Reader(again).of("img")] == [a["src"] for a in Reader(html).of("img")]


def test_the_tables_hold_the_metrics_with_their_spread(html):
    text = Reader(html).text
    # FD of 10, 11, 12 and w over three trainings: their mean, and 1 as standard deviation.
    assert {"11 ± 1", "12 ± 1", "13 ± 1", "12.3", "0.191", "92.0 %"} <= set(text)
    assert "runs/<digits> & co" in text  # escaped


def test_the_features_of_every_metric_are_named(html):
    assert html.count(NAME) >= 8


def test_the_markdown_holds_the_tables(written):
    lines = (written / "report.md").read_text().splitlines()
    assert sum(line.startswith("| CFG | 1 | 12 ± 1 |") for line in lines) == 2
    assert [line for line in lines if line.startswith("## ")] == [
        "## The three approaches", "## All points", "## Provenance", "## Settings",
    ]  # fmt: skip
    bars = [line.replace("\\|", "").count("|") for line in lines]
    assert all(here == 0 or above in (0, here) for above, here in itertools.pairwise(bars))


def test_a_run_that_was_neither_swept_nor_compared_has_a_page():
    found = made_up()
    alone = found.samples[0]._replace(approach="none", labels=np.zeros(100, int))
    little = found._replace(
        class_names=(), weights=[], steps=[], approaches=[], samples=[alone], classifier={}, warnings=[],
        trajectory=found.trajectory._replace(labels=np.zeros(10, int)),
        neighbors=found.neighbors._replace(samples=alone),
    )  # fmt: skip
    titles = [section.title for section in report.build(little).sections]
    assert "Effect of the guidance weight" not in titles and "Memorisation" in titles
    Reader(report.html(report.build(little)))


def test_metrics_that_were_not_measured_are_left_out():
    found = made_up()
    points = [p._replace(mean={"fd": 1.0}, std={"fd": 0.0}) for p in found.weights]
    titles = [f.title for s in report.build(found._replace(weights=points)).sections for f in s.figures]
    assert "Fréchet distance (FD) over w" in titles and "Quality against diversity" not in titles


def one_training(**changes):
    """Results of a single training, whose bars are errors over its images."""
    found = made_up()
    swept = [
        {**row, "compared_count": 400, "fd_error": 0.7, "weight": w, **changes}
        for row in rows()[1:2]
        for w in (0.0, 0.5, 1.0, 4.0)
    ]
    return found._replace(weights=report.points(swept), approaches=[])


def test_figures_say_how_many_images_and_neighbours_and_what_the_bars_are():
    section = sections.weights(one_training())
    captions = {figure.title: figure.caption for figure in section.figures}
    for title in ("Fréchet distance (FD) over w", "class accuracy over w"):
        assert "n = 500 images a point against 1,500." in captions[title]
    for title in ("Quality against diversity", "precision (quality) over w", "recall (diversity) over w"):
        assert "n = 400 generated and as many real images a point; k = 3." in captions[title]
    assert all("standard errors over the images" in caption for caption in captions.values())
    assert "k = 3 (precision, recall), k = 5 (density, coverage)" in section.tables[0].caption
    assert "10 ± 0.7" in section.tables[0].rows[0]
    memorisation = sections.neighbors(one_training())
    assert "n = 100 generated, 50 held-out images" in memorisation.figures[0].caption
    assert "k = 3 nearest" in memorisation.figures[1].caption and "standard error" in memorisation.text
    assert "standard deviations over 3 trainings" in notes.bars(made_up().weights)


def test_errors_over_the_images_are_those_of_shares():
    point = report.points([{**rows()[1], "compared_count": 400, "precision": 0.6, "accuracy": 0.9, "fd_error": 0.7}])[0]
    assert point.std["fd"] == 0.7 and point.std["kid"] == 0
    assert point.std["precision"] == pytest.approx((0.6 * 0.4 / 400) ** 0.5)
    assert point.std["accuracy"] == pytest.approx((0.9 * 0.1 / 500) ** 0.5)


@pytest.mark.parametrize(
    ("changes", "words", "there"),
    [
        ({"kid": -0.001}, "A negative KID is no error", True),
        ({"kid": 0.001}, "negative KID", False),
        ({"evaluations": 40}, "evaluates both branches at w = 0", True),
        ({"method": "classifier", "approach": "classifier"}, "both branches at w = 0", False),
    ],
)
def test_what_a_reader_may_wonder_at_is_explained(changes, words, there):
    assert (words in notes.explained(one_training(**changes).weights)) == there


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01, 0.0])
def test_labels_of_weights_never_overlap(spread):
    """Two curves of nine weights each, down to all points in one place."""
    weights = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 8, 16])
    lines = [
        Line(
            name, spread * np.exp(-weights), 1 - spread * np.exp(-weights) * slope, look, labels=list(map(str, weights))
        )
        for (name, look), slope in zip(LOOKS.items(), (0.5, 0.51), strict=False)
    ]
    axes = Figure(figsize=(4.5, 3.5), dpi=72, layout="constrained").add_subplot()
    for line in lines:
        axes.plot(line.x, line.y)
    boxes = place_labels(axes, lines)
    assert len(boxes) == 18
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(("pixels", "factor"), [(8, 5), (16, 3), (28, 2), (32, 2)])
def test_rows_of_small_images_are_not_smoothed(pixels, factor):
    images = np.random.default_rng(0).integers(0, 256, (2, pixels, pixels, 3), np.uint8)
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(image_row(images).partition(",")[2]))))
    np.testing.assert_array_equal(png[:, : pixels * factor, :3], images[0].repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize("width", [330, 480])
def test_letters_of_charts_are_readable_on_a_phone_and_a_desktop(width, html):
    """A figure is about 330 pixels wide in a window of 390, and 480 in one of 1280."""
    chart = next(attrs["src"] for attrs in Reader(html).of("img") if "svg" in attrs["src"][:20])
    root = xml.etree.ElementTree.fromstring(base64.b64decode(chart.partition(",")[2]))
    points = float(root.attrib["viewBox"].split()[2])
    assert 10 <= STYLE["font.size"] * width / points <= 18


def test_the_nearest_weight_is_shown():
    assert nearest_weight([p for p in report.points(rows()) if p.approach == "cfg"], 3.0).weight == 4.0


def test_approaches_differ_in_what_they_must_alone():
    config = preset("digits_report")
    every = [approaches.config_of(config, name, seed) for name in approaches.NAMES for seed in approaches.seeds(config)]
    flat = [dict(flatten(one)) for one in every]
    differing = {key for key in flat[0] if len({str(one[key]) for one in flat}) > 1}
    assert differing == {
        "seed", "train.cfg_dropout", "sample.guidance.weight", "sample.guidance.classifier_weight",
        "evaluate.sweep.weight", "evaluate.sweep.classifier_weight",
    }  # fmt: skip
    assert {one["train.cfg_dropout"] for one in flat} == {0.0, 0.1, 1.0}
    assert sorted({one["seed"] for one in flat}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.cfg_dropout", 0.0, "cfg_dropout=0.0"),
        ("model.use_labels", False, "the model has 0"),
        ("evaluate.sweep.weight", (), "evaluate.sweep.weight is empty"),
    ],
)
def test_what_cannot_be_compared_is_refused(key, value, words):
    config = preset("digits_report")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=words):
        approaches.check(config, from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)))


def test_seconds_of_training_leave_compiling_out():
    lines = [{"step": step, "images_per_second": rate} for step, rate in ((10, 1.0), (20, 64.0), (30, 64.0))]
    assert approaches.training_seconds(lines, batch_size=32) == pytest.approx(15.0)
