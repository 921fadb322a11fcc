"""The report shows what the run has, names what it lacks, and needs nothing but itself."""

import base64
import json
import re
import xml.dom.minidom
from html.parser import HTMLParser

import pytest

from eval.__main__ import main
from eval.report.pictures import MAX_PICTURE_BYTES, PNG_BEGINS, write_caption
from eval.report.report import duration, human, render, write_report
from eval.report.run_record import RunNotFoundError, read_run
from eval.report.suggestions import suggestions
from eval.report.tables import evaluation_tables


def write_run(folder, steps=120, last_valid=3.2):
    """A run directory as the trainer, lm-eval and generation leave it."""
    (folder / "eval").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for step in range(10, steps + 1, 10):
        seconds = step / 10 if step < 60 else (step - 60) / 10  # the clock restarts where the run was resumed
        norm = "nan" if step == 50 else 1.5
        rates = {"tokens_per_second": 11000.0, "tflops": 0.1, "mfu": 0.412, "data_wait": 0.234}
        train = {"loss": 9 - step / 40, "lr": 1e-3, "grad_norm": norm, "tokens": step * 4096, **rates}
        phases = {"forward": {"median": 0.5, "slowest": 0.6, "rank": 1}}
        rows.append({"kind": "train", "step": step, **train, "seconds": seconds, "phases": phases})
        if step % 60 == 0:
            loss = 4.0 if step < steps else last_valid
            rows.append(
                {"kind": "valid", "step": step, "loss": loss, "bits_per_byte/en": loss / 2, "bits_per_byte/zh": 1.9}
            )
            results = {"held_out_continuation": {"acc": 0.5, "acc_stderr": 0.1}}
            rows.append({"kind": "eval", "step": step, "results": results})
    rows.append({"kind": "event", "step": 50, "event": "skip", "detail": "non-finite gradients in batch 49"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "task: {class_path: pretrain.tasks.LanguageModelTask}"
    (folder / "config.yaml").write_text(f"output: runs/x\nsteps: {steps}\noptimizer: {{lr: 0.003}}\n{task}\n")
    (folder / "audit.json").write_text(json.dumps({"parameters": "4,255,680", "document mask": "isolates 3 documents"}))
    (folder / "samples.json").write_text(json.dumps([{"prompt": "山", "text": "<script>alert(1)</script>"}]))
    (folder / "eval" / "lm.json").write_text(json.dumps({"results": {"piqa": {"acc": 0.5432, "acc_stderr": 0.0116}}}))
    return folder


def write_recogniser_run(folder):
    """A run of text recognition as the trainer and `eval ocr` leave it, with pictures."""
    (folder / "eval").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for step in (10, 20):
        train = {"loss": 3 - step / 10, "lr": 1e-3, "images": step * 64, "images_per_second": 250.0, "seconds": step}
        rows.append({"kind": "train", "step": step, **train, "usage": 0.5})
        valid = {"loss": 2.5 - step / 20, "loss/clean": 1.0, "loss/noisy": 4 - step / 10}
        rows.append({"kind": "valid", "step": step, **valid})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "{class_path: pretrain.tasks.WordRecognitionTask, init_args: {valid: {unseen: runs/unseen}}}"
    (folder / "config.yaml").write_text(f"steps: 20\ntask: {task}\n")
    (folder / "audit.json").write_text("{}")
    score = {"images": 1500, "accuracy": 0.625, "case_sensitive": 0.5, "similarity": 0.75, "seconds": 3.0}
    results = {"ours": {"words": score}, "rapidocr": {"words": {**score, "accuracy": 0.875}, "signs": score}}
    means = {name: {"accuracy": 0.7, "case_sensitive": 0.5, "similarity": 0.75} for name in results}
    (folder / "eval" / "ocr.json").write_text(json.dumps({"charset": "36", "results": results, "mean": means}))
    (folder / "eval" / "errors_ours.png").write_bytes(PNG_BEGINS + b"errors")
    (folder / "eval" / "words_ours.png").write_bytes(PNG_BEGINS + b"words")
    write_caption(folder / "eval" / "words_ours.png", "The first words & what was read")
    return folder


class Collector(HTMLParser):
    """Tags with their attributes, to check structure and references."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "img", "use", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run")).read_text(encoding="utf-8")


def test_the_numbers_are_there(page):
    for text in (
        "120 of 120",
        "4,255,680",
        "3.2000",
        "41.2%",
        "23.4%",
        "0.5432",
        "0.0116",
        "isolates 3 documents",
        "492 k",
        "11 s",
    ):
        assert text in page, text
    assert "non-finite gradients in batch 49" in page and "optimizer:" in page


def test_it_is_one_file_without_scripts_or_references(page):
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    names = {tag for tag, _ in collector.tags}
    assert not names & {"script", "link", "iframe", "img", "object"}
    for tag, attributes in collector.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_text_from_the_run_is_escaped(page):
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_charts_are_well_formed_and_follow_the_text_colour(page):
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    titles = [re.search(r'aria-label="([^"]*)"', chart).group(1) for chart in charts]
    assert titles == [
        "Loss (nats per token)",
        "Validation bits per byte",
        "Throughput (tokens/s)",
        "Model FLOPs utilisation",
        "Learning rate",
        "Gradient norm",
        "During training: acc",
    ]
    for chart in charts:
        xml.dom.minidom.parseString(chart)
        assert "currentColor" in chart and "#000000" not in chart and "#010203" not in chart
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_same_run_same_bytes(tmp_path):
    run = write_run(tmp_path / "run")
    assert render(read_run(run)) == render(read_run(run))


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(RunNotFoundError, match="not a run directory"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    page = write_report(tmp_path).read_text()
    for part in ("config.yaml is not there", "audit.json", "samples.json", "no evaluation was run"):
        assert part in page, part
    assert "What to try next" in page


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as out:
        out.write('{"kind": "train", "st')
    (run / "audit.json").write_text("{")
    (run / "config.yaml").write_text("a: [")
    page = write_report(run).read_text()
    assert "metrics.jsonl:18: not a metrics row" in page and "audit.json cannot be read" in page
    assert "config.yaml cannot be read" in page and "3.2000" in page


def test_collapse_measurements_are_drawn_when_they_are_there(tmp_path):
    run = write_run(tmp_path / "run")
    layers = [{"layer": n, "effective_dimension": 50 - n, "diversity": 0.5} for n in range(3)]
    (run / "eval" / "collapse.json").write_text(json.dumps({"mine": {"layers": layers}}))
    page = write_report(run).read_text(encoding="utf-8")
    assert 'aria-label="Effective dimension by layer"' in page and "layer (0: embeddings)" in page


def test_scores_of_a_few_documents_are_marked(tmp_path):
    run = write_run(tmp_path / "run")
    assert "documents per task" not in write_report(run).read_text()
    results = {"limit": 20, "results": {"piqa": {"acc": 0.5}}}
    (run / "eval" / "lm.json").write_text(json.dumps(results))
    assert "only 20 documents per task" in write_report(run).read_text()


def test_the_clock_adds_up_over_restarts(tmp_path):
    assert read_run(write_run(tmp_path / "run")).seconds() == pytest.approx(5.0 + 6.0)


def test_suggestions_follow_from_the_run(tmp_path):
    falling = suggestions(read_run(write_run(tmp_path / "a")))
    assert any("still falling" in s.reason and "--steps 240" in s.command for s in falling)
    assert any("skipped" in s.reason and "--optimizer.lr 0.001" in s.command for s in falling)
    rising = suggestions(read_run(write_run(tmp_path / "b", last_valid=4.5)))
    assert any("ends above its best" in s.reason for s in rising)
    assert not any("still falling" in s.reason for s in rising)


def test_an_impossible_mfu_is_explained(tmp_path):
    run = write_run(tmp_path / "run")
    assert not any("MFU" in s.reason for s in suggestions(read_run(run)))
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"mfu": 0.412', '"mfu": 1.236'))
    assert any(s.reason.startswith("MFU 124%: the machine was busy") for s in suggestions(read_run(run)))


def test_command(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main(["report", "--run", str(run), "--output", str(tmp_path / "sub" / "page.html")]) == 0
    assert (tmp_path / "sub" / "page.html").is_file()
    with pytest.raises(RunNotFoundError):
        read_run(tmp_path / "nowhere")
    assert main(["report", "--run", str(tmp_path / "nowhere")]) == 1
    assert "there is no run directory" in capsys.readouterr().err


def test_a_recogniser_is_reported_in_its_own_terms(tmp_path):
    page = write_report(write_recogniser_run(tmp_path / "run")).read_text(encoding="utf-8")
    titles = re.findall(r'<svg[^>]*aria-label="([^"]*)"', page)
    assert titles[:4] == ["Loss", "Validation loss", "In training: usage", "Throughput (images/s)"]
    for text in ("images seen", "1.28 k", "images/s (median)", "250"):
        assert text in page, text
    assert "tokens" not in page and "samples.json" not in page
    record = read_run(tmp_path / "run")
    found = [suggestion.command for suggestion in suggestions(record)]
    assert any(" rapidocr --data runs/unseen " in command for command in found) and any(
        "--steps 40" in command for command in found
    )
    assert not any(word in command for word in ("eval lm", "collapse", "arch export") for command in found)


def test_word_accuracies_stand_side_by_side(tmp_path):
    (table,) = evaluation_tables(read_run(write_recogniser_run(tmp_path / "run")))
    assert table.columns == ["benchmark", "images", "ours", "rapidocr"]
    assert table.rows[:3] == [
        ["words", 1500, 62.5, 87.5],
        ["signs", 1500, None, 62.5],
        ["mean, by images", 3000, 70.0, 70.0],
    ]


def test_places_stand_side_by_side_and_an_error_only_where_there_is_one(tmp_path):
    run = write_recogniser_run(tmp_path / "run")
    (run / "eval" / "ocr.json").unlink()
    scores = {"loss": 2.5, "psnr@0": 15.0, "psnr@3": 17.25, "psnr@copy": 9.5, "ssim@3": 0.5}
    (run / "eval" / "vision.json").write_text(json.dumps({"results": {"edges": scores}}))
    (table,) = evaluation_tables(read_run(run))
    assert (table.name, table.columns) == ("vision", ["task", "metric", "value", "0", "3", "copy"])
    assert table.rows == [
        ["edges", "loss", 2.5, None, None, None],
        ["edges", "psnr", None, 15.0, 17.25, 9.5],
        ["edges", "ssim", None, None, 0.5, None],
    ]


def test_pictures_are_embedded_with_what_they_show(tmp_path):
    run = write_recogniser_run(tmp_path / "run")
    (run / "eval" / "large.png").write_bytes(PNG_BEGINS + bytes(MAX_PICTURE_BYTES))
    (run / "eval" / "other.png").write_bytes(b"GIF89a")
    page = write_report(run).read_text(encoding="utf-8")
    collector = Collector()
    collector.feed(page)
    sources = [attributes["src"].partition(",") for tag, attributes in collector.tags if tag == "img"]
    assert [base64.b64decode(content) for _, _, content in sources] == [PNG_BEGINS + b"errors", PNG_BEGINS + b"words"]
    assert {kind for kind, _, _ in sources} == {"data:image/png;base64"}
    assert "Errors ours</figcaption>" in page and "The first words &amp; what was read</figcaption>" in page
    assert "eval/large.png is too large" in page and "eval/other.png is not a PNG file" in page
    assert "captions" not in [table.name for table in evaluation_tables(read_run(run))]


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (61, "1 min 01 s"), (3 * 3600 + 300, "3 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (4_255_680, "4.26 M"), (1.6e12, "1.6 T"), (0.5, "0.5")])
def test_sizes(number, text):
    assert human(number) == text


def test_a_run_that_waits_for_data_is_told_to_read_ahead(tmp_path):
    record = read_run(write_run(tmp_path / "run"))
    (found,) = [s for s in suggestions(record) if "waiting for data" in s.reason]
    assert found.command.endswith("--loader.workers 1") and "23%" in found.reason
    for row in record.rows["train"]:
        row["data_wait"] = 0.01
    assert not [s for s in suggestions(record) if "waiting for data" in s.reason]
