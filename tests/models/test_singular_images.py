"""Singular distributions of images: the same as of their pixels, and convolutional networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.signal import correlate2d

import bayeskit as bk
from bayeskit.models.singular.convolutional import ConvolutionalDecoder, ConvolutionalEncoder

VariationalInference = bk.inference.VariationalInference
SingularDistribution = bk.models.SingularDistribution


def blobs(count, shape, seed=0):
    """Images of one blob, whose place is what differs."""
    generator = np.random.default_rng(seed)
    height, width = np.indices(shape[:2])
    places = generator.uniform(1.0, 4.0, (2, count, 1, 1))
    squares = (height - places[0]) ** 2 + (width - places[1]) ** 2
    images = np.exp(-0.5 * squares)
    return images if len(shape) == 2 else images[..., None] * np.array([1.0, 0.5, -2.0])


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_images_are_rows_of_their_pixels(shape):
    images = blobs(40, shape)
    rows = images.reshape(40, -1)
    model = SingularDistribution(2, decoder="linear", perturbation=0.2)
    posterior, flat = bk.infer(model, images), bk.infer(model, rows)
    assert posterior.log_evidence == flat.log_evidence
    generated = posterior.generate(0, 7)
    assert generated.shape == (7, *shape)
    np.testing.assert_array_equal(generated.reshape(7, -1), flat.generate(0, 7))
    prediction, expected = posterior.predict(images[:4]), flat.predict(rows[:4])
    assert prediction.dims == ("observation", "height", "width", "channel")[: 1 + len(shape)]
    np.testing.assert_array_equal(prediction.mean.reshape(4, -1), expected.mean)
    np.testing.assert_array_equal(prediction.variance.reshape(4, -1), expected.variance)
    latents = posterior.encode(images[:4]).mean
    np.testing.assert_array_equal(latents, flat.encode(rows[:4]).mean)
    single = posterior.encode(images[:4].astype(np.float32)).mean
    np.testing.assert_allclose(single, latents, rtol=0, atol=1e-5)
    tree = posterior.to_datatree(num_draws=2)
    assert tree["observed_data"]["x"].shape == images.shape
    assert tree["moments"]["loadings_mean"].dims == ("pixel", "latent")
    with pytest.raises(ValueError, match=r"inputs must have the shape \(rows, 6, 5"):
        posterior.encode(images[:, :5])


def test_images_keep_their_names_and_batches_of_them_their_axes():
    images = xr.DataArray(
        blobs(30, (6, 5)), dims=("day", "y", "x"), coords={"y": np.arange(6) / 10}
    )
    model = SingularDistribution(2, decoder="linear", perturbation=0.2)
    prediction = bk.infer(model, images).predict()
    assert prediction.dims == ("day", "y", "x")
    np.testing.assert_array_equal(prediction.coords["y"], np.arange(6) / 10)
    stacked = np.stack([images.values, blobs(30, (6, 5), seed=1)])
    posterior = bk.infer_batch(model, stacked)
    assert posterior.generate(0, 3).shape == (2, 3, 6, 5)
    assert posterior.predict().mean.shape == stacked.shape


def test_convolutions_halve_and_double_the_sides_of_any_image():
    encoder = ConvolutionalEncoder((6, 5), 4, key=jax.random.key(0))
    image = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    maps = [np.pad(image, ((0, 2), (0, 3)))]
    for layer in encoder.layers:
        quarters = [each[i::2, j::2] for each in maps for i in (0, 1) for j in (0, 1)]
        kernels = np.asarray(layer.weight).reshape(len(layer.bias), 3, 3, -1)
        maps = [
            np.maximum(
                sum(
                    correlate2d(np.pad(each, 1), kernel[..., i], mode="valid")
                    for i, each in enumerate(quarters)
                )
                + float(bias),
                0.0,
            )
            for kernel, bias in zip(kernels, layer.bias, strict=True)
        ]
    expected = encoder.last.weight @ np.ravel(maps) + encoder.last.bias
    np.testing.assert_allclose(encoder(jnp.asarray(image.ravel())), expected, rtol=0, atol=1e-5)
    decoder = ConvolutionalDecoder(2, (6, 5, 3), key=jax.random.key(1))
    slopes = jax.jacobian(decoder)(jnp.array([0.3, -0.2]))
    # Every pixel of every channel is reached.
    assert slopes.shape == (90, 2)
    assert np.all(np.abs(np.asarray(slopes)).max(axis=1) > 0.0)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:VariationalInference did not converge")
def test_convolutional_networks_learn_images_and_nothing_else(tmp_path):
    images = blobs(60, (6, 5)).astype(np.float32)
    model = SingularDistribution(2, decoder="convolutional", perturbation=0.2)
    assert "encoder='convolutional'" in repr(model)
    method = VariationalInference(
        num_particles=2, max_iterations=400, batch_size=16, learning_rate=5e-3
    )
    posterior = bk.infer(model, images, method, key=0)
    objective = posterior.convergence.objective
    assert objective[-1] > objective[50] + 5.0
    # Nearer to the images than their mean is.
    error = np.linalg.norm(posterior.predict(images[:8]).mean - images[:8], axis=(1, 2)).mean()
    spread = np.linalg.norm(images[:8] - images.mean(axis=0), axis=(1, 2)).mean()
    assert error < 0.7 * spread
    assert posterior.generate(0, 3).shape == (3, 6, 5)
    posterior.save(tmp_path / "posterior.nc")
    loaded = bk.load(tmp_path / "posterior.nc")
    np.testing.assert_array_equal(loaded.generate(1, 2), posterior.generate(1, 2))
    with pytest.raises(ValueError, match=r"decoder='convolutional' is for images .* 30 numbers"):
        bk.infer(model, images.reshape(60, -1), method, key=0)
