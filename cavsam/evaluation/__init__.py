"""Measuring the method on images whose truth is known."""
