"""How the layers of each family of models are made of our operations."""
