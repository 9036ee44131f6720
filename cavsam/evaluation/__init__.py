"""Measuring the method on images whose ground truth is known."""
