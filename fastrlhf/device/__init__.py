"""The ground: how a kernel is launched."""
