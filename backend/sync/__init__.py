"""Bringing each project into line with Label Studio."""
