"""The folder that a dataset's images lie in: a name that comes from data never leads out of it."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError, SampleError


class ImageFolder:
    """The images of one folder by their names. Errors: `FlamingoError` naming a folder that is not there."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FlamingoError(f"{directory}: no such folder of images; name it with --images")
        self._root = self.directory.resolve()

    def image(self, *names: str) -> Image:
        """The image under the first of `names` that exists, its bytes read.

        Errors: `SampleError` for a name that leads out of the folder ("path"), no file of these names
        ("missing_image"), and one that cannot be read ("image").
        """
        for name in names:
            path = self._inside(name)
            if _is_file(path):
                image = Image(path, name=name)
                try:
                    _ = image.data
                except FlamingoError as error:
                    raise SampleError(str(error), "image") from error
                return image
        raise SampleError(f"{self.directory}: has no image {names[0]}", "missing_image")

    def _inside(self, name: str) -> Path:
        # Windows' rules know both separators, so that no name is safe on one system and not on another.
        pure = PureWindowsPath(name)
        is_plain = name and "\0" not in name and not pure.anchor and ".." not in pure.parts
        path = _resolved(self._root / PurePosixPath(name)) if is_plain else None
        if path is None or not path.is_relative_to(self._root):
            raise SampleError(
                f"{self.directory}: the image name {name[:100]!r} leads out of the folder", "path"
            )
        return path


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links that lead to themselves
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
