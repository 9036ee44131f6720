"""The subcommands of `cavsam-backend`."""
