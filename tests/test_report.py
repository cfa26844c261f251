"""The report as a page, from made-up results; and what the three approaches differ in."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from guided_diffusion_jax.commands.config import flatten

from configs.digits_report import get_config
from guided_diffusion_jax.commands import report
from guided_diffusion_jax.commands.report import approaches, charts, page, results
from guided_diffusion_jax.errors import InputError

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
                        "approach": approach, "kind": "classifier" if approach == "classifier" else "cfg", "weight": w,
                        "steps": "20", "seed": seed, "features": NAME, "count": 500, "reference_count": 1500,
                        "fd": 10.0 + seed + w, "sfid": None, "kid": 0.01, "kid_std": 0.001, "precision": 0.6 + w / 20,
                        "recall": 0.8 - w / 10, "density": 0.9, "coverage": 0.8, "accuracy": 0.9 + w / 50,
                        "accuracy_by_class": [], "warnings": ["FD of 40 pictures is biased"], "seconds": 0.0123,
                        "evaluations": 40, "classifier_evaluations": 0, "peak_bytes": 12_345_678,
                        "parameters": 191_073, "train_seconds": 30.0, "classifier_train_seconds": 0.0,
                    }
                )  # fmt: skip
    return made


def made_up():
    """Results as `results.collect` gives them."""
    random = np.random.default_rng(0)
    config = get_config()
    config.data.update(channels=1, class_names=tuple(str(i) for i in range(10)))
    points = results.points(rows())
    labels = np.repeat(np.arange(10), 10)

    def images(*shape):
        return random.integers(0, 256, (*shape, 8, 8, 1), dtype=np.uint8)

    drawn = [
        results.Drawn(p.approach, p.weight, images(100), labels) for p in points if p.approach != "class-conditional"
    ]
    distances = np.sort(random.uniform(1, 2, (100, 3)))
    return results.Results(
        run=epath.Path("runs/<digits> & co"),
        config=config,
        checkpoint_step=600,
        features=NAME,
        weights=[p for p in points if p.approach != "class-conditional"],
        steps=[p._replace(approach="cfg", steps=n) for n, p in zip(("5", "20", "50"), points, strict=False)],
        compared=[
            p for p in points if (p.approach, p.weight) in {("class-conditional", 0), ("cfg", 1), ("classifier", 2)}
        ],
        drawn=drawn,
        film=results.Film(images(10, 10), np.arange(10)),
        neighbours=results.Neighbours(drawn[1], images(100, 3), distances, random.uniform(1, 2, 50)),
        training=[{"step": s, "loss": 1 / s, **{f"loss_q{i}": i / s for i in range(1, 5)}} for s in (50, 100, 150)],
        classifier={"time": [0.0, 500.0, 999.0], "accuracy": [0.95, 0.6, 0.1]},
        warnings=["FD of 40 pictures is biased"],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("report"))
    page.write(report.made(made_up()), folder)
    return folder


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text()


def test_the_page_is_well_formed_and_readable_on_a_phone(html):
    read = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and read.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.of("meta")
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {attrs["xlink:href"] for attrs in read.of("use")} | set(re.findall(r"url\((#[^)]*)\)", html))
    assert used <= {f"#{name}" for name in ids}


def test_the_page_needs_nothing_but_itself(html):
    read = Reader(html)
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert not read.of("script") and not read.of("link") and not read.of("iframe")
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in read.of("img"))
    assert len(html) < 5_000_000


def test_every_picture_says_what_it_shows(html):
    read = Reader(html)
    assert len(read.of("img")) >= 30 and all(len(attrs["alt"]) > 20 for attrs in read.of("img"))
    drawings = read.of("svg")
    assert len(drawings) >= 9 and all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawings)


def test_charts_take_the_page_s_colours(html):
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert not [colour for drawing in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", drawing)]
    for name in charts.COLOURS:
        assert html.count(f"--{name}: #") == 2  # light and dark
    assert f"--first: {charts.COLOURS['first']}" in html


def test_the_tables_hold_the_figures_with_their_spread(html):
    text = Reader(html).text
    # FD of 10, 11, 12 and w over three trainings: their mean, and 1 as standard deviation.
    assert {"11 ± 1", "12 ± 1", "13 ± 1", "12.3", "0.191", "92.0 %"} <= set(text)
    assert "runs/<digits> & co" in text  # escaped


def test_every_figure_s_features_are_named(html):
    assert html.count(NAME) >= 8


def test_the_twin_shows_what_is_there(written):
    text = (written / "report.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(shown) >= 12 and all((written / path).exists() for path in shown)
    assert "| CFG | 1 | 12 ± 1 |" in text
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_a_run_that_was_neither_swept_nor_compared_has_a_page(tmp_path):
    found = made_up()
    alone = found.drawn[0]._replace(approach="none", labels=np.zeros(100, int))
    config = found.config.copy_and_resolve_references()
    config.data.class_names = ()
    little = found._replace(
        config=config, weights=[], steps=[], compared=[], drawn=[alone], classifier={}, warnings=[],
        film=found.film._replace(labels=np.zeros(10, int)), neighbours=found.neighbours._replace(drawn=alone),
    )  # fmt: skip
    page.write(report.made(little), epath.Path(tmp_path))
    Reader((tmp_path / "report.html").read_text())


def test_approaches_differ_in_what_they_must_alone():
    config = get_config()
    every = [approaches.one(config, name, seed) for name in approaches.NAMES for seed in approaches.seeds(config)]
    flat = [dict(flatten(one)) for one in every]
    differing = {key for key in flat[0] if len({str(one[key]) for one in flat}) > 1}
    assert differing == {
        "seed", "train.condition_dropout", "sample.guidance.weight", "sample.guidance.classifier_weight",
        "evaluate.sweep.weight", "evaluate.sweep.classifier_weight",
    }  # fmt: skip
    assert {one["train.condition_dropout"] for one in flat} == {0.0, 0.1, 1.0}
    assert sorted({one["seed"] for one in flat}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.condition_dropout", 0.0, "condition_dropout=0.0"),
        ("model.num_classes", 0, "knows 0"),
        ("evaluate.sweep.weight", "", "evaluate.sweep.weight is empty"),
    ],
)
def test_what_cannot_be_compared_is_refused(key, value, words):
    config = get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=words):
        approaches.check(config)


def test_seconds_of_training_leave_compiling_out(tmp_path):
    lines = [f'{{"step": {step}, "images_per_second": {rate}}}' for step, rate in ((10, 1.0), (20, 64.0), (30, 64.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert approaches.seconds(epath.Path(tmp_path), batch_size=32) == pytest.approx(15.0)
