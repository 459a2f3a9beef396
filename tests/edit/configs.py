"""Configs as people write them, for the edits of a text. All are taken by the host once they have the plugin."""

from __future__ import annotations

# As the host's example for Llama 3 with LoRA has it: keys without a value, a list, comments, odd indentation.
EXAMPLE = """\
base_model: NousResearch/Meta-Llama-3-8B
# optionally might have model_type or tokenizer_type
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
# Automatically upload checkpoint and final model to HF
# hub_model_id: username/custom_model_name

load_in_8bit: true
load_in_4bit: false

datasets:
  - path: mhenrichsen/alpaca_2k_test
    type: alpaca
dataset_prepared_path:
val_set_size: 0.05
output_dir: ./outputs/lora-out

sequence_len: 4096
sample_packing: true
eval_sample_packing: false


adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_modules_to_save:
  - embed_tokens
  - lm_head

wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002

bf16: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
warmup_ratio: 0.1
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
   pad_token: <|end_of_text|>

# save_first_step: true  # uncomment this to validate checkpoint saving works with your config
"""
# As those with plugins and chat templates have it.
PLUGINS = """\
base_model: google/gemma-3-1b-it   # a small one

plugins:  # in this order
- tests.host.ProbePlugin  # the first
# and none after it

chat_template: gemma3
datasets:
  - path: "cgato/SlimOrcaDedupCleaned"
    type: chat_template
    split: 'train[:1%]'
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
  - path: tatsu-lab/alpaca
    type: alpaca
val_set_size: 0.01
output_dir: ./outputs/out
micro_batch_size: 1
gradient_accumulation_steps: 1
num_epochs: 1
learning_rate: 0.0002
bf16: false
"""
# In lines that are lists, with anchors.
FLOW = """\
base_model: model
plugins: [tests.host.ProbePlugin]    # ours
datasets: [{path: a.jsonl, type: &form alpaca}, &b {path: "b.jsonl", type: *form}]
test_datasets: [{path: t.jsonl, type: *form, split: train}]
output_dir:   out     # here
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0002
bf16: false"""
# A text at the end, between the marks of a document.
MARKS = """\
---
# a config
"base_model": model
datasets:
- {path: a.jsonl, type: completion}
- {path: b.jsonl, type: completion}
val_set_size: 0.1
output_dir: out
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0002
bf16: false
chat_template: jinja
chat_template_jinja: |
  {{ messages }}
  # not a comment

# the end
...
"""
SHAPES = {
    "the host's example": EXAMPLE,
    "plugins below each other": PLUGINS,
    "lists in a line": FLOW,
    "marks of a document": MARKS,
    "lines that end as on Windows": PLUGINS.replace("\n", "\r\n"),
    "no end of the last line": PLUGINS.rstrip(),
    "a mark of the byte order": "\ufeff" + MARKS.removeprefix("---\n"),
    "plugins without a value": FLOW.replace(" [tests.host.ProbePlugin]", ""),
    "an empty list of plugins": FLOW.replace("[tests.host.ProbePlugin]", "[]"),
}
