"""What uses the core and is never used by it: training a GHN, fine-tuning, analysis, images and graph pictures."""
