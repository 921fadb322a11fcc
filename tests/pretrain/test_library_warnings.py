"""What libraries say about themselves is kept off a run's terminal, and nothing else is."""

from __future__ import annotations

import logging
import warnings

import pytest

from pretrain import library_warnings


def test_only_known_warnings_are_silenced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library_warnings, "accelerator_available", lambda: False)
    said = {
        "`torch.distributed.all_gather_into_tensor` is deprecated. Please use another": FutureWarning,
        "`gradient_checkpointing_enable` is deprecated and will be removed in v6": FutureWarning,
        "`torch.nn.something` is deprecated": FutureWarning,
        "`torch.distributed.all_gather_into_tensor` has lost a rank": UserWarning,
    }
    compiler = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(compiler, "level", logging.WARNING)
    records: list[str] = []
    deepspeed, listener = logging.getLogger("DeepSpeed"), logging.Handler()
    listener.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(deepspeed, "handlers", [listener])
    monkeypatch.setattr(deepspeed, "filters", [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        library_warnings.silence_library_warnings()
        for message, category in said.items():
            warnings.warn(message, category, stacklevel=1)
    assert [str(each.message) for each in seen] == list(said)[2:]
    assert compiler.level == logging.ERROR
    for message in ("**** You are using ZeRO with an untested optimizer, proceed with caution *****", "something else"):
        deepspeed.warning(message)
    assert records == ["something else"]
