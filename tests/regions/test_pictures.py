import numpy as np
import pytest
from PIL import Image

from ct3dlib.regions.pictures import WINDOWS, grey_pictures


def test_greys_of_a_window_by_hand():
    plane = np.array([[-1024, -160, 40, 240], [3071, -159, 39, 239]] * 2, np.int16)
    (picture,) = grey_pictures([plane], WINDOWS["soft"], 4).numpy()
    assert picture[:2].tolist() == [[0, 0, 127, 255], [255, 0, 126, 254]]


def test_other_sizes_are_pillows_bicubic():
    plane = np.random.default_rng(0).integers(-1000, 600, (30, 50)).astype(np.int16)
    (picture,) = grey_pictures([plane], WINDOWS["lung"], 64).numpy()
    grey = ((np.clip(plane, -910, 590) + 910) / 1500 * 255).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(picture.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("name", "window"), [("lung", 1500), ("soft", 400), ("bone", 1800)])
def test_windows_are_those_of_the_training_data(name, window):
    low, high = WINDOWS[name]
    assert high - low == window
