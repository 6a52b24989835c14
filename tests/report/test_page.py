"""The page: complete, self-contained, and safe whatever a model wrote."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from fastrlhf.report.page import write_report

VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; an end tag must close the tag that is open."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(f"{text}\n" for text in self.texts).split())


def report(run_dir, rows, summary=None):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return Page(write_report(run_dir))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def page(run_dir, rows, summary):
    return report(run_dir, rows, summary)


def test_the_page_refers_to_nothing_outside_itself(page):
    links = [
        value for _, name, value in page.attributes if name in ("src", "srcset", "href", "action", "data")
    ]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not re.search(r"url\(|@import", page.source)


def test_the_page_runs_no_script(page):
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_every_plot_is_in_the_page_for_light_and_dark_screens_and_beside_it(page, run_dir):
    names = ["reward", "judge", "kl", "entropy", "losses", "clip_fraction", "time", "memory"]
    for attribute, folder in (("src", "plots"), ("srcset", "plots/dark")):
        shown = [
            value for tag, name, value in page.attributes if name == attribute and tag in ("img", "source")
        ]
        pictures = [
            base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True) for uri in shown
        ]
        assert pictures == [(run_dir / folder / f"{name}.png").read_bytes() for name in names]
    assert page.tags.count("figcaption") == len(names)
    assert (run_dir / "plots" / "overview.png").is_file()


def test_images_are_described(page):
    descriptions = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(descriptions) == 8
    assert "Reward over the steps of the run" in descriptions


@pytest.mark.parametrize(
    "text",
    [
        "24 steps · CPU, 2 cores · seed 0",
        "Reward 0.15 → 0.56 last quarter 0.54",
        "Judged positive 41 % → 84 %",
        "KL at the end 5.31 nats limit 8 nats",
        "Wall time 10 min 36 s",
        "Peak memory 1,818 MB",
        "Throughput 612 tokens/s",
        'fastrlhf demo --note "<b>&"',
        "kl_coef 0.05",
        'lora {"r": 16}',
        "note </dd><script>1</script>",
        "seed_file None",
        "torch 2.13.0 · trans<formers> 5.23.0",
        "Cheap <thrills> at $5 & $title",
        "<script>alert('prompt')</script>",
        'reward -0.42 judge 0.08 it was "okay" & ␛[31mred␀ \ufffd </td></table>',
        "reward 0.93 judge 0.97 a joy. A real joy. 🎬 ${body} $$",
        "No rewards known here",
    ],
)
def test_everything_that_the_summary_holds_is_shown_literally(page, text):
    assert text in page.text


def test_rewards_after_training_are_marked_better_or_worse(page):
    assert '<span class="chip better">reward 0.93</span>' in page.source
    assert '<span class="chip worse">reward 0.50</span>' in page.source
    assert '<span class="chip">reward 0.60</span>' in page.source


def test_the_page_fits_phones_and_dark_screens(page):
    assert ("meta", "name", "viewport") in page.attributes
    assert "@media (prefers-color-scheme: dark)" in page.source
    assert "@media (max-width: 640px)" in page.source


def test_a_run_without_metrics_or_summary_still_has_a_page(tmp_path):
    page = report(tmp_path, [])
    assert page.text == "Training run Training run No metrics were recorded"
    assert "img" not in page.tags


def test_a_single_step_and_a_summary_of_nothing(tmp_path):
    empty = {
        "title": None,
        "before": None,
        "after": {"reward": None},
        "kl_final": float("nan"),
        "config": {},
        "samples": [],
    }
    page = report(tmp_path, [{"step": 1, "objective/kl": 0.1}], empty)
    assert page.tags.count("figure") == 1
    assert page.tags.count("h2") == 1
    assert "1 step " in f"{page.text} "
    assert "nan" not in page.text.lower()


def test_one_side_of_a_comparison_is_shown_alone(tmp_path):
    page = report(tmp_path, [], {"before": {"reward": 0.2}, "after": {"judge": 0.9}})
    assert "Reward 0.20 before training" in page.text
    assert "Judged positive 90 %" in page.text
    assert "→" not in page.text


def test_a_page_is_written_again_over_an_older_one(tmp_path):
    report(tmp_path, [], {"title": "first"})
    assert "second" in report(tmp_path, [], {"title": "second"}).text


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    for damaged in ("{", "[1]"):
        (tmp_path / "summary.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"summary\.json: "):
            write_report(tmp_path)
