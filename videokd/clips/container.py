"""Opens video files with FFmpeg, which then opens no other file and no address that their content names."""

import io
from collections.abc import Mapping
from pathlib import Path

import av
from av.container import InputContainer

CONTAINERS = (
    "apng", "asf", "asf_o", "av1", "avi", "avs2", "avs3", "cavsvideo", "cine", "dhav", "dirac", "dnxhd", "dv",
    "flv", "gif", "gxf", "h261", "h263", "h264", "hevc", "ivf", "jpeg_pipe", "kux", "live_flv", "m4v", "matroska",
    "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mpjpeg", "mxf", "nsv", "nut", "obu", "ogg", "png_pipe", "rm", "swf",
    "ty", "vc1", "vvc", "webp_pipe", "wtv", "yuv4mpegpipe",
)  # fmt: skip
"""FFmpeg's names of formats that hold a video themselves. Playlists and patterns (hls, concat, dash, sdp, image2, ...),
which name other files or addresses to open, are not among them."""


def open_container(source: Path | bytes, *, options: Mapping[str, str] = {}) -> InputContainer:
    """The opened video.

    The format is told from the content, whatever the file's suffix: a playlist that is called `.mp4` is refused by
    FFmpeg before it opens anything.

    Args:
        source: path of a file on this machine, or the content of one.
        options: of FFmpeg's.

    Raises:
        av.FFmpegError: for what is no video in one of `CONTAINERS`.
    """
    # "file:" keeps a colon in the name from being read as a protocol; tags may be in any encoding.
    where = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    limits = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    return av.open(where, "r", options={**options, **limits}, metadata_errors="ignore")
