"""Networks to train and to measure with, of other kinds than the U-Net of edgeseg.zoo: see tools/train_reference."""
