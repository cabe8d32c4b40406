"""Tools that use the core, which never uses them: training a GHN, fine-tuning, analysis, images and graph pictures."""
