"""The studies that are broken on purpose, each trained once without a fault to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from .harness import Forks

TASK = "image_classification"
STUDY = """\
study: f
seeds: [1]
model: {{kind: {model}}}
task:
  kind: {task}
  data: {{source: npz, path: {data}, val_fraction: 0.25}}
  augment: {{crop: 1, flip: true}}
train:
  epochs: {epochs}
  epoch_batches: 4
  micro_batch: 9
  grad_accum: 2
  threads: 1
  device: cpu
  clip_norm: 1.0
  optimizer: {{kind: sgd, base_lr: 0.05, momentum: 0.9}}
  schedule: {{kind: cosine, warmup_epochs: 1, per: step}}
checkpoint: {{every_steps: {every}}}
plugins: {{planted: {{{planted}}}}}
arms:
  a: {{plugins: {{phase_controller: {{rule: faithful, window: 1, patience: 1, s1_threshold: 1.0, s2_threshold: 1.0}}}}}}
"""


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    one = Forks(tmp_path_factory.mktemp("forks"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty-eight of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("data") / "digits.npz"
    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8)[..., None], digits.target
    np.savez(
        path, train_images=images[:96], train_labels=labels[:96], test_images=images[96:128], test_labels=labels[96:128]
    )
    return path


@pytest.fixture(scope="session")
def make_study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(
        model: str = "small_resnet, width: 2", every: int = 1, epochs: int = 6, planted: str = "", task: str = TASK
    ) -> Path:
        path = tmp_path_factory.mktemp("study") / "f.yaml"
        path.write_text(STUDY.format(model=model, data=data, every=every, epochs=epochs, planted=planted, task=task))
        return path

    return make


@pytest.fixture(scope="session")
def small(make_study: Callable[..., Path]) -> Path:
    """Eleven updates, of which each commits a checkpoint: augmentation, accumulation, a controller, a noisy plugin."""
    return make_study()


@pytest.fixture(scope="session")
def straight(forks: Forks, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `small` that nothing interrupted."""
    return trained(forks, small, tmp_path_factory.mktemp("straight"))


def trained(forks: Forks, study: Path, runs: Path) -> Path:
    one = forks.run("run", study, "--runs", runs)
    assert one.code == 0, one.said()
    return runs / "f" / "a-s1"
