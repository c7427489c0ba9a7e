"""Clips per second that can be believed, and the reason behind them."""
