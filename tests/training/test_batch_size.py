import pytest
import torch

from ct3dlib.training.batch_size import largest_batch


@pytest.mark.parametrize(
    ("room", "limit", "wanted"), [(1, 64, 1), (5, 64, 4), (8, 64, 8), (99, 6, 4)]
)
def test_the_largest_power_of_two_that_fits(room: int, limit: int, wanted: int) -> None:
    tried: list[int] = []

    def step(size: int) -> None:
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError

    assert largest_batch(step, limit=limit) == wanted
    assert tried == [2**n for n in range(len(tried))]


def test_a_step_that_never_fits_says_so() -> None:
    def step(size: int) -> None:
        raise torch.OutOfMemoryError(f"{size} items")

    with pytest.raises(torch.OutOfMemoryError, match="1 items"):
        largest_batch(step, limit=8)
    with pytest.raises(ValueError, match="limit must be positive, not 0"):
        largest_batch(step, limit=0)


def test_other_errors_pass() -> None:
    def step(size: int) -> None:
        raise RuntimeError(f"{size}")

    with pytest.raises(RuntimeError, match="1"):
        largest_batch(step, limit=8)
