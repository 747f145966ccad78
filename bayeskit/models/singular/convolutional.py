"""Convolutional decoders and encoders of images, as maps from and to rows of their pixels.

Height and width are halved and doubled by moving squares of four places into channels and back
(W. Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel
convolutional neural network", CVPR 2016). Convolutions are linear maps of a place's neighbourhood,
written as products of matrices: mapped over several fits, as in training, small ones took half the
time of XLA's on a CPU; of a single fit they took a third more.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

_CHANNELS = (16, 32)  # after every halving of height and width


def _coarse(size):
    return -(-size // 2 ** len(_CHANNELS))


def _with_channels(shape):
    """Height, width and channels of images (H, W) or (H, W, C)."""
    return (*shape, 1) if len(shape) == 2 else shape


def _halved(image):
    """Channels, height and width (c, 2 h, 2 w) as (4 c, h, w)."""
    channels, height, width = image.shape
    parts = image.reshape(channels, height // 2, 2, width // 2, 2)
    return parts.transpose(0, 2, 4, 1, 3).reshape(4 * channels, height // 2, width // 2)


def _doubled(image):
    """The inverse of :func:`_halved`."""
    channels, height, width = image.shape
    parts = image.reshape(channels // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
    return parts.reshape(channels // 4, 2 * height, 2 * width)


def _convolved(layer, image):
    """A linear layer of the three by three places around every place, zeros beyond the edges."""
    _, height, width = image.shape
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)))
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jax.vmap(jax.vmap(layer, 1, 1), 1, 1)(jnp.concatenate(around))


def _layers(inputs, outputs, keys):
    return tuple(
        eqx.nn.Linear(9 * before, after, key=key)
        for before, after, key in zip(inputs, outputs, keys, strict=True)
    )


class ConvolutionalEncoder(eqx.Module):
    """Images (H W C,) to ``outputs`` numbers: convolutions, height and width halved twice.

    Images are padded by zeros where these are no multiples of four.
    """

    layers: tuple
    last: eqx.nn.Linear
    shape: tuple = eqx.field(static=True)

    def __init__(self, shape, outputs, *, key):
        height, width, channels = self.shape = _with_channels(shape)
        *keys, for_last = jax.random.split(key, len(_CHANNELS) + 1)
        fine = (channels, *_CHANNELS[:-1])
        self.layers = _layers([4 * count for count in fine], _CHANNELS, keys)
        inside = _coarse(height) * _coarse(width) * _CHANNELS[-1]
        self.last = eqx.nn.Linear(inside, outputs, key=for_last)

    def __call__(self, row):
        image = jnp.moveaxis(row.reshape(self.shape), -1, 0)
        missing = [2 ** len(_CHANNELS) * _coarse(size) - size for size in self.shape[:2]]
        image = jnp.pad(image, ((0, 0), *((0, count) for count in missing)))
        for layer in self.layers:
            image = jax.nn.relu(_convolved(layer, _halved(image)))
        return self.last(image.ravel())


class ConvolutionalDecoder(eqx.Module):
    """Latents to images (H W C,): convolutions, height and width doubled twice.

    Images are cut where these are no multiples of four.
    """

    first: eqx.nn.Linear
    layers: tuple
    shape: tuple = eqx.field(static=True)

    def __init__(self, inputs, shape, *, key):
        height, width, channels = self.shape = _with_channels(shape)
        for_first, *keys = jax.random.split(key, len(_CHANNELS) + 1)
        inside = _CHANNELS[-1] * _coarse(height) * _coarse(width)
        self.first = eqx.nn.Linear(inputs, inside, key=for_first)
        fine = (*_CHANNELS[-2::-1], channels)
        self.layers = _layers(_CHANNELS[::-1], [4 * count for count in fine], keys)

    def __call__(self, latent):
        height, width, _ = self.shape
        image = self.first(latent).reshape(_CHANNELS[-1], _coarse(height), _coarse(width))
        for layer in self.layers:
            image = _doubled(_convolved(layer, jax.nn.relu(image)))
        return jnp.moveaxis(image[:, :height, :width], 0, -1).ravel()
