"""What the server promises under hard traffic, measured: each scenario has a server of its own, and bars to reach."""
