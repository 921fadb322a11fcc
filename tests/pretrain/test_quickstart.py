"""The quick start's own command line; that its steps work is what `make quickstart` shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pretrain import __main__ as front_door
from pretrain.pipeline import Pipeline, StepFailed


def test_sources_follow_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(front_door, "quickstart", lambda config: seen.append(config) or tmp_path / "report.html")
    monkeypatch.setattr(sys, "argv", ["pretrain", "quickstart", "--source", "a/", "b.jsonl", "--output", str(tmp_path)])
    assert front_door.main() == 0
    assert seen[0].source == ["a/", "b.jsonl"] and seen[0].output == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "ranks: must be at least 1"),
        (["--steps", "0"], "steps: must be at least 1"),
        (["--config", "nope.yaml"], "there is no file nope.yaml"),
    ],
)
def test_wrong_arguments_end_it_before_the_first_step(arguments, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", "quickstart", *arguments])
    monkeypatch.setattr(front_door, "quickstart", lambda config: pytest.fail(f"started with {config}"))
    with pytest.raises(SystemExit) as end:
        front_door.main()
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_finished_step_is_skipped_and_a_failed_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    write = (
        f"import pathlib; p = pathlib.Path({str(made)!r}); p.write_text((p.read_text() if p.exists() else '') + 'x')"
    )
    for _ in range(2):
        Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", write)
    assert made.read_text() == "x" and "done before, skipped" in capsys.readouterr().out
    with pytest.raises(StepFailed, match=r"'a step' failed \(exit code 3\)"):
        Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", "raise SystemExit(3)")
    Pipeline(tmp_path).run("step", "a step", made, sys.executable, "-c", write)
    assert made.read_text() == "x"
