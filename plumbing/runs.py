"""A run's folder."""

import os

from plumbing.files import read_json


def run_setting(folder, name, default):
    """What settings.json of a run folder says of `name`; the default where it says nothing."""
    path = folder and os.path.join(folder, "settings.json")
    value = read_json(path).get(name) if os.path.exists(path) else default
    return value if isinstance(value, type(default)) else default
