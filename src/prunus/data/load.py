"""load_data: from what the user typed to an ImageData."""

from __future__ import annotations

from pathlib import Path

from prunus.data.dataset import ImageData
from prunus.data.digits import load_digits
from prunus.data.folder import read_image_folder
from prunus.data.members import archive_members, folder_members
from prunus.errors import DataError


def load_data(
    spec: str | Path, *, cache_dir: Path | None = None, skip_bad_images: bool = False, progress: bool = True
) -> ImageData:
    """Load a data set by name or from a path."""
    if spec == "digits":
        return load_digits()
    path = Path(spec).expanduser()
    if not path.exists():
        raise DataError(f"no data set or file '{spec}'")
    members = folder_members(path) if path.is_dir() else archive_members(path)
    return read_image_folder(path, members, skip_bad_images=skip_bad_images, progress=progress)
