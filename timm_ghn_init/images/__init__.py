"""Images to train and to test on."""
