from typing import Any

compiler: str
flags: str
architectures: list[str]
engine: object

def find_devices() -> tuple[list[str], str | None]: ...

class DeviceMemory:
    def __init__(self, size: int, device: int) -> None: ...
    @property
    def address(self) -> int: ...

def read(to: Any, address: int, device: int, stream: int) -> None: ...
def write(address: int, source: Any, device: int, stream: int) -> None: ...
def order(device: int, earlier: int, later: int) -> None: ...
def device_of(address: int) -> int: ...
def to_dlpack(
    owner: object,
    address: int,
    device: int,
    dtype: tuple[int, int],
    shape: list[int],
    strides: list[int],
    versioned: bool,
) -> Any: ...
