"""What every test needs before anything is imported."""

import os

# Read by torch when it is loaded: threads that spin while they wait starve each other on shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nothing in the tests may reach for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
