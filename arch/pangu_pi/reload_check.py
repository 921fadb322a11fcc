"""What `export_model` runs in a process of its own: reload an export as a stranger would, and write down its logits.

    python reload_check.py EXPORT_DIR FILE DEVICE

FILE (safetensors) holds `input_ids` [B, S] and gets `logits` [B, S, V] added. The package `arch` cannot be imported
here, so an export that still needs it fails. Code beside the weights is run: this package has just written it.
"""

import sys


def main(directory: str, file: str, device: str) -> None:
    sys.modules["arch"] = None  # type: ignore[assignment]  # from here on `import arch` fails

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    input_ids = load_file(file)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).to(device)
    with torch.no_grad():
        logits = model(input_ids=input_ids.to(device)).logits
    save_file({"input_ids": input_ids, "logits": logits.cpu()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
