"""Jumps by default: what a schedule without a guard does to a model, and where a guarded jump ends."""
