"""Prefill and decode with llama-cpp-python, through the C functions, so that no Python stands between two tokens but the call."""

import ctypes
import sys
import time

from serve import serve


def prepare(workload):
    import llama_cpp as ll

    silent = ll.llama_log_callback(lambda level, text, user_data: None)
    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(sys.argv[1].encode(), ll.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {sys.argv[1]}")
    ids = workload["ids"]
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(ids)
    params.n_threads = params.n_threads_batch = workload["threads"]
    context = ll.llama_init_from_model(model, params)
    memory = ll.llama_get_memory(context)
    tokens = (ll.llama_token * len(ids))(*ids)
    at_once = len(ids) if workload["kind"] == "prefill" else 1

    def decode(first):
        part = ctypes.cast(ctypes.byref(tokens, first * ctypes.sizeof(ll.llama_token)), ctypes.POINTER(ll.llama_token))
        if ll.llama_decode(context, ll.llama_batch_get_one(part, at_once)) != 0:
            raise RuntimeError("llama_decode failed")
        ll.llama_get_logits(context)

    def one_pass():
        ll.llama_memory_clear(memory, True)
        started = time.perf_counter()
        for first in range(0, len(ids), at_once):
            decode(first)
        return time.perf_counter() - started, None

    one_pass.keep = silent
    return one_pass


serve(prepare)
