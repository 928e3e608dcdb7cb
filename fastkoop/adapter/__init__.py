"""What records a PyTorch model and moves it; `fastkoop.torch_adapter` has the public names."""
