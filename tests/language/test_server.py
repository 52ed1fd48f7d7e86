"""When a server may be asked again, by the headers of its refusal."""

import email.utils
import time
from datetime import UTC, datetime

import pytest

from kdlib.language.server import pause


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"retry-after": "0.4"}, 0.4),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"Retry-After": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-reset-tokens": "7.66s"}, 7.66),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-requests": "1d"}, 86400),
        ({"ratelimit-reset": "12"}, 12),
        ({"X-Rate-Limit-Reset": "12"}, 12),
        # The longest of those that are used up.
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "0",
          "x-ratelimit-reset-tokens": "6m", "x-ratelimit-remaining-tokens": "9"}, 1),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m"}, 360),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "6m"}, 2),
        ({"x-ratelimit-reset-tokens": "soon", "x-ratelimit-limit-requests": "5"}, None),
        ({"retry-after": "soon", "x-ratelimit-reset": "5s"}, 5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"anthropic-ratelimit-tokens-reset": "2020-01-01T00:00:00Z"}, 0),
    ],
)  # fmt: skip
def test_what_servers_say(headers, seconds):
    assert pause(headers) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "write",
    [
        lambda then: {"x-ratelimit-reset": f"{then:.0f}"},
        lambda then: {"x-ratelimit-reset": f"{1000 * then:.0f}"},
        lambda then: {"retry-after": email.utils.formatdate(then, usegmt=True)},
        lambda then: {"anthropic-ratelimit-x-reset": f"{datetime.fromtimestamp(then, UTC):%Y-%m-%dT%TZ}"},
    ],
)
def test_moments_are_how_long_it_is_to_them(write):
    assert pause(write(time.time() + 90)) == pytest.approx(90, abs=5)
