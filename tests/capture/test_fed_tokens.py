"""The checksum of the tokens that a model was fed is that of the tokens that came out, and of no others."""

import itertools

import pytest
import torch

from swift_rm.capture.fed_tokens import FedTokens

OUT = torch.randint(0, 2**31, (3, 9), generator=torch.Generator().manual_seed(0))


def fed(*parts, past=0):
    """Feed the parts of ``OUT`` that are named by their ends; None: without ids."""
    tokens = FedTokens()
    tokens.begin(past)
    for part in parts:
        tokens.add(part, 3)
    return tokens


def cuts(*ends, sequences=OUT):
    return [sequences[:, first:last] for first, last in itertools.pairwise((0, *ends))]


@pytest.mark.parametrize("ends", [(8,), (5, 6, 7, 8), (2, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8), (4, 8)])
def test_however_the_tokens_are_fed_their_checksum_is_the_same(ends):
    assert fed(*cuts(*ends)).contradiction(OUT, 5, False) is None


def test_any_two_tokens_that_change_places_are_noticed():
    for one, other in itertools.combinations(range(8), 2):
        order = list(range(9))
        order[one], order[other] = order[other], order[one]
        assert "3 of 3 rows" in fed(*cuts(5, 6, 7, 8, sequences=OUT[:, order])).contradiction(OUT, 5, False)


def test_one_other_token_in_one_row_is_noticed_wherever_it_is():
    for row, place in itertools.product(range(3), range(8)):
        other = OUT.clone()
        other[row, place] += 1
        said = fed(*cuts(5, 6, 7, 8, sequences=other)).contradiction(OUT, 5, False)
        assert f"in 1 of 3 rows (row {row} first)" in said


def test_the_last_token_is_never_fed_and_may_be_any():
    other = OUT.clone()
    other[:, 8] = 0
    assert fed(*cuts(5, 6, 7, 8, sequences=other)).contradiction(OUT, 5, False) is None


@pytest.mark.parametrize("ends, seen", [((5, 6, 7), 7), ((5, 6, 7, 8, 9), 9)])
def test_too_few_and_too_many_are_named(ends, seen):
    said = fed(*cuts(*ends)).contradiction(OUT, 5, False)
    assert said == f"states of {seen} tokens a row were seen where 8 belong to the 9 that came out"


def test_one_call_too_many_is_fine_where_generate_may_take_one_back():
    assert fed(*cuts(5, 6, 7, 8, 9)).contradiction(OUT, 5, True) is None
    assert fed(*cuts(5, 6, 7, 8)).contradiction(OUT, 5, True) is None
    assert "were seen where" in fed(*cuts(5, 6, 7)).contradiction(OUT, 5, True)


def test_with_a_cache_of_the_users_its_tokens_may_come_out_or_not():
    steps = [OUT[:, 5:6], OUT[:, 6:7], OUT[:, 7:8]]
    assert fed(*steps, past=5).contradiction(OUT, 6, False) is None  # `generate` was given all tokens
    assert fed(*steps, past=5).contradiction(OUT[:, 5:], 1, False) is None  # or the new one only
    assert "3 tokens a row were seen where" in fed(*steps, past=4).contradiction(OUT, 6, False)


def test_after_embeddings_the_steps_are_counted_all_the_same():
    steps = [None, OUT[:, 5:6], OUT[:, 6:7], OUT[:, 7:8]]
    assert fed(*steps).contradiction(OUT, 5, False) is None  # ids of the prompt given beside its embeddings
    assert fed(*steps).contradiction(OUT[:, 5:], 0, False) is None  # the embeddings alone
    assert "not those that came out" in fed(*steps[:3]).contradiction(OUT[:, 6:], 0, False)
    assert "3 tokens a row were seen where 2 belong" in fed(*steps).contradiction(OUT[:, 6:], 0, False)
    assert fed(None, OUT[:, 6:7], OUT[:, 7:8]).contradiction(OUT[:, 6:], 0, False) is None
    assert fed(None).contradiction(OUT[:, :6], 5, False) is None  # one new token, none fed


def test_other_rows_are_named():
    assert "had 3 rows, but 2 came out" in fed(*cuts(5, 6, 7, 8)).contradiction(OUT[:2], 5, False)
    assert "no forward call was seen" in FedTokens().contradiction(OUT, 5, False)


def test_a_prompt_of_a_hundred_thousand_tokens_is_summed_up_exactly():
    ids = torch.randint(0, 150_000, (1, 100_000), generator=torch.Generator().manual_seed(1))
    whole, parts = FedTokens(), FedTokens()
    for tokens, pieces in ((whole, (ids[:, :-1],)), (parts, ids[:, :-1].split(777, dim=1))):
        tokens.begin(0)
        for piece in pieces:
            tokens.add(piece, 1)
        assert tokens.contradiction(ids, 5, False) is None
