"""langid's model, read before any script asks for it (forked.py)."""

import forked
from langid import langid

forked.read_langid_once()
langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)
