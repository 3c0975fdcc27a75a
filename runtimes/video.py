"""Frames in, pictures out: images, folders and videos as one stream of grey frames, and videos written.

Videos are read and written through imageio-ffmpeg (extra ``video``), which brings its own ffmpeg.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irstd_edge.data import IMAGE_SUFFIXES, DataError, read_image, scale_16bit
from irstd_edge.errors import MissingError
from irstd_edge.files import replacing

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".gif")


@dataclass(frozen=True)
class Frame:
    """One grey frame: its file, its zero-based number in a video (None for a picture), float32 ``[H, W]`` in 0..255."""

    file: Path
    number: int | None
    image: np.ndarray

    @property
    def name(self) -> str:
        """``clip.mp4#12`` for a frame of a video, else the file's name."""
        return self.file.name if self.number is None else f"{self.file.name}#{self.number}"


@dataclass(frozen=True)
class VideoInfo:
    """Width and height in pixels, frames a second, and the number of frames as the file's header estimates it."""

    width: int
    height: int
    fps: float
    frames: int


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def list_inputs(path: Path) -> list[Path]:
    """The images and videos of a folder (not recursive, sorted), or the one file. Raises :class:`DataError`."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        raise DataError(f"{path}: holds no image or video ({', '.join(suffixes)})")
    return found


def read_frames(path: Path, every: int = 1) -> Iterator[Frame]:
    """The frames of one file: one of an image, each ``every``-th of a video. Raises :class:`DataError`."""
    if not is_video(path):
        yield Frame(path, None, read_image(path))
        return
    with _reading(path) as (info, frames):
        for number, data in enumerate(frames):
            if number % every == 0:
                yield Frame(path, number, _decode(data, info))


def count_frames(path: Path, every: int = 1) -> int:
    """The number of frames that :func:`read_frames` will yield, for a progress bar; estimated for a video."""
    return max(1, -(-video_info(path).frames // every)) if is_video(path) else 1


def read_all(
    path: Path, every: int = 1, on_error: Callable[[Path, DataError], None] | None = None
) -> Iterator[Frame]:
    """The frames of an image, a video, or of all images and videos of a folder.

    A file of a folder that cannot be read goes to ``on_error``, and the others follow; without it, and for a
    single file, :class:`DataError` is raised.
    """
    files = list_inputs(path)
    for file in files:
        try:
            yield from read_frames(file, every)
        except DataError as e:
            if on_error is None or not path.is_dir():
                raise
            on_error(file, e)


def video_info(path: Path) -> VideoInfo:
    """What a video's header says. Raises :class:`DataError`, :class:`MissingError`."""
    with _reading(path) as (info, _):
        return info


def _ffmpeg():
    try:
        import imageio_ffmpeg
    except ImportError as e:
        raise MissingError("videos need imageio-ffmpeg: pip install irstd-edge[video]") from e
    return imageio_ffmpeg


@contextmanager
def _reading(path: Path) -> Iterator[tuple[VideoInfo, Iterator[bytes]]]:
    """The header and an iterator over raw grey frames; 16 bits a pixel where the file has more than 8."""
    ffmpeg = _ffmpeg()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    stream = None
    try:
        stream = ffmpeg.read_frames(str(path), pix_fmt="gray", bits_per_pixel=8)
        header = next(stream)
        if any(bits in header.get("pix_fmt", "") for bits in ("16", "14", "12", "10")):
            stream.close()
            stream = ffmpeg.read_frames(str(path), pix_fmt="gray16le", bits_per_pixel=16)
            header = next(stream)
        width, height = header["size"]
        fps = header.get("fps") or 25.0
        frames = max(1, round(fps * (header.get("duration") or 0)))
        yield VideoInfo(width, height, fps, frames), stream
    except (OSError, RuntimeError, StopIteration, KeyError) as e:
        reason = (str(e).strip().splitlines() or ["no frame"])[-1].strip()
        raise DataError(f"{path}: cannot be read as a video ({reason})") from e
    finally:
        if stream is not None:
            stream.close()


def _decode(data: bytes, info: VideoInfo) -> np.ndarray:
    deep = len(data) == 2 * info.width * info.height
    grey = np.frombuffer(data, "<u2" if deep else np.uint8).reshape(info.height, info.width).astype(np.float32)
    return scale_16bit(grey) if deep else grey


@contextmanager
def writing(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an H.264 MP4: yields a call that adds one uint8 ``[H, W, 3]`` frame (odd sizes lose a row or column).

    The file appears when the block ends without an error. Raises :class:`MissingError`, :class:`DataError`.
    """
    ffmpeg = _ffmpeg()
    stream = None
    with replacing(path) as temporary:

        def write(frame: np.ndarray) -> None:
            nonlocal stream
            height, width = (size - size % 2 for size in frame.shape[:2])
            if stream is None:
                stream = ffmpeg.write_frames(
                    str(temporary), (width, height), fps=fps, codec="libx264", macro_block_size=2,
                    ffmpeg_log_level="error", quality=None, output_params=["-crf", "18", "-preset", "veryfast"],
                )
                stream.send(None)
            try:
                stream.send(np.ascontiguousarray(frame[:height, :width]))
            except OSError as e:  # ffmpeg has stopped; its own words are the last line
                reason = (str(e).strip().splitlines() or ["ffmpeg stopped"])[-1].strip()
                raise DataError(f"{path}: cannot be written ({reason}); name another place") from e

        try:
            yield write
        finally:
            if stream is not None:
                stream.close()
