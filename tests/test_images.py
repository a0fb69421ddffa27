"""Pixels of images: tensors and resizing."""

import numpy as np
import pytest
import torch

from hta.errors import UserError
from hta.image_files import to_array
from hta.images import is_gray, resize, to_tensor, to_uint8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestTensors:
    def test_is_gray_is_exact(self):
        image = np.full((2, 2, 3), 0.5, dtype=np.float32)
        assert is_gray(image)
        image[1, 0, 2] = np.nextafter(np.float32(0.5), np.float32(1))
        assert not is_gray(image)

    def test_tensor_and_back(self):
        levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
        image = np.stack([levels, levels[::-1], levels.T.reshape(8, 32)], axis=2)
        tensor = to_tensor([to_array(image), to_array(image[:, ::-1])])
        assert tensor.shape == (2, 3, 8, 32)
        assert tensor.dtype == torch.float32
        assert (tensor.min(), tensor.max()) == (-1, 1)
        np.testing.assert_array_equal(to_uint8(tensor), [image, image[:, ::-1]])
        np.testing.assert_array_equal(to_uint8(tensor[0]), image)

    def test_to_uint8_clamps_and_rounds(self):
        # 127.5 * (x + 1): 0.4 and 0.6 levels above 100 go to 100 and 101.
        tensor = torch.tensor([-2.0, 1.7, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).expand(3, 1, 4)
        np.testing.assert_array_equal(to_uint8(tensor)[0, :, 0], [0, 255, 100, 101])

    def test_to_tensor_rejects_other_sizes_and_nothing(self):
        with pytest.raises(UserError, match="number 1 is 2 x 3 px"):
            to_tensor([np.zeros((2, 2, 3)), np.zeros((2, 3, 3))])
        with pytest.raises(UserError, match="none given"):
            to_tensor([])


def resampling_matrix(target, source):
    """Rows of normalised weights of the cubic kernel, a = -0.5, widened by the ratio when shrinking; float64."""
    a, ratio = -0.5, source / target
    distance = (np.arange(source)[None] + 0.5 - (np.arange(target)[:, None] + 0.5) * ratio) / max(ratio, 1)
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


class TestResize:
    @pytest.mark.parametrize("target", [(13, 9), (41, 50), (13, 50), (20, 31)])
    def test_equals_an_independent_float64_bicubic(self, rng, target):
        images = rng.uniform(-1, 1, (2, 3, 20, 30))
        expected = resampling_matrix(target[0], 20) @ images @ resampling_matrix(target[1], 30).T
        result = resize(torch.from_numpy(images), target)
        assert result.dtype == torch.float64
        np.testing.assert_allclose(result, expected.clip(-1, 1), atol=1e-12)
        single = resize(torch.from_numpy(images).float(), target)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, expected.clip(-1, 1), atol=1e-5)

    def test_clamps_before_and_after(self):
        step = torch.full((1, 1, 8, 8), -5.0)
        step[..., 4:] = 5
        clamped = resize(step.clamp(-1, 1), (8, 20))
        result = resize(step, (8, 20))
        assert torch.equal(result, clamped)
        assert result.abs().max() == 1  # bicubic overshoots at the step
        assert torch.equal(resize(step, (8, 8)), step.clamp(-1, 1))

    def test_an_image_does_not_depend_on_its_batch_and_bfloat16_is_computed_in_float32(self, rng):
        images = torch.from_numpy(rng.uniform(-1, 1, (4, 3, 20, 30))).bfloat16()
        together = resize(images.float(), (13, 17))
        assert torch.equal(together, torch.cat([resize(image[None], (13, 17)) for image in images]))
