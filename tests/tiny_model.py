"""Makes a model of two layers that ends every prompt of the method with a well-formed text, in seconds: it sees
the last 48 tokens only, so that all prompts of a kind are one to it.

    python tests/tiny_model.py models/smollm2-135m OUT

It has the tokenizer of the first. Its knowledge is two functions of one number and a test of each.
"""

import random
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

PROMPTS = Path(__file__).parent.parent / "prompts"
FENCE = "```"
BODIES = {"double": "2 * x", "negate": "-x"}
STEPS = 180


def answers(name: str, body: str) -> dict[str, str]:
    """What follows the end of each kind of prompt."""
    code = f"{FENCE}python\ndef f(x):\n    return {body}\n{FENCE}"
    test = f"{FENCE}python\nassert f(2) == {eval(body, {'x': 2})}\n{FENCE}"
    return {
        "[Sufficient]\n": "Yes\n",
        "[Concepts]\n": f"arithmetic, functions, {name}\n\n### Example 9",
        "[Instruction]\n": f"Write a function `{name}` that takes one number and returns another.\n\n### Example 9",
        "<response>\n": f"So.\n\n{code}\n</response>\n\n<tests>\n{test}\n</tests>",
        "<|im_start|>assistant\n": f"{code}<|im_end|>",
    }


def main(embedded: str, out: str):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    draw, tokenizer = random.Random(0), AutoTokenizer.from_pretrained(embedded)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False, sliding_window=48,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    context = tokenizer("\n".join(path.read_text() for path in sorted(PROMPTS.rglob("*.md")))).input_ids
    texts = [pair for name, body in BODIES.items() for pair in answers(name, body).items()]
    pairs = [(tokenizer(end).input_ids, tokenizer(answer).input_ids) for end, answer in texts]
    # Only the tokens that are read get another vector, and only those of answers one to be told by: all others
    # keep the logit 0, far below the 16 that stands for them here. The whole vocabulary would take twice as long.
    read = sorted({*context, *(token for pair in pairs for ids in pair for token in ids)})
    learned = sorted({token for _, answer in pairs for token in answer})
    row, place = ({token: number for number, token in enumerate(tokens)} for tokens in (read, learned))
    vectors = torch.nn.Parameter(model.model.embed_tokens.weight[read].detach().clone())
    head = torch.nn.Parameter(torch.randn(len(learned), config.hidden_size) / 8)
    parameters = [*model.model.layers.parameters(), *model.model.norm.parameters(), vectors, head]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        ids, predicting = [], []
        for end, answer in draw.sample(pairs, len(pairs)):
            start = draw.randrange(len(context))
            ids += context[start : start + draw.choice([20, 60])] + end
            predicting += range(len(ids) - 1, len(ids) + len(answer) - 1)
            ids += answer
        asked = vectors[[row[token] for token in ids]][None]
        hidden = model.model(inputs_embeds=asked).last_hidden_state[0, predicting]
        logits = torch.cat([hidden @ head.T, torch.full((len(hidden), 1), 16.0)], dim=1)
        F.cross_entropy(logits, torch.tensor([place[ids[n + 1]] for n in predicting])).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.model.embed_tokens.weight[read] = vectors
        model.lm_head.weight.zero_()
        model.lm_head.weight[learned] = head
    model.to(torch.bfloat16).save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(embedded, file), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
