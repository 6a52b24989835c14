"""The demo: PPO on a real language model, real text and a real reward, from one command."""
