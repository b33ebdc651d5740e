"""Make demo/data/more/{train,dev,test}.tsv: the corpus's rows in two languages that it lacks.

    python demo/make_more.py [--locales FOLDER]  # as make_corpus.py, which makes the rows

For experiments with languages that no tuning data holds: beside English alone in train, whose other
languages are in ../train.tsv, all six in dev and test. Rows that these languages lack are left out.
"""

import argparse
import os

from make_corpus import LANGUAGES, clean, fetch_locales, read_pak, usable

MORE = {"de": "de", "es": "es"}  # code -> .pak name
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--locales", help="folder of .pak files; default: Debian's packages")
    folder = parser.parse_args().locales or fetch_locales()
    names = {"en": LANGUAGES["en"]} | MORE
    messages = {code: read_pak(f"{folder}/{name}.pak") for code, name in names.items()}
    shared = sorted(set.intersection(*map(set, messages.values())))
    found = [{code: clean(texts[i]) for code, texts in messages.items()} for i in shared]
    by_english = {row["en"]: row for row in found if usable(row)}
    os.makedirs(os.path.join(DATA, "more"), exist_ok=True)
    for split in ("train", "dev", "test"):
        with open(os.path.join(DATA, f"{split}.tsv"), encoding="utf-8") as file:
            header, *rows = (line.rstrip("\n").split("\t") for line in file)
        columns = ["en", *MORE] if split == "train" else [*header, *MORE]
        lines = []
        for row in (dict(zip(header, row, strict=True)) for row in rows):
            more = by_english.get(row["en"], {})
            row = more | row
            if more and (split == "train" or usable(row)):
                lines.append("\t".join(row[code] for code in columns) + "\n")
        path = os.path.join(DATA, "more", f"{split}.tsv")
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(["\t".join(columns) + "\n", *lines])
        print(f"{path}: {len(lines):,} of {len(rows):,} rows")


if __name__ == "__main__":
    main()
