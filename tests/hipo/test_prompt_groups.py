from types import SimpleNamespace

import torch

from swift_rm.hipo.rollouts.policy_states import gathered
from swift_rm.hipo.rollouts.prompt_groups import PromptGroup, find_runs


def test_runs_are_cut_where_a_group_or_its_half_ends():
    assert find_runs(list("aaaabbbb"), 0, 4) == [PromptGroup(0, 4, None), PromptGroup(4, 4, None)]
    assert find_runs(list("aaaaaaaa"), 0, 4) == [PromptGroup(0, 4, None), PromptGroup(4, 4, None)]  # the same question, twice
    assert find_runs(list("aabb"), 0, 4) == [PromptGroup(0, 2, None), PromptGroup(2, 2, None)]
    assert find_runs(list("aaab"), 1, 4) == [
        PromptGroup(0, 3, None),
        PromptGroup(3, 1, None),
    ]  # a group that begins on another process
    assert find_runs(list("aaab"), 1, 4, forced=True) == [
        PromptGroup(0, 1, "on"),
        PromptGroup(1, 2, "off"),
        PromptGroup(3, 1, "on"),
    ]
    assert find_runs(list("aaa"), 0, 3, forced=True) == [PromptGroup(0, 2, "on"), PromptGroup(2, 1, "off")]


def test_the_rows_of_all_processes_are_joined():
    class Two:
        """The first of two processes; the other has three rows of 7."""

        num_processes = 2

        def gather(self, rows):
            return torch.cat([rows, torch.full_like(rows, 3 if rows.dim() == 1 else 7)])

        def pad_across_processes(self, rows, dim):
            return torch.cat([rows, rows.new_zeros(3 - len(rows), *rows.shape[1:])])

    assert gathered(Two(), torch.ones(1, 2)).tolist() == [[1, 1], [7, 7], [7, 7], [7, 7]]
    assert gathered(Two(), torch.ones(0, 2)).tolist() == [[7, 7]] * 3
    assert gathered(SimpleNamespace(num_processes=1), torch.ones(1, 2)).tolist() == [[1, 1]]
