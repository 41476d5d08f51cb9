import pytest
import torch

from swift_rm import SwiftConfig
from swift_rm.features.read_states import extract_features
from swift_rm.features.row_selection import reading_masks, reading_of, reading_rows

VIEWS = [(position, region) for position in ("generating", "token") for region in ("response", "after:</think>", "steps:, ")]
TEXT = "so 12+15=27, 27+08=35, </think><answer>35</answer>"


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("held", ["all", "every second", "list"])
def test_a_mask_tells_for_each_held_row_whether_the_view_reads_it(tokenizer, held):
    responses = [ids(tokenizer, TEXT), ids(tokenizer, "now 12+15=27, </think>"), ids(tokenizer, "01+01=02")]
    rows = [range(0, len(one) + 1) for one in responses]
    rows = {"all": rows, "every second": [one[::2] for one in rows], "list": [list(one) for one in rows]}[held]
    masks, flags = reading_masks(VIEWS, responses, rows, tokenizer)
    expected = []
    for response, here in zip(responses, rows, strict=True):
        columns = [[row in wanted for row in here] for wanted, _ in reading_rows(VIEWS, response, tokenizer)]
        columns = [column if any(column) else [True] * len(column) for column in columns]
        expected += [list(row) for row in zip(*columns, strict=True)]
    assert torch.equal(masks, torch.tensor(expected))
    assert flags["marker_missing"] == 1 and flags["region_empty"] >= 1


def test_views_of_one_table_are_what_each_configuration_reads_alone(llama, tokenizer, make_rollout):
    made = [make_rollout(f"q{i}", label=i % 2, response_ids=ids(tokenizer, text), prompt_ids=[1, 20 + i]) for i, text in
            enumerate((TEXT, "so 12+15=27, </think>", "01+01=02"))]  # fmt: skip
    config = SwiftConfig(32, (0, 3))
    together = extract_features(llama, tokenizer, made, config, views=VIEWS)
    for place, (position, region) in enumerate(VIEWS):
        alone = extract_features(llama, tokenizer, made, SwiftConfig(32, (0, 3), position=position, region=region))
        assert reading_of(SwiftConfig(32, (0, 3), position=position, region=region)) == VIEWS[place]
        assert torch.allclose(together.states[together.masks[:, place]], alone.states, atol=1e-5)
        assert alone.masks is None
