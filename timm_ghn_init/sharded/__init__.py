"""Models whose parameters are spread over several devices, with PyTorch's own distributed engine (FSDP2, DTensor)."""
