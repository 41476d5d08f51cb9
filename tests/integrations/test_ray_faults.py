"""The whole fault test of sampling on Ray; the benchmark's smoke run in `test_scripts` is a short one."""

import pytest


@pytest.mark.servers
def test_twenty_killed_workers_and_five_killed_drivers_lose_and_double_nothing(tmp_path):
    from benchmarks.ray.faults import kill_and_compare

    found = kill_and_compare(tmp_path, questions=1500, n=4, batch=4, kills=20, driver_kills=5, seed=1)
    assert (found["kills"], found["driver_kills"], found["records"]) == (20, 5, 6000)
    nothing = ("records_lost", "records_doubled", "rewards_differ", "features_lost", "features_doubled", "processes_left")
    assert {found[name] for name in nothing} == {0}, found
    assert found["features_error"] < 0.01
