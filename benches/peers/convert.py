"""Makes the peers' files from ours: a folder for transformers, and the same weights in other quantizations for llama.cpp.

    python convert.py MODEL.gguf FOLDER

Writes FOLDER/hf (f32, the values that the packed weights stand for), FOLDER/Q4_0.gguf and FOLDER/Q8_0.gguf.
"""

import os
import sys


def write_hf(source, folder):
    import torch
    from transformers import AutoModelForCausalLM

    where, name = os.path.split(os.path.abspath(source))
    unpacked = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32, local_files_only=True)
    # transformers does not save what it has read from a GGUF file: the same weights go into a model that it takes for a float one.
    config = unpacked.config.__class__(**{k: v for k, v in unpacked.config.to_dict().items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(unpacked.state_dict())
    model.save_pretrained(folder)


def write_gguf(source, target, file_type):
    import llama_cpp as ll

    params = ll.llama_model_quantize_default_params()
    params.ftype = file_type
    params.allow_requantize = True
    # Every matrix in the one type, as in the file that they are made from.
    params.pure = True
    if ll.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        sys.exit(f"llama.cpp could not requantize {source} to {target}")


def main():
    import llama_cpp as ll

    # It tells of every tensor else.
    silent = ll.llama_log_callback(lambda level, text, user_data: None)
    ll.llama_log_set(silent, None)
    source, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    write_hf(source, os.path.join(folder, "hf"))
    write_gguf(source, os.path.join(folder, "Q4_0.gguf"), ll.LLAMA_FTYPE_MOSTLY_Q4_0)
    write_gguf(source, os.path.join(folder, "Q8_0.gguf"), ll.LLAMA_FTYPE_MOSTLY_Q8_0)


main()
