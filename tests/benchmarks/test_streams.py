"""The streams of the throughput benchmark run what they say, at the same time."""

from __future__ import annotations

import importlib
import threading

import pytest


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_round_makes_the_same_number_of_calls_in_every_stream(count: int) -> None:
    bench = importlib.import_module("bench_throughput")
    made = [0] * count

    def call(i: int) -> None:
        made[i] += 1

    team = bench.Streams([lambda i=i: call(i) for i in range(count)])
    for _ in range(3):
        team.run()
    team.close()
    assert made == [3 * team.each] * count
    assert (team.each == 1) == (count == 1)


def test_two_streams_are_in_their_calls_together() -> None:
    bench = importlib.import_module("bench_throughput")
    meeting = threading.Barrier(2, timeout=20)  # Breaks if one call waits for the other to end.
    team = bench.Streams([meeting.wait, meeting.wait])
    team.run()
    team.close()
    assert not meeting.broken
