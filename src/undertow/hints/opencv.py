"""The one door to OpenCV, which is an extra."""

from types import ModuleType

from undertow.extras import optional_package


def require_opencv() -> ModuleType:
    """The module `cv2`. Errors: `MissingDependency`."""
    with optional_package("opencv-python-headless", "hints"):
        import cv2  # noqa: PLC0415  an extra
    return cv2
