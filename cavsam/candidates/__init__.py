"""Ways to a target's mask, and the choice between them."""
