"""What processes of the evaluator say to each other arrives whole, or not at all."""

import os
import socket
import threading

import pytest

from eval_sidecar.genrec.channel import Channel

pytestmark = pytest.mark.genrec


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_long_messages_arrive_in_order_with_their_files(ends, tmp_path):
    ours, theirs = ends
    long = {"items": list(range(200_000))}
    with (tmp_path / "log").open("w") as log:
        sender = threading.Thread(
            target=lambda: [Channel(theirs).send(m, [log.fileno()]) for m in (long, {"n": 1})]
        )
        sender.start()
        assert [ours.receive(), ours.receive()] == [long, {"n": 1}]
        sender.join()
    for number in ours.files:
        os.write(number, b"printed\n")
        os.close(number)
    assert (tmp_path / "log").read_text() == "printed\n" * 2


def test_a_message_that_was_cut_off_is_none_and_its_files_are_closed(ends, tmp_path):
    ours, theirs = ends
    reading, writing = os.pipe()
    socket.send_fds(theirs, [b'{"ranked": [['], [writing])
    os.close(writing)
    theirs.close()
    assert ours.receive() is None
    assert os.read(reading, 1) == b"", "nobody else holds the other end"
    os.close(reading)


def test_whoever_watches_learns_of_the_end_and_not_of_messages(ends):
    ours, theirs = ends
    left = threading.Event()
    thread = ours.watch(left.set)
    Channel(theirs).send({"advance": 1})
    assert ours.receive() == {"advance": 1}
    assert not left.is_set()
    theirs.close()
    thread.join(timeout=60)
    assert left.is_set()
