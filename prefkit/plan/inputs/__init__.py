"""What a plan starts from: the options, the launcher, the lengths of the data, the model."""
