"""Text encoders: tokenizer, CLIP, prompt dialects, and the stack that turns a prompt into conditioning.

Start at `text_stack`. transformers is imported when an encoder is built, not before; architectures (`clip_config`) are
read without torch.
"""
