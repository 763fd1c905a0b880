compiler: str
flags: str
architectures: list[str]
engine: object

def find_devices() -> tuple[list[str], str | None]: ...
