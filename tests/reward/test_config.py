import json

import pytest

from swift_rm import SwiftConfig


def test_a_configuration_survives_json():
    config = SwiftConfig(8, (-1, 0), base_model="org/model", region="steps:\n\n", gate=False, heads=3, pessimism=0.5)
    assert SwiftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.marker == "\n\n"


def test_layers_are_counted_from_the_embeddings_once_the_base_is_known():
    config = SwiftConfig(8, (-4, -1, 0)).for_base(6)
    assert config.layers == (3, 6, 0)
    assert config.base_layers == 6
    assert config.width == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"layers": ()}, "at least one layer"),
        ({"layers": (1, 1)}, r"\(1, 1\) name a layer twice"),
        ({"layers": (2, -1), "base_layers": 2}, "name a layer twice"),
        ({"layers": (7,), "base_layers": 6}, r"layer 7 is out of range: the model has hidden states 0\.\.6"),
        ({"layers": (-8,), "base_layers": 6}, "layer -8 is out of range"),
        ({"source": "states"}, "source must be one of .* got 'states'"),
        ({"position": "before"}, "position must be one of .* got 'before'"),
        ({"region": "after:"}, "region must be .* got 'after:'"),
        ({"region": "answer"}, "region must be .* got 'answer'"),
        ({"region": "steps:"}, "region must be 'response', 'after:<marker>' or 'steps:<marker>', got 'steps:'"),
        ({"heads": 0}, "heads must be a number of at least 1, got 0"),
        ({"heads": 2.5}, "heads must be a number of at least 1, got 2.5"),
        ({"pessimism": -0.5}, "pessimism must be finite and not negative, got -0.5"),
        ({"pessimism": float("inf")}, "pessimism must be finite and not negative, got inf"),
        ({"pessimism": float("nan")}, "pessimism must be finite and not negative, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_value(change, message):
    with pytest.raises(ValueError, match=message):
        SwiftConfig(**{"hidden_size": 8, "layers": (0, 1), **change})


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['size'\], missing keys \['hidden_size'\]"):
        SwiftConfig.from_dict({"layers": [1], "size": 3})
