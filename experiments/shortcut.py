"""Evaluate runs under instructions that do not name the source: "Translate ... to Dutch."

    python -m experiments.shortcut --ckpt runs/stage1 runs/control runs/stage2

Every wrong instruction of stage 2 differs from the right one in its target, but `target` twins
often name another source too. A run may have learned to compare the source's name with the text;
here there is no such name. The files are those of evaluate.py, in RUN/eval-SPLIT.no-source.
"""

import os
from dataclasses import replace

import evaluate
from evaluate import System
from plumbing.base.errors import require
from plumbing.base.files import require_folder
from plumbing.base.flags import refuse_given, run_script
from plumbing.corpus.languages import TEMPLATES

NAME = "no-source"


def main(s: evaluate.Settings) -> None:
    """One table of the runs. Raises InputError."""
    refuse_given(s, ["template", "hypotheses"], "every run gets instructions without the source")
    require(s.ckpt, "expected --ckpt RUN ...")
    TEMPLATES[NAME] = [line.replace(" from {source}", "") for line in TEMPLATES["alpaca"]]
    s.template = NAME
    for ckpt in s.ckpt:
        require_folder(ckpt, "a run of train.py")
    names = [os.path.basename(os.path.normpath(ckpt)) for ckpt in s.ckpt]
    systems = [System(x, ckpt, replace(s), NAME) for x, ckpt in zip(names, s.ckpt, strict=True)]
    evaluate.evaluate(s, systems)


if __name__ == "__main__":
    run_script(main, evaluate.Settings, __doc__)
