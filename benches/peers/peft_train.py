"""LoRA training steps with PyTorch and PEFT: the usual way to do it, with the base in f32 or bf16 and the adapter in f32."""

import sys
import time

from serve import serve


def prepare(workload):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(workload["threads"])
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype, local_files_only=True)
    base.config.use_cache = False
    lora = LoraConfig(
        r=workload["rank"],
        lora_alpha=2 * workload["rank"],
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.tensor(workload["ids"]).reshape(workload["rows"], workload["tokens"])
    scored = workload["scored"]

    def one_pass():
        started = time.perf_counter()
        # Logits of the positions that are scored and of no others.
        logits = model(input_ids=ids, logits_to_keep=scored + 1).logits[:, :-1]
        targets = ids[:, -scored:]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = loss.item()
        return time.perf_counter() - started, loss

    return one_pass


serve(prepare)
