"""The control: the learned mixture beside those that nobody had to learn, from one config, judged on the same rows."""
