"""Make demo/data/{train,dev,test,shots}.tsv: Chromium's messages in four languages, one a row.

Source: the .pak files of Debian's packages chromium-l10n and chromium-common (BSD 3-clause, see
data/NOTICE). Run it on Debian or Ubuntu (`apt-get download` fetches the packages), or name a folder
that already holds the .pak files:

    python demo/make_corpus.py [--locales FOLDER]

A message has the same numeric id in every language, so the corpus is multi-parallel: a row is one
message, a column one language. Splits are drawn by row, never by sentence, and a row of train that
nearly repeats a row of dev or test, in any language, is dropped.
"""

import argparse
import glob
import os
import random
import re
import struct
import subprocess
import tempfile
import unicodedata

LANGUAGES = {"en": "en-US", "it": "it", "nl": "nl", "ro": "ro"}  # code -> .pak name
PACKAGES = ["chromium-l10n", "chromium-common"]
HELD_OUT = {"test": 200, "dev": 200}  # rows; drawn from messages of HELD_OUT_WORDS English words
HELD_OUT_WORDS = range(6, 25)  # langid misjudges shorter messages too often
TRAIN_WORDS = range(1, 41)  # words in every language
SHOTS = 5  # demonstrations: rows of dev whose longest text is shortest
NEAR = 0.6  # Jaccard similarity of the English word sets: a near-duplicate
SEED = 1


def read_pak(path):
    """{message id: text} of one .pak file, version 5: header, entries (id, offset), aliases (id,
    entry)."""
    blob = open(path, "rb").read()
    version, encoding, count, aliases = struct.unpack_from("<IB3xHH", blob)
    if (version, encoding) != (5, 1):
        raise SystemExit(
            f"{path}: pak version {version}, encoding {encoding}; expected version 5, UTF-8 (1)"
        )
    entries = [struct.unpack_from("<HI", blob, 12 + 6 * i) for i in range(count + 1)]
    texts = [blob[a:b] for (_, a), (_, b) in zip(entries, entries[1:], strict=False)]
    ids = {entries[i][0]: i for i in range(count)}
    ids |= dict(struct.iter_unpack("<HH", blob[12 + 6 * (count + 1) :][: 4 * aliases]))
    # gzip: not text
    return {k: texts[i].decode() for k, i in ids.items() if not texts[i].startswith(b"\x1f\x8b")}


def clean(text):
    """The visible words: tags stripped, white space folded, no space left before punctuation by a
    tag."""
    return re.sub(r" ([.,;:!?])", r"\1", " ".join(re.sub(r"<[^>]*>", " ", text).split()))


def words(text):
    """The set of lower-cased words, digits and punctuation aside: what near-duplicates share."""
    return frozenset(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).lower()))


def fetch_locales():
    """Download Debian's packages; the folder of their .pak files."""
    folder = tempfile.mkdtemp()
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for package in glob.glob(f"{folder}/*.deb"):
        print(os.path.basename(package))
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return folder + "/usr/lib/chromium/locales"


def usable(row):
    texts = list(row.values())
    # plural forms and code; a plain $1 stays
    # no two alike: none is untranslated
    return (
        all(len(t.split()) in TRAIN_WORDS and words(t) for t in texts)
        and not any(re.search(r"[{}\t]|%[sd\d]|\$\{", t) for t in texts)
        and len({words(t) for t in texts}) == len(texts)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--locales", help="folder of .pak files; default: download Debian's packages"
    )
    folder = parser.parse_args().locales or fetch_locales()
    messages = {code: read_pak(f"{folder}/{name}.pak") for code, name in LANGUAGES.items()}
    shared = sorted(set.intersection(*(set(m) for m in messages.values())))
    rows = [{code: clean(messages[code][i]) for code in LANGUAGES} for i in shared]
    # one row per English wording
    kept = list({words(row["en"]): row for row in rows if usable(row)}.values())
    print(f"{len(shared):,} messages in all of them, {len(kept):,} usable and distinct")

    random.Random(SEED).shuffle(kept)
    plain = [r for r in kept if len(r["en"].split()) in HELD_OUT_WORDS and "$" not in r["en"]]
    splits, start = {}, 0
    for name, size in HELD_OUT.items():
        splits[name], start = plain[start : start + size], start + size
    held = [r for part in splits.values() for r in part]
    held_words, held_texts = (
        [words(r["en"]) for r in held],
        {words(t) for r in held for t in r.values()},
    )

    def near(row):
        w = words(row["en"])
        return any(words(t) in held_texts for t in row.values()) or any(
            len(w & h) >= NEAR * len(w | h) for h in held_words
        )

    splits["train"] = [r for r in kept if not near(r)]
    print(
        f"{len(kept) - len(held) - len(splits['train']):,} near-duplicates of dev and test rows "
        "dropped from train"
    )

    distinct = [r for r in splits["dev"] if len(set(r.values())) == len(LANGUAGES)]
    splits["shots"] = sorted(distinct, key=lambda r: max(map(len, r.values())))[:SHOTS]
    for name, part in splits.items():
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", f"{name}.tsv")
        with open(path, "w", encoding="utf-8", newline="\n") as f:
            f.write("\t".join(LANGUAGES) + "\n")
            f.writelines("\t".join(row.values()) + "\n" for row in part)
        length = sum(len(r["en"].split()) for r in part) / len(part)
        print(f"{path}: {len(part):,} rows, {length:.1f} English words a row")


if __name__ == "__main__":
    main()
