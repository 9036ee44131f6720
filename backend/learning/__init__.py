"""What the corrections of a project teach: kept candidates, measured reviews, better scores."""
