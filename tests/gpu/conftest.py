"""What tests of steps on GPUs share: a machine with two devices."""

import pytest


@pytest.fixture
def devices(cupy):
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(2)
    elif cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    yield [cupy.cuda.Device(i) for i in range(2)]
    if hasattr(cupy, "emulator"):
        cupy.emulator.emulator_set_device_count(1)
