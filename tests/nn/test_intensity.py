import numpy as np
import torch

from ct3dlib.nn.intensity import windowed
from ct3dlib.scan.intensity import apply_window


def test_windows_are_those_of_the_data_wing_and_each_volumes_own():
    rng = np.random.default_rng(0)
    values = rng.integers(-3000, 3000, (2, 1, 3, 4, 5)).astype(np.int16)
    windows = [(-1200.0, 800.0), (0.0, 500.0)]
    found = windowed(torch.from_numpy(values), torch.tensor(windows), onto=(-1.0, 1.0))
    for one, window, stored in zip(found, windows, values, strict=True):
        wanted = apply_window(stored, window, onto=(-1.0, 1.0))
        torch.testing.assert_close(one, torch.from_numpy(wanted), rtol=0, atol=1e-6)


def test_the_published_window_maps_to_the_unit_range():
    values = torch.tensor([-1200, 800, -3000, 3000, -200], dtype=torch.int16).view(1, 1, 1, 1, 5)
    found = windowed(values, torch.tensor([[-1200.0, 800.0]]), onto=(0.0, 1.0))
    assert found.flatten().tolist() == [0, 1, 0, 1, 0.5]
