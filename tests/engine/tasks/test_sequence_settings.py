"""Settings of sequences and of the toy transformer that are wrong, each with its message."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ctr.engine.tasks.sequence import SequencePrediction
from tests.engine.tasks.sequences import settings

BAD_DATA = {
    "vocab": ({"vocab": 15}, "greater than or equal to 16"),
    "seq": ({"seq": 3}, "greater than or equal to 4"),
    "marker": ({"marker": 3}, "Input should be 0, 1 or 2"),
    "offset": ({"offset": 32}, "offset 32 goes round the 32 content tokens; give 0, which means the same"),
    "offset beside a marker": ({"marker": 2, "offset": 30}, "goes round the 29 content tokens; give 1, which"),
    "stream": ({"stream": "faithful"}, "Input should be 'positional' or 'consecutive'"),
    "no validation": ({"val_items": 0}, "greater than or equal to 2"),
    "no items": ({"items_per_epoch": 0}, "greater than or equal to 1"),
    "text for number": ({"seq": "24"}, "valid integer"),
    "unknown key": ({"markers": 1}, "Extra inputs are not permitted"),
}
BAD_MODEL = {
    "kind": ({"kind": "small_resnet"}, "Input should be 'toy'"),
    "vocab": ({"vocab": 32}, "Extra inputs are not permitted"),
    "heads": ({"dim": 10, "heads": 4}, "dim 10 is no multiple of heads 4"),
    "compartments": ({"compartments": -1}, "greater than or equal to 0"),
    "top_k of none": ({"compartments": 4, "top_k": 0}, "greater than or equal to 1"),
    "top_k of too many": ({"compartments": 4, "top_k": 5}, "top_k 5 opens more .* from 1 to compartments, 4"),
    "top_k without branches": ({"top_k": 2}, "top_k 2 and mode router are about branches, and compartments is 0; set"),
    "mode without branches": ({"mode": "dendritic"}, "mode dendritic are about branches, and compartments is 0"),
    "mode": ({"compartments": 4, "mode": "spiking"}, "Input should be 'router' or 'dendritic'"),
    "strength": ({"compartments": 4, "mode": "dendritic", "inhibition_strength": -0.1}, "greater than or equal to 0"),
    "strength of a router": (
        {"compartments": 4, "inhibition_strength": 0.2},
        "inhibition_strength 0.2 acts on dendritic branches alone; set mode: dendritic, or remove it",
    ),
    "nan": ({"compartments": 4, "mode": "dendritic", "inhibition_strength": float("nan")}, "finite number"),
    "both forms": ({"faithful": True, "causal": True}, "no mask, and causal: true contradicts it; remove causal, or"),
    "no mask unsaid": ({"causal": False}, "copy its answer from the input; set faithful: true to say that this is"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_settings_that_are_wrong_are_refused(case: str) -> None:
    wrong, message = BAD_DATA[case]
    with pytest.raises(ValidationError, match=message) as raised:
        SequencePrediction.Config.model_validate({"data": wrong})
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("case", BAD_MODEL)
def test_model_settings_that_are_wrong_are_refused(case: str) -> None:
    wrong, message = BAD_MODEL[case]
    with pytest.raises(ValidationError, match=message) as raised:
        settings(**wrong)
    assert raised.value.error_count() == 1


def test_faithful_takes_the_mask_away_and_says_so() -> None:
    assert (settings().causal, settings().faithful) == (True, False)
    assert settings(faithful=True).causal is False


@pytest.mark.parametrize(
    "model", [{}, {"faithful": True}, {"compartments": 4, "top_k": 2, "mode": "dendritic", "inhibition_strength": 0.0}]
)
def test_settings_survive_being_written_out(model: dict[str, Any]) -> None:
    once = settings(**model)
    assert settings(**once.model_dump()) == once
    config = SequencePrediction.Config.model_validate({"data": {"marker": 1}})
    assert SequencePrediction.Config.model_validate_json(config.model_dump_json()) == config


def test_every_setting_of_the_data_is_in_the_fingerprint() -> None:
    changes: list[dict[str, Any]] = [{}, {"marker": 0}, {"offset": 1}, {"seq": 25}, {"val_items": 3}, {"split_seed": 1}]
    prints = [SequencePrediction.fingerprints(SequencePrediction.Config.model_validate({"data": c})) for c in changes]
    assert len({found["rule"] for found in prints}) == len(changes)
