"""What a trained network is like inside, beside another: features, what it looks at, what can be read from it."""
