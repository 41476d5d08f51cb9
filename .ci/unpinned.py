"""With what pip installed: what best-of-n wrote, streaming rewards against ``score``, the custom_generate example, and news."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import torch
from packaging.version import Version

from swift_rm import StreamingReward, SwiftRewardModel, score
from swift_rm.embedded import ASSETS, TINY_REWARD, load_language_model
from swift_rm.tested_versions import TRANSFORMERS, installed

example, answered = sys.argv[1:]
for line in Path(answered).read_text().splitlines():
    result = json.loads(line)
    rewards = [one["reward"] for one in result["candidates"]]
    print(f"best-of-n: {result['best']['reward']:+.3f} of {len(rewards)}: {result['best']['text']}")
    assert len(rewards) == 4 and all(map(math.isfinite, rewards)) and result["best"]["reward"] in rewards

model, tokenizer = load_language_model(device="cpu", progress=False)
rm = SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)
chats = [[{"role": "user", "content": question}] for question in ("27+15", "82-51+77", "05+61")]
inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True)
width = inputs["input_ids"].shape[1]
torch.manual_seed(0)

with StreamingReward(model, rm, tokenizer) as stream:
    out = model.generate(**inputs, num_return_sequences=8, do_sample=True, max_new_tokens=48)
ends = set(torch.as_tensor(model.generation_config.eos_token_id).reshape(-1).tolist())
responses = []
for tokens in out[:, width:].tolist():
    end = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    responses.append(tokens[:end])
prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
expected = score(model, tokenizer, rm, [prompt for prompt in prompts for _ in range(8)], responses)
apart = (stream.rewards - torch.tensor(expected)).abs().max().item()
lengths = sorted({len(response) for response in responses})
print(f"streaming rewards are those of score() within {apart:.1e}, responses of {lengths[0]} to {lengths[-1]} tokens")
assert apart < 1e-3 and len(lengths) > 1, expected

best = model.generate(
    **inputs, custom_generate=example, trust_remote_code=True, reward_model=TINY_REWARD, n=4, max_new_tokens=48,
    return_dict_in_generate=True,
)  # fmt: skip
for sequence, reward, prompt in zip(best.sequences, best.rewards.tolist(), prompts, strict=True):
    text = tokenizer.decode(sequence[width:], skip_special_tokens=True)
    response = next(one for one in best.candidates[prompts.index(prompt)] if abs(one.reward - reward) < 1e-6).token_ids
    [again] = score(model, tokenizer, rm, [prompt], [response])
    print(f"custom_generate: {reward:+.3f} {text}")
    assert abs(again - reward) < 1e-3, again

found = installed("transformers")
told = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "transformers"], capture_output=True, text=True)
listed = re.search(r"Available versions: (.*)", told.stdout)
newest = max(listed[1].split(", "), key=Version) if listed else None
print(f"transformers {found} is installed, tested are {TRANSFORMERS.oldest} to {TRANSFORMERS.newest}, the newest is {newest}")
if newest is None:
    print(f"::: the index did not tell which transformers is the newest: {told.stderr.strip()[-200:]} :::")
elif not TRANSFORMERS.holds(newest):
    print(f"::: transformers {newest} is out and was never tested: run make test-versions :::")
