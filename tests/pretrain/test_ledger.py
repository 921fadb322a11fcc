"""What a ledger is made of: the file of losses, means over units, later values."""

import numpy as np

from pretrain.rounds.ledger import Ledger, LossFile, unit_means


def test_a_loss_file_keeps_each_place_once_and_marks_gaps(tmp_path):
    file = LossFile(tmp_path / "rounds" / "x.f32")
    file.write(2, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    file.write(3, np.array([5.0, 6.0]), np.array([7.0, 8.0]))
    with file.path.open("ab") as tail:
        tail.write(b"cut")
    assert len(file) == 5
    losses, counts = file.read(0, 6)
    assert np.array_equal(losses, np.array([np.nan, np.nan, 1, 5, 6, np.nan], np.float32), equal_nan=True)
    assert counts.tolist() == [0, 0, 3, 7, 8, 0]


def test_unit_means_weigh_samples_and_leave_out_the_unlabelled():
    means, counts = unit_means(np.array([2.0, 4, 0, 0, 9, 0]), np.array([1.0, 1, 0, 0, 3, 0]), 2)
    assert np.array_equal(means, np.array([3, np.nan, 3], np.float32), equal_nan=True)
    assert counts.tolist() == [2, 0, 3]


def test_the_last_value_of_a_unit_counts():
    old = Ledger(np.array([7, 3, 5]), np.zeros(3, np.float32), np.ones(3, np.float32))
    new = old.updated(np.array([5, 7, 5]), np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    assert new.losses_N.tolist() == [2, 0, 3] and new.counts_N.tolist() == [5, 1, 6]
