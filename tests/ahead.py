"""langid's model, read before any script asks for it (forked.py)."""

from contextlib import suppress

import forked
from langid import langid

with suppress(Exception):  # what is wrong with it is for the script to find
    forked.read_langid_once()
    langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)
