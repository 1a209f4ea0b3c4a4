"""Locks between processes of one machine."""

import threading
import time

from raysft.storage import locked


def test_one_holder_at_a_time_and_no_file_left(tmp_path):
    inside, most, order = [0], [0], []

    def hold(number: int) -> None:
        with locked(tmp_path / "lock"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)  # time for another to come in, if it could
            order.append(number)
            inside[0] -= 1

    holders = [threading.Thread(target=hold, args=(number,)) for number in range(8)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(20)
    assert sorted(order) == list(range(8))
    assert most == [1]
    assert not list(tmp_path.iterdir())
