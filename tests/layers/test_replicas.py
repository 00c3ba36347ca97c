"""Sums over replicas: of whoever says how, in a thread of its own."""

from __future__ import annotations

import threading

from medseq_tf.layers import replicas


def test_a_replica_is_alone_unless_its_thread_says_how_to_sum():
    elsewhere = []
    with replicas.among(lambda tensors: [2 * t for t in tensors]):
        assert replicas.summed([1, 3]) == [2, 6]
        assert not replicas.is_alone()
        thread = threading.Thread(target=lambda: elsewhere.append(replicas.is_alone()))
        thread.start()
        thread.join()
    assert elsewhere == [True]
    assert replicas.is_alone()
    assert replicas.summed([1, 3]) == [1, 3]
