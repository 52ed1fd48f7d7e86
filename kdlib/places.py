"""Where downloads and caches go: beside the course in a checkout of it, else below the current folder."""

from pathlib import Path

__all__ = ["CACHE", "DATA", "DOWNLOADS"]

_CHECKOUT = Path(__file__).resolve().parents[1]
DATA = (_CHECKOUT if (_CHECKOUT / "notebooks").is_dir() else Path()) / "data"
DOWNLOADS, CACHE = DATA / "downloads", DATA / "cache"
