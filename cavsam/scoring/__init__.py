"""Cues of a mask's quality, and the calibrated score made of them."""
