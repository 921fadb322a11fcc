"""Labels: the published rules, and a record of everything that is lost."""

import pytest

from data_pipeline.errors import LabelError
from data_pipeline.words.labels import LabelReport, LabelRules, clean_labels
from tokenizer.characters import CHARSETS


@pytest.mark.parametrize(
    ("charset", "normalise", "expected"),
    [("36", "ascii", "cafe9"), ("36", "none", "caf9"), ("62", "ascii", "Cafe9"), ("94", "ascii", "Cafe-9")],
)
def test_the_example_of_the_specification(charset, normalise, expected):
    rules = LabelRules(CHARSETS[charset], normalise=normalise)
    assert rules.clean("Café-9").text == expected
    assert rules.clean(expected).text == expected


def test_length_counts_before_characters_are_removed():
    rules = LabelRules(CHARSETS["36"])
    assert rules.clean("a" * 25 + "-").problem == "too long"
    assert rules.clean("a b " * 12 + "c").text == "ab" * 12 + "c"
    assert (rules.clean(" \t").problem, rules.clean("--").problem, rules.clean("中国").problem) == (
        "empty",
        "unsupported",
        "unsupported",
    )


def test_chinese_survives():
    rules = LabelRules.for_charset("中国人０1")
    assert rules.normalise == "nfkc"
    assert rules.clean("中 国１").text == "中国1"
    clean = rules.clean("中华1")
    assert (clean.text, clean.removed) == ("中1", "华")


def test_losses_are_counted_shown_and_refused():
    labels = ["one", "two-", "x" * 30, "", "中国", "It´s"]
    kept, texts, report = clean_labels("row {}".format, labels, LabelRules(CHARSETS["36"]))
    assert (kept, texts) == ([0, 1, 5], ["one", "two", "its"])
    assert (report.labels, report.altered, dict(report.dropped)) == (
        6,
        1,
        {"too long": 1, "empty": 1, "unsupported": 1},
    )
    text = report.to_text()
    assert "6 labels; dropped: 1 empty, 1 too long, 1 unsupported; altered: 1" in text
    assert "row 1: 'two-' -> 'two'" in text and "removed characters: '-' (1)" in text
    report.refuse_above(0.5, 0.2, "x")
    with pytest.raises(LabelError, match=r"x: 3 of 6 labels would be dropped, more than 40.0%.*row 2.*max_dropped"):
        report.refuse_above(0.4, 0.2, "x")
    with pytest.raises(LabelError, match=r"1 of 6 labels would be altered, more than 10.0% \(row 1: 'two-' -> 'two'\)"):
        report.refuse_above(0.5, 0.1, "x")
    LabelReport().refuse_above(0.0, 0.0, "nothing")
