"""Steps on arrays of other libraries, beside the same steps on arrays of NumPy."""

import numpy as np

import fusedstep as fs


def step_beside_numpy(param, grads, read=np.asarray, **options):
    """Assert that steps give the bits that they give on NumPy's arrays; `read` makes such an array of a library's."""
    expected = np.array(read(param), copy=True)
    ours, theirs = fs.Adam(lr=0.1, **options), fs.Adam(lr=0.1, **options)
    for grad in grads:
        numbers = np.array(read(grad), copy=True)
        ours.step(param, grad)
        theirs.step(expected, numbers)
        np.testing.assert_array_equal(read(param), expected, strict=True)
        if not options.get("zero_grad"):
            np.testing.assert_array_equal(read(grad), numbers, strict=True)
