"""The one door to OpenCV, which is an extra."""

from types import ModuleType

from undertow.errors import MissingDependency


def require_opencv() -> ModuleType:
    """The module `cv2`. Errors: `MissingDependency`."""
    try:
        import cv2  # noqa: PLC0415  an extra
    except ImportError as err:
        raise MissingDependency("opencv-python-headless", "hints") from err
    return cv2
