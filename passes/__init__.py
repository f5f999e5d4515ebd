"""One rewrite a file: `passes/split_heads.py` is what `--passes split_heads` runs."""
