"""Spectra of many kernels in one picture."""

import numpy as np

from peftjax.train.spectra import bands, write_spectra


def test_bands_are_of_the_kernels_that_have_as_many_values():
    low, middle, high = bands({"a": np.array([3.0, 1.0]), "b": np.array([5.0]), "none": np.zeros(0)})
    np.testing.assert_allclose(middle, [4, 1]), np.testing.assert_allclose([low[0], high[0]], [3.2, 4.8])
    assert all(len(band) == 0 for band in bands({"none": np.zeros(0)}))


def test_a_picture_is_written_of_any_adapters(tmp_path):
    write_spectra(tmp_path / "spectra.png", {"one": {"a": np.array([3.0, 1.0])}, "untrained": {"a": np.zeros(0)}})
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
