"""`make gpu-check` says what it found; its parts that need no device run here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.device import gpu_check
from tests.device.gpu_check import Check

XML = """<testsuites><testsuite><testcase name="one" time="1.5"/>
<testcase name="two" time="2"><failure message="first line&#10;second">...</failure></testcase>
<testcase name="three" time="0"><skipped message="no flash"/></testcase></testsuite></testsuites>"""


def test_without_a_device_it_says_so_and_fails(capsys, tmp_path):
    assert gpu_check.main(has_device=lambda: False, target=tmp_path / "report.txt") == 1
    assert capsys.readouterr().err.splitlines() == ["gpu-check needs a CUDA device, and torch finds none here"]
    assert not (tmp_path / "report.txt").exists()


@pytest.mark.parametrize(
    ("results", "speed", "status"),
    [
        (["passed", "skipped"], ["ZeRO 1: fast"], 0),
        (["passed", "failed"], ["ZeRO 1: fast"], 1),
        (["skipped"], ["ZeRO 1: fast"], 1),
        (["passed"], ["ZeRO 1: failed: out of memory"], 1),
    ],
)
def test_a_report_holds_what_was_found_and_the_status_says_whether_it_is_good(results, speed, status, tmp_path, capsys):
    target = tmp_path / "runs" / "report.txt"
    checks = [Check(f"check {number}", result, 1.0, "why") for number, result in enumerate(results)]
    assert gpu_check.main(lambda _: checks, lambda _: speed, lambda: True, target) == status
    text = target.read_text()
    assert text in capsys.readouterr().out
    assert f"python {sys.version.split()[0]}" in text and speed[0] in text
    assert all(f"{check.result:8}" in text and check.name in text for check in checks)


def test_results_of_pytest_are_read(tmp_path: Path):
    (tmp_path / "x.xml").write_text(XML)
    assert gpu_check.read_checks(tmp_path / "x.xml") == [
        Check("one", "passed", 1.5),
        Check("two", "failed", 2.0, "first line"),
        Check("three", "skipped", 0.0, "no flash"),
    ]


def test_speed_is_the_median_of_what_comes_after_the_start():
    rows = [{"tokens_per_second": 10.0 + n, "mfu": 0.25, "loss": 2.0} for n in range(10)]
    assert gpu_check.speed_line(rows, {"peak_bytes": 3 * 2**30}) == (
        "17 tokens/s, MFU 25.0%, peak 3.0 GiB, last loss 2.000"
    )


@pytest.mark.long
@pytest.mark.slow
def test_a_setting_is_timed_by_a_real_run(tmp_path):
    """A tiny one; the loss is that of a run, and MFU a share."""
    (line,) = gpu_check.run_speed(tmp_path, {}, 32, [("ZeRO 1", 1, False)])
    found = re.fullmatch(r"ZeRO 1: ([\d,]+) tokens/s, MFU (\d+\.\d)%, peak [\d.]+ GiB, last loss (\d+\.\d+)", line)
    assert found, line
    assert int(found[1].replace(",", "")) > 0 and 0 < float(found[3]) < 7
