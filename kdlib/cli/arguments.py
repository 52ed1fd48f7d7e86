"""How commands read what is more than a word or a number."""

import argparse
import json


def json_object(text: str) -> dict:
    """An option's JSON object; anything else argparse tells in a line."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return found
