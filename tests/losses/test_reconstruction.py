import pytest
import torch

from ct3dlib.losses.reconstruction import absolute_error, squared_error


def test_errors_match_hand_computation_and_are_float32():
    volumes = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 1, 2, 2)
    reconstructed = torch.tensor([0.0, 1.5, 2.0, 1.0], dtype=torch.bfloat16).view(1, 1, 1, 2, 2)
    assert absolute_error(reconstructed, volumes).item() == pytest.approx(2.5 / 4)
    assert squared_error(reconstructed, volumes).item() == pytest.approx(4.25 / 4)
    assert absolute_error(reconstructed, volumes).dtype == torch.float32
