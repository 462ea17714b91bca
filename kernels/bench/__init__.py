"""How near each Triton kernel comes to what the GPU allows, and to what a user would run instead."""
