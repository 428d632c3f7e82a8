"""The memory that training takes on each GPU, for models of the paper's sizes, as a table.

    python tests/bench_memory.py [--model MODEL] [--gpus 1 2 4 8] [--pack-tokens 4096]

Half an hour on one core, no GPU; extras/memory.py says what is counted.
"""

import argparse
import os
import sys
import warnings

CONFIGS = {  # the shapes that decide on memory, from the models' own config.json
    "StarCoder2-3B": ("starcoder2", 3072, 12288, 30, 24, 2, 49152),
    "Qwen2.5-Coder-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "StarCoder2-15B": ("starcoder2", 6144, 24576, 40, 48, 4, 49152),
    "DeepSeek-Coder-33B": ("llama", 7168, 19200, 62, 56, 8, 32256),
}


def config_of(kind, hidden, mlp, layers, heads, key_heads, vocabulary, tied=False):
    from transformers import AutoConfig

    return AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def main():
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from extras.memory import peak

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a checkpoint folder or hub id, of which only the config is read")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pack-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.model:
        from transformers import AutoConfig

        configs = {arguments.model: AutoConfig.from_pretrained(arguments.model)}
    else:
        configs = {name: config_of(*CONFIGS[name]) for name in CONFIGS}
    print("GiB on each GPU, activations kept / computed again; a GPU of 80 GB has 79 GiB\n")
    print(f"| model | precision | {' | '.join(f'{gpus} GPU' for gpus in arguments.gpus)} |")
    print(f"|---|---|{'---|' * len(arguments.gpus)}")
    for name, config in configs.items():
        for precision in ("bf16", "mixed"):
            cells = []
            for gpus in arguments.gpus:
                totals = [
                    peak(config, gpus, precision, recompute, pack_tokens=arguments.pack_tokens)["Total"]
                    for recompute in (False, True)
                ]
                cells.append(" / ".join(f"{total / 2**30:.0f}" for total in totals))
            print(f"| {name} | {precision} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
