"""With what pip installed: what best-of-n wrote, streaming rewards against ``score``, the custom_generate example, and news."""

import json
import math
import sys
from pathlib import Path

import torch

from swift_rm import StreamingReward, SwiftRewardModel, score
from swift_rm.files.tested_versions import TRANSFORMERS, installed
from swift_rm.models.generation_config import model_end_tokens
from swift_rm.models.load import ASSETS, TINY_REWARD, load_language_model

sys.path.append(str(Path(__file__).parents[1]))
from benchmarks.versions.versions import newest

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
ends = model_end_tokens(model)
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

print(f"transformers {installed('transformers')} is installed, tested are {TRANSFORMERS.oldest} to {TRANSFORMERS.newest}")
try:
    released = newest("transformers")
    print(f"the newest transformers is {released}")
    if not TRANSFORMERS.holds(released):
        print(f"::: transformers {released} is out and was never tested: run make test-versions :::")
except LookupError as error:
    print(f"::: {error} :::")
