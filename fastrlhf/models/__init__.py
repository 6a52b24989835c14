"""Hugging Face models as the trainers see them: hidden states, heads, and policy and critic together."""
