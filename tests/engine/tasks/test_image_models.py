"""Models have the parameters they should, take the data they are given, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctr.engine.errors import DataError, SpecError
from ctr.engine.tasks.resnet import SmallResNet

DIGITS = {"data": {"source": "digits"}}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images_of(tmp_path: Path, size: int, channels: int = 3, train: int = 40) -> dict[str, Any]:
    random = np.random.RandomState(0)
    arrays = {
        f"{name}_{what}": random.randint(0, 256, (n, size, size, channels), dtype=np.uint8)
        if what == "images"
        else np.arange(n) % 4
        for name, n in (("train", train), ("test", 8))
        for what in ("images", "labels")
    }
    np.savez(tmp_path / f"{size}.npz", **arrays)
    return {"data": {"source": "npz", "path": str(tmp_path / f"{size}.npz")}}


@pytest.mark.parametrize(("width", "count"), [(8, 44_370), (16, 175_258), (32, 696_618), (64, 2_777_674)])
def test_parameter_counts_are_those_of_the_source(width: int, count: int) -> None:
    assert parameters(SmallResNet(width, 3, 10)) == count
    assert parameters(SmallResNet(width, 1, 10)) == count - 2 * 9 * width


def test_the_parts_of_width_32_have_the_published_sizes() -> None:
    model = SmallResNet(32, 3, 10)
    parts = [parameters(part) for part in (model.stem, *model.stages, model.head)]
    assert parts == [864 + 64, 37_120, 131_712, 525_568, 1_290]
    assert sum(buffer.numel() for buffer in model.buffers()) == 2_255


def test_parameters_draw_in_the_order_of_the_source() -> None:
    names = [name for name, _ in SmallResNet(8, 3, 10).named_parameters() if name.startswith("stages.1.0")]
    assert [name.removeprefix("stages.1.0.") for name in names] == [
        "conv1.weight", "norm1.weight", "norm1.bias", "conv2.weight", "norm2.weight", "norm2.bias",
        "shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias",
    ]  # fmt: skip
    torch.manual_seed(3)
    model = SmallResNet(8, 3, 10)
    torch.manual_seed(3)
    stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    first = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert torch.equal(model.stem[0].weight, stem.weight) and torch.equal(model.stages[0][0].conv1.weight, first.weight)


def test_it_computes_what_the_source_describes() -> None:
    torch.manual_seed(0)
    model = SmallResNet(4, 3, 5).double().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.double)

    def norm(out: Any, layer: Any) -> Any:
        return (out - layer.running_mean[:, None, None]) / (layer.running_var[:, None, None] + 1e-5).sqrt()

    out = norm(torch.conv2d(x, model.stem[0].weight, padding=1), model.stem[1]).relu()
    for index, stage in enumerate(model.stages):
        for place, block in enumerate(stage):
            stride = 2 if index and not place else 1
            inner = norm(torch.conv2d(out, block.conv1.weight, stride=stride, padding=1), block.norm1).relu()
            inner = norm(torch.conv2d(inner, block.conv2.weight, padding=1), block.norm2)
            if stride == 2:
                out = norm(torch.conv2d(out, block.shortcut[0].weight, stride=2), block.shortcut[1])
            out = (inner + out).relu()
    expected = out.mean(dim=(2, 3)) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(x), expected)


def test_it_adapts_to_channels_and_classes_and_is_built_from_the_default_generator(make: Any, built: Any) -> None:
    task = make(DIGITS)
    one, two = built(task, kind="small_resnet", width=4), built(task, kind="small_resnet", width=4)
    assert (one.channels, one.classes) == (1, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("mobilenet_v3_small", 32), ("squeezenet1_1", 32)])
def test_a_torchvision_classifier_trains_a_step(make: Any, built: Any, tmp_path: Path, name: str, size: int) -> None:
    task = make(images_of(tmp_path, size), micro_batch=8)
    model = built(task, kind="torchvision", name=name)
    optimizer = torch.optim.SGD(task.groups(model)["base"], lr=0.01)
    batch = task.batch(0, 0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    outputs = task.forward(model, batch, {"hidden": frozenset({-1})})
    outputs.loss.backward()
    optimizer.step()
    assert outputs.logits.shape == (8, 4) and outputs.hidden[-1].shape[0] == 8 and outputs.hidden[-1].dim() == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_grey_images_are_repeated_into_three_channels(make: Any, built: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="torchvision", name="resnet18").eval()
    images = task.batch(0, 0).tensors["images"]
    assert torch.equal(model(images), model.net(images.repeat(1, 3, 1, 1)))


def test_models_with_auxiliary_heads_come_without_them(make: Any, built: Any, tmp_path: Path) -> None:
    model = built(make(images_of(tmp_path, 64), micro_batch=8), kind="torchvision", name="googlenet")
    assert isinstance(model.train()(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_building_draws_the_same_whether_or_not_the_model_is_tried_on_the_data(
    make: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(images_of(tmp_path, 64), micro_batch=8)
    built(task, kind="torchvision", name="alexnet")  # holds dropout
    state = torch.get_rng_state()
    monkeypatch.setattr(task, "share", lambda module: None)
    built(task, kind="torchvision", name="alexnet")
    assert torch.equal(state, torch.get_rng_state())


def test_trying_the_model_on_the_data_leaves_it_untouched(make: Any, built: Any) -> None:
    model = built(make(DIGITS), kind="small_resnet", width=4)
    assert model.stem[1].num_batches_tracked == 0 and model.training
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_a_model_that_does_not_fit_is_refused_by_name(make: Any, built: Any, tmp_path: Path) -> None:
    task = make(DIGITS)
    with pytest.raises(SpecError, match=r"model.name: torchvision has no classifier 'resnet81'. Did you mean resnet18"):
        built(task, kind="torchvision", name="resnet81")
    with pytest.raises(SpecError, match=r"no classifier 'fasterrcnn_resnet50_fpn'"):
        built(task, kind="torchvision", name="fasterrcnn_resnet50_fpn")
    with pytest.raises(SpecError, match=r"cannot train on 7 images of 1 x 8 x 8: .*take larger images, another model"):
        built(task, kind="torchvision", name="vgg11")
    with pytest.raises(SpecError, match=r"cannot train on .* images of 1 x 8 x 8: Wrong image height!"):
        built(task, kind="torchvision", name="vit_b_32")
    with pytest.raises(SpecError, match=r"take 1 or 3 channels, the images have 2"):
        built(make(images_of(tmp_path, 8, channels=2)), kind="torchvision", name="resnet18")
    with pytest.raises(SpecError, match=r"adapter: image_classification trains whole models and knows no adapter"):
        built(task, adapter={"rank": 4}, kind="small_resnet")


def test_a_last_batch_of_one_tiny_image_is_refused_before_it_is_met(make: Any, built: Any, tmp_path: Path) -> None:
    settings = images_of(tmp_path, 4, train=40)  # 36 to train on
    built(make(settings, micro_batch=9), kind="small_resnet", width=4)
    with pytest.raises(SpecError, match=r"cannot train on 1 images of 3 x 4 x 4: .*or another train.micro_batch"):
        built(make(settings, micro_batch=7), kind="small_resnet", width=4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and no network."""
    from torchvision import models

    def no_network(url: str, *args: Any, **settings: Any) -> None:
        raise OSError(f"no network to reach {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache / Path(models.get_model_weights("squeezenet1_1").DEFAULT.url).name  # type: ignore[attr-defined]


def test_pretrained_weights_get_a_new_head(make: Any, built: Any, tmp_path: Path, hub: Path) -> None:
    from torchvision import models

    torch.manual_seed(1)
    published = models.get_model("squeezenet1_1", weights=None)
    torch.save(published.state_dict(), hub)
    task = make(images_of(tmp_path, 32), micro_batch=8)
    model = built(task, kind="torchvision", name="squeezenet1_1", pretrained=True)
    assert torch.equal(model.net.features[0].weight, published.features[0].weight)
    assert model.classifier().weight.shape[0] == 4
    assert task.forward(model, task.batch(0, 0), {}).logits.shape == (8, 4)


def test_weights_that_cannot_be_fetched_are_named(make: Any, built: Any, tmp_path: Path, hub: Path) -> None:
    with pytest.raises(DataError, match=r"pretrained weights of squeezenet1_1 could not be loaded: no network"):
        built(make(images_of(tmp_path, 32)), kind="torchvision", name="squeezenet1_1", pretrained=True)


def test_a_weights_file_cannot_run_code(make: Any, built: Any, tmp_path: Path, hub: Path, exploit: Any) -> None:
    torch.save({"features.0.weight": exploit(tmp_path / "ran")}, hub)
    task = make(images_of(tmp_path, 32))
    with pytest.raises(DataError, match=r"hold more than tensors; delete the file"):
        built(task, kind="torchvision", name="squeezenet1_1", pretrained=True)
    assert not (tmp_path / "ran").exists()
    torch.load(hub, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_second_task_shares_a_model_that_fits_and_refuses_another(make: Any, built: Any, tmp_path: Path) -> None:
    first = make(images_of(tmp_path, 8))
    model = built(first, kind="small_resnet", width=4)
    second = make(images_of(tmp_path, 16))
    second.share(model)
    assert second.forward(model, second.batch(0, 0), {}).loss.isfinite()
    with pytest.raises(SpecError, match=r"takes 3 channels and 4 classes, the data have 1 and 10"):
        make(DIGITS).share(model)
    with pytest.raises(SpecError, match=r"Linear was not built for images, so image_classification cannot share it"):
        first.share(torch.nn.Linear(3, 3))


def test_frozen_parameters_are_in_no_group(make: Any, built: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4)
    model.stem.requires_grad_(False)
    assert len(task.groups(model)["base"]) == len(list(model.parameters())) - 3
