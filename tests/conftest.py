"""Small studies on scikit-learn's digits, which every machine has, for tests that train for real."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STUDY = """\
study: tried
question: Is this test right?
seeds: [1, 2]
model: {kind: small_resnet, width: 2}
task: {kind: image_classification, data: {source: digits}, augment: {crop: 1, flip: false}}
train:
  epochs: 3
  epoch_batches: 3
  micro_batch: 64
  threads: 1
  optimizer: {kind: sgd, base_lr: 0.05, momentum: 0.9}
  schedule: {kind: cosine, warmup_epochs: 1}
arms:
  baseline: {}
  constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}
compare: {contrasts: [constant - baseline], on: [test.accuracy]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Write a small study, with pieces of its text replaced, and return its path."""

    def write(replaced: dict[str, str] | None = None, name: str = "tried.yaml") -> Path:
        text = STUDY
        for old, new in (replaced or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def no_open_runs() -> Iterator[None]:
    """Close the files of tiny runs after each test: a run that is made to raise closes nothing."""
    yield
    tiny = sys.modules.get("tests.engine.tiny")
    if tiny is not None:
        tiny.close_all()
