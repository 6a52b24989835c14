"""What every trainer needs: models made ready, checkpoints that are whole, signals, updates that are finite."""
